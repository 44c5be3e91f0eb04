"""Chunk retrieval: score summaries, select the top k, attend inside them."""
