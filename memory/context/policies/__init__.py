"""Context policies, one file each."""
