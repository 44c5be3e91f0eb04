"""Sink attention on a GPU: forward and backward kernels and their launches.

A row is one query of one of the R query heads that share a key head, `row = t * R + r`. A tile of rows thus
reads the keys of its group once, and at a decode step the R heads form the tile. Tiles of rows and keys
without visible pairs are skipped. No kernel uses atomics, so gradients are deterministic.

Dimension letters: B batch, T queries, N key slots, H query heads, G key heads, D width of keys, V width of
values, R = H / G query heads per key head (SHARED).
"""

from scrubjay.kernels.sinks.gpu.examples import configurations
from scrubjay.kernels.sinks.gpu.launch import backward, forward

__all__ = ["backward", "configurations", "forward"]
