"""A sliding window beside the first steps of an episode."""
