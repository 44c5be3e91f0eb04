"""Attention to the current chunk, one step per call.

Keys and values are stored at the position of their step in the chunk, so a completed chunk needs no
reordering. Positions after the present step still hold steps of the previous chunk, which a mask hides.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.parts.rotary import build_sine_weights


class ChunkPosition(NamedTuple):
    """Position of each row's present step in its chunk, with the rotation and mask for this position."""

    offset: Int[Tensor, " batch"]
    cos: Float[Tensor, "batch 2 1 width"]
    """Cosines of the rotary angles at `offset`, and at `offset + chunk_size` for queries to stored chunks."""
    sin: Float[Tensor, "batch 2 1 width"]
    mask: Float[Tensor, "batch 1 chunk_size"]
    """Additive mask of the scores in the current chunk: 0 up to the present step, -inf after it."""


class ChunkPositions:
    """Rotations and masks of all positions of a chunk, for layers with the sizes of `layer`."""

    def __init__(self, layer: Any) -> None:
        self.chunk_size = layer.chunk_size
        (cos, cos_step), (sin, sin_step) = (
            part[:, None].split(self.chunk_size) for part in (layer.cos, layer.sin)
        )
        cosines = torch.cat([cos, cos * cos_step - sin * sin_step], dim=1)
        sines = torch.cat([sin, sin * cos_step + cos * sin_step], dim=1)
        offset = torch.arange(self.chunk_size)
        mask = torch.zeros(self.chunk_size, self.chunk_size, dtype=cos.dtype)
        mask.masked_fill_(offset > offset[:, None], -math.inf)
        self.tables = cosines, sines, mask[:, None]

    def lookup(self, time: Int[np.ndarray, " batch"]) -> ChunkPosition:
        """Return the chunk positions at `time`, the number of earlier steps in each row's episode."""
        offset = torch.from_numpy(time % self.chunk_size)
        # Three times as fast as indexing.
        return ChunkPosition(offset, *(table.index_select(0, offset) for table in self.tables))


class CurrentChunk:
    """Current chunks of all rows in one layer.

    One matrix holds all projections of the layer, including the sine parts of the rotary projections.
    """

    def __init__(self, layer: Any, state: dict[str, Tensor], time: Int[Tensor, " batch"]) -> None:
        self.heads, self.chunk_size = layer.heads, layer.chunk_size
        self.width = layer.query.out_features // self.heads
        self.row = torch.arange(len(time) * self.heads).view(-1, self.heads) * self.chunk_size
        # The state holds the last steps oldest first; this buffer is indexed by chunk position.
        self.state_index = (torch.arange(self.chunk_size) - time[:, None]) % self.chunk_size
        self.keys, self.values = (
            self.by_head(self.by_position(state[name])).contiguous()
            for name in ("recent_keys", "recent_values")
        )
        query, key, value = (
            part.weight.unflatten(0, (self.heads, -1)) for part in (layer.query, layer.key, layer.value)
        )
        query, rotary_dim = query * self.width**-0.5, self.width // 2 * 2
        parts = (
            query,
            key,
            value,
            build_sine_weights(query, rotary_dim),
            build_sine_weights(key, rotary_dim),
        )
        self.projections = torch.cat([part.flatten(0, 1) for part in parts])

    def by_head(self, x: Tensor) -> Float[Tensor, "batch heads items width"]:
        """Return `x` with its last axis split into heads."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def by_position(self, recent: Float[Tensor, "batch chunk_size dim"]) -> Tensor:
        """Reorder `recent` from the order in a state, oldest first, to the order of chunk positions."""
        return recent.gather(1, self.state_index[..., None].expand_as(recent))

    def append(
        self, inputs: Float[Tensor, "batch dim"], position: ChunkPosition, num_rotations: int
    ) -> tuple[Float[Tensor, "units rotations width"], Float[Tensor, "batch heads chunk_size"]]:
        """Store a step and return its scaled queries and its attention scores in the current chunk.

        Args:
            inputs: Normalized inputs of the step.
            position: Chunk position of the step.
            num_rotations: Number of queries per head. With 1, only the query for the current chunk. With 2,
                also the query for stored chunks.
        """
        parts = functional.linear(inputs, self.projections).view(len(inputs), 5, self.heads, self.width)
        cos, sin = position.cos[:, :num_rotations], position.sin[:, :num_rotations]
        query = (
            (parts[:, :1] * cos + parts[:, 3:4] * sin).transpose(1, 2).reshape(-1, num_rotations, self.width)
        )
        key = parts[:, 1] * cos[:, 0] + parts[:, 4] * sin[:, 0]
        where = (self.row + position.offset[:, None]).flatten()
        for store, new in ((self.keys, key), (self.values, parts[:, 2])):
            store.view(-1, self.width).index_copy_(0, where, new.reshape(-1, self.width))
        scores = torch.bmm(query[:, :1], self.keys.flatten(0, 1).mT)
        return query, scores.view(len(inputs), self.heads, -1) + position.mask

    def read(self, weights: Float[Tensor, "batch heads chunk_size"]) -> Float[Tensor, "units 1 width"]:
        """Return the weighted sum of the values in the current chunk of each row and head."""
        return torch.bmm(weights.flatten(0, 1)[:, None], self.values.flatten(0, 1))

    def clear(self, rows: Int[Tensor, " some"]) -> None:
        """Zero the buffers of these rows. A mask alone does not remove NaN, because 0 * NaN is NaN."""
        self.keys.index_fill_(0, rows, 0)
        self.values.index_fill_(0, rows, 0)

    def state(self, rows: Int[Tensor, " some"], recent: RecentSteps) -> dict[str, Tensor]:
        """Return the state entries of these rows: keys and values of the last `chunk_size` steps."""
        stores = (("recent_keys", self.keys), ("recent_values", self.values))
        return {name: recent.gather(store.transpose(1, 2).flatten(2)[rows]) for name, store in stores}


class RecentSteps(NamedTuple):
    """Chunk positions of the last `chunk_size` steps, oldest first, and a mask.

    The mask is True for steps before the start of the episode.
    """

    positions: Int[Tensor, "some chunk_size"]
    is_empty: Bool[Tensor, "some chunk_size"]

    @classmethod
    def from_age(cls, time: Int[Tensor, " some"], chunk_size: int) -> RecentSteps:
        """Build a `RecentSteps` for rows whose episodes have `time` steps so far."""
        positions = (time[:, None] + torch.arange(chunk_size)) % chunk_size
        return cls(positions, torch.arange(chunk_size, 0, -1) > time[:, None])

    def gather(self, values: Float[Tensor, "some chunk_size dim"]) -> Tensor:
        """Reorder `values` from chunk positions to oldest first. Steps before the episode are zero."""
        steps = values.gather(1, self.positions[..., None].expand_as(values))
        return steps.masked_fill_(self.is_empty[..., None], 0)
