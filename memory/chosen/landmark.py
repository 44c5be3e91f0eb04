"""Landmark attention as a memory with a state (Mohtashami and Jaggi 2023, arXiv 2305.16300).

A trained vector, the landmark, stands behind every chunk and attends to it; its key is what queries score
the chunk by. The softmax is in groups: the steps of each chunk are one, all landmarks and the steps of the
query's own chunk another. A step of another chunk weighs its share of its own group, times that of its
landmark, whose own value counts nothing (section 3.1). So queries need only read the chunks of the best
landmarks, and gradients reach all that is stored.

Where it differs: a landmark attends to the steps of its own chunk alone, not to landmarks before it, and its
key is taken after that: in the paper landmarks of the first layer are all alike, and one layer would tell no
chunks apart. `top_k` is the same in training and use, where the paper trains with all chunks: `top_k` of
`num_chunks` does so, and weights fit every `top_k`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.memory.chosen.chunked import ChunkedConfig, ChunkedLayer, ChunkedMemory


@dataclass(frozen=True)
class LandmarkConfig(ChunkedConfig):
    """Sizes of `Landmark`."""

    def build(self) -> Landmark:
        """Return a freshly initialised memory of these sizes."""
        return Landmark(self)


class Landmark(ChunkedMemory):
    """Layers that read their own chunk, and those whose landmarks a query's heads score best.

    State: that of `ChunkedMemory`; summaries are keys of landmarks.
    """

    def __init__(self, config: LandmarkConfig) -> None:
        super().__init__(config, [_Layer(config) for _ in range(config.num_layers)])
        self.landmark = nn.Parameter(torch.randn(config.dim))

    def landmarks(self, batch: int, chunks: int) -> Float[Tensor, "batch chunks dim"]:
        """Return the landmark of each chunk, before the first layer."""
        return self.landmark.expand(batch, chunks, -1)


class _Layer(ChunkedLayer):
    combine = "hierarchical"

    def summarise(
        self, keys: Tensor, values: Tensor, landmarks: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert landmarks is not None
        behind = self.chunk_size
        query = self.turned(self._heads(self.query, landmarks, keys), behind)
        scores = torch.einsum("bnhd,bnchd->bnhc", query, keys) * keys.shape[-1] ** -0.5
        read = torch.einsum("bnhc,bnchd->bnhd", torch.softmax(scores, dim=-1), values)
        found = landmarks + self.out(read.flatten(2).to(landmarks.dtype))
        key = self.turned(self._heads(self.key, found, keys), behind)
        return key, found + self.feed_forward(found)

    def _heads(self, project: nn.Linear, landmarks: Tensor, like: Tensor) -> Tensor:
        return project(self.norm(landmarks)).to(like.dtype).unflatten(-1, (self.heads, -1))
