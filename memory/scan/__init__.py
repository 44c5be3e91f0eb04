"""Memories built on elementwise linear recurrences, with a decay and a value per channel and step."""
