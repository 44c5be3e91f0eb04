"""Elementwise linear recurrences: every channel has its own decay."""
