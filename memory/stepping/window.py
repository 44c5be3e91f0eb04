"""The steps of attention to a sliding window, in a ring that all rows go round together.

A segment's steps are taken by all rows at once, so the newest input lies at one place for all, and what is at
each distance is told by a view of one table. Which inputs a row may see differs.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.parts.window import WindowAttention


class Ring:
    """The places of the last `window` inputs and of the present one, shared by layers.

    Before the first step the present place is that of the newest input there was.
    """

    def __init__(self, window: int, age: Int[Tensor, " batch"], dtype: torch.dtype) -> None:
        self.slots, self.place = window + 1, window - 1
        slot = torch.arange(self.slots)
        unseen = (slot < window - age[:, None]) | (slot == window)
        # What is added to scores.
        self.unseen = torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, -math.inf)[:, None]

    def advance(self, born: Int[Tensor, " some"] | None) -> None:
        """Go on to the next place; rows that are `born` see nothing before it."""
        self.place = (self.place + 1) % self.slots
        if born is not None:
            self.forget(born)
        self.unseen[:, :, self.place] = 0

    def forget(self, rows: Int[Tensor, " some"]) -> None:
        """Let these rows see nothing of what there is."""
        self.unseen.index_fill_(0, rows, -math.inf)

    def last(self, count: int) -> Int[Tensor, " count"]:
        """Return the places of the last inputs, oldest first."""
        return torch.arange(self.place - count + 1, self.place + 1) % self.slots


class WindowSteps:
    """One layer's window attention, its projections folded into three matrices.

    Queries go through the key projection, scores of distances are read off the input, or off a table where
    they are all that there is, and what is read goes through values and output at once. Fold and ring hold
    what `WindowAttention.step` is given and computes.
    """

    def __init__(
        self, attention: WindowAttention, ring: Ring, recent: Float[Tensor, "batch window dim"]
    ) -> None:
        self.ring, self.heads, self.weigh = ring, attention.num_heads, attention.weigh
        self.held = torch.cat([recent, torch.zeros_like(recent[:, :1])], dim=1)
        dim, heads = recent.shape[2], self.heads
        width = dim // heads
        scale = width**-0.5

        def by_head(projection: nn.Linear) -> Float[Tensor, "heads width dim"]:
            return projection.weight.unflatten(0, (heads, width))

        self.content = None
        # Distances follow each other in the ring's order from any place on, a head's beside another's.
        if attention.positions == "only":
            self.position_bias = attention.distance_scores.T.repeat(2, 1).flatten()
        else:
            query, key = by_head(attention.query) * scale, by_head(attention.key)
            self.content = (key.mT @ query).flatten(0, 1)
            content_bias, position_bias = attention.biases()
            self.content_bias = (key.mT @ content_bias[..., None]).flatten() * scale
            far = attention.distance_keys().mT
            position = torch.cat([far @ query, far @ (position_bias[..., None] * scale)], dim=2)
            position = position.transpose(0, 1).repeat(2, 1, 1)
            self.position = position[..., :dim].flatten(0, 1)
            self.position_bias = position[..., dim].flatten()
        output = attention.output.weight.T.unflatten(0, (heads, width))
        self.out = (by_head(attention.value).mT @ output).flatten(0, 1)

    def step(self, x: Tensor, normed: Float[Tensor, "batch dim"], born: Tensor | None) -> Tensor:
        """Return what is read, added to `x` where it is given; `normed` is the present input."""
        ring, heads = self.ring, self.heads
        slots, dim = ring.slots, normed.shape[1]
        if born is not None:
            self.held.index_fill_(0, born, 0)
        self.held[:, ring.place] = normed
        first = (slots - 1 - ring.place) * heads
        these = slice(first, first + slots * heads)
        if self.content is None:
            scores = self.position_bias[these].view(1, slots, heads).transpose(1, 2) + ring.unseen
        else:
            query = functional.linear(normed, self.content, self.content_bias).view(-1, heads, dim)
            distances = functional.linear(normed, self.position[these], self.position_bias[these])
            bias = distances.view(-1, slots, heads).transpose(1, 2) + ring.unseen
            scores = torch.baddbmm(bias, query, self.held.transpose(1, 2))
        read = torch.bmm(self.weigh(scores), self.held)
        return torch.addmm(x, read.view(-1, heads * dim), self.out)

    def recent(self, count: int) -> Float[Tensor, "batch count dim"]:
        """Return the last inputs, oldest first."""
        return self.held.index_select(1, self.ring.last(count))
