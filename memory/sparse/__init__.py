"""Memories with sparse attention over chunks or clusters of the past."""
