"""Long-context benchmarks: quality, runtime and memory of context policies in a language model."""
