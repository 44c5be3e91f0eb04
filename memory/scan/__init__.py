"""Memories built on elementwise linear recurrences: each step scales each channel and adds a value to it."""
