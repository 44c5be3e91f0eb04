"""Encoders that map an observation, with its images and sets, to one vector."""
