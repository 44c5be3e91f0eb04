"""Elementwise recurrences: every channel fades by a factor of its own and takes up what comes."""
