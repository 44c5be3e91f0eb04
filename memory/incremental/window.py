"""Stepper of sliding-window attention, with a ring buffer whose slots are shared by all rows.

All rows advance together, so the newest input is in the same slot of every row. The distance from the newest
input to each slot is therefore the same in every row. The mask of visible inputs differs between rows.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.parts.window import WindowAttention


class WindowRingBuffer:
    """Ring buffer of the last `window` inputs and the present input. All layers share its slots and mask.

    `slot` is the slot of the present input. Before the first step, it is the slot of the state's last input.
    """

    def __init__(self, window: int, age: Int[Tensor, " batch"], dtype: torch.dtype) -> None:
        self.num_slots, self.slot = window + 1, window - 1
        slots = torch.arange(self.num_slots)
        mask = (slots < window - age[:, None]) | (slots == window)
        self.steps_until_visible = self.num_slots
        # Additive mask of the scores.
        self.mask = torch.zeros(mask.shape, dtype=dtype).masked_fill_(mask, -math.inf)[:, None]

    def advance(self, starts: Int[Tensor, " some"] | None) -> None:
        """Advance to the next slot. In the rows `starts`, mask all slots of earlier inputs."""
        self.slot = (self.slot + 1) % self.num_slots
        if starts is not None:
            self.clear(starts)
        if self.steps_until_visible:
            self.mask[:, :, self.slot] = 0
            self.steps_until_visible -= 1

    def clear(self, rows: Int[Tensor, " some"]) -> None:
        """Mask all slots in these rows."""
        self.steps_until_visible = self.num_slots
        self.mask.index_fill_(0, rows, -math.inf)

    def recent_slots(self, count: int) -> Int[Tensor, " count"]:
        """Return the slots of the last `count` inputs, oldest first."""
        return torch.arange(self.slot - count + 1, self.slot + 1) % self.num_slots


class WindowStepper:
    """Window attention of one layer with its projections folded into three matrices.

    The first matrix combines the query and key projections. The second maps an input to its scores for every
    distance. With `positions="only"`, a table of scores replaces the first two. The third combines the value
    and output projections. Outputs equal the outputs of `WindowAttention.step` up to rounding.
    """

    def __init__(
        self, attention: WindowAttention, ring: WindowRingBuffer, recent: Float[Tensor, "batch window dim"]
    ) -> None:
        self.ring, self.heads, self.weigh = ring, attention.num_heads, attention.weigh
        self.inputs = torch.cat([recent, torch.zeros_like(recent[:, :1])], dim=1)
        dim, heads = recent.shape[2], self.heads
        width = dim // heads
        scale = width**-0.5

        def by_head(projection: nn.Linear) -> Float[Tensor, "heads width dim"]:
            return projection.weight.unflatten(0, (heads, width))

        self.content = None
        # The table is repeated, so that the distances of the ring's slots are a slice for any present slot.
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

    def step(self, x: Tensor, new_inputs: Float[Tensor, "batch dim"], starts: Tensor | None) -> Tensor:
        """Return `x` plus the attention output for `new_inputs`, the normalized present inputs."""
        ring, heads = self.ring, self.heads
        num_slots, dim = ring.num_slots, new_inputs.shape[1]
        if starts is not None:
            self.inputs.index_fill_(0, starts, 0)
        self.inputs[:, ring.slot] = new_inputs
        first = (num_slots - 1 - ring.slot) * heads
        columns = slice(first, first + num_slots * heads)
        if self.content is None:
            scores = self.position_bias[columns].view(1, num_slots, heads).transpose(1, 2) + ring.mask
        else:
            query = functional.linear(new_inputs, self.content, self.content_bias).view(-1, heads, dim)
            distances = functional.linear(new_inputs, self.position[columns], self.position_bias[columns])
            bias = distances.view(-1, num_slots, heads).transpose(1, 2) + ring.mask
            scores = torch.baddbmm(bias, query, self.inputs.transpose(1, 2))
        read = torch.bmm(self.weigh(scores), self.inputs)
        return torch.addmm(x, read.view(-1, heads * dim), self.out)

    def recent(self, count: int) -> Float[Tensor, "batch count dim"]:
        """Return the last `count` inputs, oldest first."""
        return self.inputs.index_select(1, self.ring.recent_slots(count))
