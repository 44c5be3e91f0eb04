"""Mixture of block attention as a memory with a state (MoBA, Lu et al. 2025, arXiv 2502.13189).

A chunk's score is a query's product with the mean of its keys (equation 6). One softmax runs over the steps
of the chunks that a head of a query scores best and those of its own chunk, up to itself (section 2.2).
Nothing is trained for choosing, and no gradient tells a query what to choose; those of what it has chosen
reach all that is stored.

Where it differs: positions are compact (`memory/chosen/chunked.py`), where a language model counts steps; and
`top_k` does not count the query's own chunk, as it does in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scrubjay.memory.chosen.chunked import ChunkedConfig, ChunkedLayer, ChunkedMemory


@dataclass(frozen=True)
class MoBAConfig(ChunkedConfig):
    """Sizes of `MoBA`."""

    def build(self) -> MoBA:
        """Return a freshly initialised memory of these sizes."""
        return MoBA(self)


class MoBA(ChunkedMemory):
    """Layers that read their own chunk, and those the means of whose keys a query's heads score best.

    State: that of `ChunkedMemory`; summaries are means of keys.
    """

    def __init__(self, config: MoBAConfig) -> None:
        super().__init__(config, [_Layer(config) for _ in range(config.num_layers)])


class _Layer(ChunkedLayer):
    combine = "joint"

    def summarise(
        self, keys: Tensor, values: Tensor, landmarks: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return keys.mean(dim=2), None
