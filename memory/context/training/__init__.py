"""Fits of the weights that context policies need."""
