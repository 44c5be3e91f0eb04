"""Memories that are linear recurrences: a matrix per head, written by a rule."""
