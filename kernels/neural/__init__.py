"""Titans' test-time learner."""
