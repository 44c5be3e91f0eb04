"""Mixture of block attention as a memory with a state (MoBA, Lu et al. 2025, arXiv 2502.13189).

The score of a chunk is the product of the query with the mean of the chunk's keys (equation 6). One softmax
runs over the steps of the best chunks of a query's head and of its own chunk up to itself (section 2.2). The
selection has no parameters and no gradient; gradients of selected chunks reach everything stored in them.

Differences from the paper: positions are compact (`memory/sparse/chunked.py`); a language model uses absolute
positions. `top_k` does not count the query's own chunk; in the paper it does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scrubjay.memory.sparse.chunked import ChunkedConfig, ChunkedLayer, ChunkedMemory


@dataclass(frozen=True)
class MoBAConfig(ChunkedConfig):
    """Configuration of `MoBA`."""

    def build(self) -> MoBA:
        """Return a freshly initialised memory."""
        return MoBA(self)


class MoBA(ChunkedMemory):
    """Stack of layers that read their own chunk and the chunks with the best mean keys.

    State: the entries of `ChunkedMemory`; summaries are means of keys.
    """

    def __init__(self, config: MoBAConfig) -> None:
        super().__init__(config, [_MoBALayer(config) for _ in range(config.num_layers)])


class _MoBALayer(ChunkedLayer):
    combine = "joint"

    def summarise(
        self, keys: Tensor, values: Tensor, landmarks: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return keys.mean(dim=2), None
