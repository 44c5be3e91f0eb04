"""Backward kernels of the reads, of the writes and of the coefficients."""
