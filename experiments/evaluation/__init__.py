"""Trained policies and teams, played and judged."""

MAX_STEPS = 100_000
"""Most steps that each copy of an environment takes, where nothing else is said."""
