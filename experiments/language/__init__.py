"""Experiments with language agents: conversations, scores, prompt templates, tuning records."""
