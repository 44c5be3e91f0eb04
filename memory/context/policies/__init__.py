"""Context policies, each in a module of its own."""
