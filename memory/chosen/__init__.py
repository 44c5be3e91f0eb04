"""Memories that choose among chunks of the past by keys that are trained."""
