"""Miras: neural memories whose losses and retention rules differ from those of Titans."""
