"""Analysis of single attention heads: sinks, retrieval heads, and captured weights."""
