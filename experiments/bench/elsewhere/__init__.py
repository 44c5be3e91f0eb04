"""Benchmark of attention elsewhere."""
