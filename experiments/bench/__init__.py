"""Benchmarks of speed and cost. Most compare Scrubjay with another implementation in the same process."""
