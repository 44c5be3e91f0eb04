"""Miras: neural memories with other losses and retention rules than Titans."""
