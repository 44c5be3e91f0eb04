"""Infrastructure of runs: directories, records, checkpoints, seeds, devices and interruption."""
