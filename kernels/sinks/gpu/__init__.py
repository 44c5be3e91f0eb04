"""Sink attention on a GPU: forward and backward kernels and their launches.

A row is one query of one query head: row `t * R + r` is query t of head r of the R query heads that share a
key head. So a tile of rows reads the keys once for all R heads. In a decode step (T = 1), the R heads form
the tile. The kernels skip pairs of a row tile and a key tile without visible keys. No kernel uses atomics, so
gradients are deterministic.

Dimension letters: B batch, T queries, N key slots, H query heads, G key heads, D width of keys, V width of
values, R = H / G query heads per key head (SHARED).
"""

from scrubjay.kernels.sinks.gpu.launch import backward, configurations, forward

__all__ = ["backward", "configurations", "forward"]
