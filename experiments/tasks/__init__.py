"""Configs of tasks: environments, teams and synthetic sequences."""
