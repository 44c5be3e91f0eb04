"""Memories that are elementwise linear recurrences: a decay and a value per channel and step."""
