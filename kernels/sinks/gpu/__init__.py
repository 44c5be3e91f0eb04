"""Sink attention on a GPU: forward and backward kernels and their launches.

A row is a query with one of the R query heads that share a key head, `row = t * R + r`: a tile of rows reads
the keys of its group once, and at a decode step the R heads are the tile. Pairs of tiles that cannot see each
other are skipped. No kernel uses atomics, so gradients are the same in every run.

Letters: B batch, T queries, N key slots, H query heads, G key heads, D width of keys, V width of values,
R = H / G query heads a key head (SHARED); in shapes of tiles BR rows, BK keys, BD and BV the padded widths.
"""

from scrubjay.kernels.sinks.gpu.examples import configurations
from scrubjay.kernels.sinks.gpu.launch import backward, forward

__all__ = ["backward", "configurations", "forward"]
