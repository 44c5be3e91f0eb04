"""Sparse reading of a prompt by FlexPrefill against dense attention (`speed`)."""
