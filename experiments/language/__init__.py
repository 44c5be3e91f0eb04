"""Agents that talk, as experiments: conversations, scores, prompt templates, tuning records."""
