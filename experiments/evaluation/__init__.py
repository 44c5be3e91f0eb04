"""Trained policies and teams, played and judged."""
