"""What every run has: a directory, records, checkpoints, seeds, a device, and a way to stop."""
