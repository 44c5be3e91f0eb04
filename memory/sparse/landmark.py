"""Landmark attention as a memory with a state (Mohtashami and Jaggi 2023, arXiv 2305.16300).

A learned vector, the landmark, follows every chunk and attends to it. Queries score a chunk by the key of its
landmark. The softmax is grouped: the steps of each chunk form one group, and all landmarks and the steps of
the query's own chunk form another. The weight of a step in another chunk is its weight within that chunk
times the weight of the chunk's landmark. The value of a landmark is not used (section 3.1). Chunks with a low
landmark weight contribute little, so a query reads only the `top_k` chunks with the best landmark scores.
Gradients flow into the chunks that a query reads.

Differences from the paper: a landmark attends only to the steps of its own chunk, not to earlier landmarks.
Its key is computed after this attention. In the paper, all landmarks of the first layer are equal, so a
single layer could not distinguish chunks. `top_k` is the same in training and inference. The paper trains
with all chunks, which is `top_k=num_chunks`; the trained weights work with every `top_k`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.memory.sparse.chunked import ChunkedConfig, ChunkedLayer, ChunkedMemory


@dataclass(frozen=True)
class LandmarkConfig(ChunkedConfig):
    """Configuration of `Landmark`."""

    paper_values = "in the paper, a landmark also attends to earlier landmarks, which the state does not hold"

    def build(self) -> Landmark:
        """Return a freshly initialized memory."""
        return Landmark(self)


class Landmark(ChunkedMemory):
    """Stack of layers in which a query reads its own chunk and the chunks with the best landmark scores.

    State: the entries of `ChunkedMemory`; summaries are the keys of landmarks.
    """

    def __init__(self, config: LandmarkConfig) -> None:
        super().__init__(config, [_LandmarkLayer(config) for _ in range(config.num_layers)])
        self.landmark = nn.Parameter(torch.randn(config.dim))

    def landmarks(self, batch: int, chunks: int) -> Float[Tensor, "batch chunks dim"]:
        """Return the initial landmark of each chunk, which the first layer updates."""
        return self.landmark.expand(batch, chunks, -1)


class _LandmarkLayer(ChunkedLayer):
    combine = "hierarchical"

    def summarise(
        self, keys: Tensor, values: Tensor, landmarks: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert landmarks is not None
        position = self.chunk_size
        query = self.rotate(self._heads(self.query, landmarks, keys), position)
        scores = torch.einsum("bnhd,bnchd->bnhc", query, keys) * keys.shape[-1] ** -0.5
        read = torch.einsum("bnhc,bnchd->bnhd", torch.softmax(scores, dim=-1), values)
        new_landmarks = landmarks + self.out(read.flatten(2).to(landmarks.dtype))
        key = self.rotate(self._heads(self.key, new_landmarks, keys), position)
        return key, new_landmarks + self.feed_forward(new_landmarks)

    def _heads(self, project: nn.Linear, landmarks: Tensor, like: Tensor) -> Tensor:
        return project(self.norm(landmarks)).to(like.dtype).unflatten(-1, (self.heads, -1))
