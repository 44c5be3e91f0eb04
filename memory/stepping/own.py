"""The steps of attention to the chunk that is being filled: keys and values by head, each at its place.

So a chunk that is complete lies in order, and behind the present place what is left of the one before.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.parts.rotary import across


class Place(NamedTuple):
    """Where each row's step is in its chunk, and what follows from that."""

    place: Int[Tensor, " batch"]
    cos: Float[Tensor, "batch 2 1 width"]
    """Of its place, and of a chunk more: who asks stored chunks is turned twice."""
    sin: Float[Tensor, "batch 2 1 width"]
    later: Float[Tensor, "batch 1 chunk_size"]
    """What is added to scores of the own chunk: -inf from the next place on."""


class Places:
    """The places of a chunk, as layers like this one turn them."""

    def __init__(self, layer: Any) -> None:
        self.chunk_size = layer.chunk_size
        (cos, once_more), (sin, more) = (
            part[:, None].split(self.chunk_size) for part in (layer.cos, layer.sin)
        )
        self.cos = torch.cat([cos, cos * once_more - sin * more], dim=1)
        self.sin = torch.cat([sin, sin * once_more + cos * more], dim=1)
        place = torch.arange(self.chunk_size)
        self.later = torch.zeros(self.chunk_size, self.chunk_size, dtype=self.cos.dtype)
        self.later.masked_fill_(place > place[:, None], -math.inf)

    def of(self, time: Int[np.ndarray, " batch"]) -> Place:
        """Return the places of rows whose episodes are so old."""
        place = torch.from_numpy(time % self.chunk_size)
        return Place(place, self.cos[place], self.sin[place], self.later[place][:, None])


class OwnChunk:
    """The own chunks of all rows in one layer, and its projections as one matrix, the turned ones twice."""

    def __init__(self, layer: Any, state: dict[str, Tensor], time: Int[Tensor, " batch"]) -> None:
        self.heads, self.chunk_size = layer.heads, layer.chunk_size
        self.width = layer.query.out_features // self.heads
        self.row = torch.arange(len(time) * self.heads).view(-1, self.heads) * self.chunk_size
        # The state holds the last steps oldest first; here a step of place p is at p.
        self.back = (torch.arange(self.chunk_size) - time[:, None]) % self.chunk_size
        self.keys, self.values = (
            self.by_head(self.by_place(state[name])).contiguous() for name in ("recent_keys", "recent_values")
        )
        query, key, value = (
            part.weight.unflatten(0, (self.heads, -1)) for part in (layer.query, layer.key, layer.value)
        )
        query, turned = query * self.width**-0.5, self.width // 2 * 2
        parts = (query, key, value, across(query, turned), across(key, turned))
        self.projections = torch.cat([part.flatten(0, 1) for part in parts])

    def by_head(self, x: Tensor) -> Float[Tensor, "batch heads items width"]:
        """Return items by head."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def by_place(self, recent: Float[Tensor, "batch chunk_size dim"]) -> Tensor:
        """Return the last steps, as a state has them, each at its place."""
        return recent.gather(1, self.back[..., None].expand_as(recent))

    def take(
        self, normed: Float[Tensor, "batch dim"], at: Place, turns: int
    ) -> tuple[Float[Tensor, "units turns width"], Float[Tensor, "batch heads chunk_size"]]:
        """Put a step where it belongs; return what it asks, scaled, and the scores of its own chunk.

        Args:
            normed: The step, normed.
            at: Its place.
            turns: 1 for what asks the own chunk alone, 2 with what asks stored ones behind it.
        """
        parts = functional.linear(normed, self.projections).view(len(normed), 5, self.heads, self.width)
        cos, sin = at.cos[:, :turns], at.sin[:, :turns]
        query = (parts[:, :1] * cos + parts[:, 3:4] * sin).transpose(1, 2).reshape(-1, turns, self.width)
        key = parts[:, 1] * cos[:, 0] + parts[:, 4] * sin[:, 0]
        where = (self.row + at.place[:, None]).flatten()
        for own, new in ((self.keys, key), (self.values, parts[:, 2])):
            own.view(-1, self.width).index_copy_(0, where, new.reshape(-1, self.width))
        scores = torch.bmm(query[:, :1], self.keys.flatten(0, 1).mT)
        return query, scores.view(len(normed), self.heads, -1) + at.later

    def read(self, weights: Float[Tensor, "batch heads chunk_size"]) -> Float[Tensor, "units 1 width"]:
        """Return the values of the own chunks, so weighted."""
        return torch.bmm(weights.flatten(0, 1)[:, None], self.values.flatten(0, 1))

    def forget(self, rows: Int[Tensor, " some"]) -> None:
        """Leave nothing of these rows, lest a weight of zero meet what is not finite."""
        self.keys.index_fill_(0, rows, 0)
        self.values.index_fill_(0, rows, 0)

    def state(self, rows: Int[Tensor, " some"], last: Last) -> dict[str, Tensor]:
        """Return the last steps' keys and values in these rows."""
        named = (("recent_keys", self.keys), ("recent_values", self.values))
        return {name: last.of(own.transpose(1, 2).flatten(2)[rows]) for name, own in named}


class Last(NamedTuple):
    """Which of a chunk's places hold the last steps, oldest first, and which of these there have not been."""

    places: Int[Tensor, "some chunk_size"]
    unseen: Bool[Tensor, "some chunk_size"]

    @classmethod
    def at(cls, time: Int[Tensor, " some"], chunk_size: int) -> Last:
        """Return those of rows that are so old."""
        places = (time[:, None] + torch.arange(chunk_size)) % chunk_size
        return cls(places, torch.arange(chunk_size, 0, -1) > time[:, None])

    def of(self, held: Float[Tensor, "some chunk_size dim"]) -> Tensor:
        """Return what is held by places oldest first, zeros for what there has not been."""
        steps = held.gather(1, self.places[..., None].expand_as(held))
        return steps.masked_fill_(self.unseen[..., None], 0)
