"""Experiments: their configs, run directories, engines and training."""
