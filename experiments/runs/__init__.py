"""Experiments: their configs, run directories, engines, training and evaluation."""

MAX_STEPS = 100_000
"""Default maximum number of steps per environment in an evaluation."""
