"""Evaluation of trained policies and teams."""

MAX_STEPS = 100_000
"""Default maximum number of steps per environment."""
