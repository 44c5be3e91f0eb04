"""Parallel runs, searches of settings, and runs on clusters."""
