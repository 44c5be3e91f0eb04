"""Shared parts of the language agents: prompts, untrusted text, packing of texts into a token budget."""
