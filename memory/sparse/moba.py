"""Mixture of block attention as a memory with a state (MoBA, Lu et al. 2025, arXiv 2502.13189).

The score of a chunk is the dot product of the query with the mean of the chunk's keys (equation 6). Each head
of a query selects the chunks with the best scores. One softmax runs over the steps of these chunks and the
steps of the query's own chunk up to the query (section 2.2). The selection has no parameters and no gradient.
Gradients flow into the keys and values of the selected chunks.

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

    paper_values = "in the paper, top_k also counts the chunk of the query, and positions are absolute"

    def build(self) -> MoBA:
        """Return a freshly initialized memory."""
        return MoBA(self)


class MoBA(ChunkedMemory):
    """Stack of layers in which a query reads its own chunk and the chunks whose mean keys score best.

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
