"""Sliding-window attention with attention sinks: the first steps of an episode stay visible."""
