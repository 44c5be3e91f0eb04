"""Scrubjay: one long-context memory core for reinforcement-learning and language agents."""

__version__ = "0.1.0"
