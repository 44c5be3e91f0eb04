"""Chunk retrieval: score summaries, keep the top k, attend inside them."""
