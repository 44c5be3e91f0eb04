"""Summaries of chunks, and a ring that keeps them."""
