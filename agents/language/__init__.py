"""Shared parts of the language agents: prompts, handling of untrusted text, packing of a context budget."""
