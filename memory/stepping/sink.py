"""The steps of `Sink`: keys and values written where they lie, every product of an input taken at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels import sink_slot
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.parts.rotary import across, turns
from scrubjay.memory.parts.sinks import held


class SinkStepper(Stepper):
    """Advances rows of a `Sink`.

    Args:
        layers: Its layers.
        state: The rows.
        num_sinks: First steps of an episode that stay.
        window: Last steps that stay.
    """

    @torch.no_grad()
    def __init__(self, layers: Iterable[Any], state: dict[str, Tensor], num_sinks: int, window: int) -> None:
        self.sizes = num_sinks, window
        self.time = state["time"].clone()
        batch, _, self.slots, _ = state["keys"].shape
        empty = held(self.time, *self.sizes) < 0
        # What is added to scores.
        self.unseen = torch.zeros(empty.shape, dtype=state["keys"].dtype).masked_fill_(empty, -math.inf)
        self.layers = [
            _Layer(layer, state["keys"][:, index], state["values"][:, index], empty)
            for index, layer in enumerate(layers)
        ]
        # Where the slots of each row's heads begin.
        self.first = torch.arange(batch * self.layers[0].heads).view(batch, -1) * self.slots

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the outputs of one input each."""
        born = None
        if start is not None:
            born = start.nonzero()[:, 0]
            self.time.index_fill_(0, born, 0)
            self.unseen.index_fill_(0, born, -math.inf)
        slot = sink_slot(self.time, *self.sizes)
        self.unseen.scatter_(1, slot[:, None], 0)
        early = np.flatnonzero(self.time.numpy() < self.sizes[0])
        rows = torch.from_numpy(early) if len(early) else None
        turn = self.layers[0].turn(self.time)
        where = (self.first + slot[:, None]).flatten()
        present = _Present(self.unseen[:, None], where, born, rows, None if rows is None else slot[rows])
        for layer in self.layers:
            x = layer.step(x, turn, present)
        self.time += 1
        return x

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        rows = torch.arange(len(self.time)) if rows is None else rows
        layers = [layer.state(rows) for layer in self.layers]
        keys, values = (torch.stack(parts, dim=1) for parts in zip(*layers, strict=True))
        return {"keys": keys, "values": values, "time": self.time[rows]}


class _Present(NamedTuple):
    """Where rows are in this step."""

    unseen: Float[Tensor, "batch 1 slots"]
    where: Int[Tensor, " batch*heads"]
    """The place written to, of the slots of all heads of all rows."""
    born: Int[Tensor, " some"] | None
    """Rows that begin an episode."""
    early: Int[Tensor, " few"] | None
    """Rows that write to a sink."""
    slot: Int[Tensor, " few"] | None
    """Theirs."""


class _Layer:
    """One layer with its rows' keys and values, `[batch * heads, slots, width]`, where one query reads them.

    Keys of sinks are kept twice: as a state has them, and as they are read, without their turned half and
    with their slot's vector.
    """

    def __init__(self, layer: Any, keys: Tensor, values: Tensor, empty: Tensor) -> None:
        self.norm = layer.attention_norm
        self.norm_before, self.inward, _, self.outward = layer.feed_forward
        self.logit = layer.sink_logit
        self.frequencies = layer.frequencies
        heads, width, rotated = layer.heads, layer.width, layer.rotated
        self.heads, self.dim, self.num_sinks = heads, heads * width, layer.num_sinks
        self.width, self.still = width, width - rotated
        scale = width**-0.5
        turned = torch.cat([layer.query.weight * scale, layer.key.weight]).unflatten(0, (2 * heads, width))
        # What the sine of the time is multiplied with stands beside what the cosine is.
        both = turned.flatten(0, 1), across(turned, rotated).flatten(0, 1)
        self.projections = torch.cat([*both, layer.value.weight])
        self.out = layer.out.weight.T.contiguous()
        self.sinks = keys[:, : self.num_sinks].clone()
        # Copies: one row's one head would be contiguous, and the state's own.
        keys, values = keys.clone(), values.clone()
        if self.num_sinks:
            self.positions = functional.pad(layer.sink_positions, (rotated, 0)).flatten(1)
            self.keeps = torch.cat(
                [self.positions.new_zeros(rotated), self.positions.new_ones(self.still)]
            ).repeat(heads)
            read = self.sinks * self.keeps + self.positions
            keys[:, : self.num_sinks] = read.masked_fill_(empty[:, : self.num_sinks, None], 0)
        self.keys, self.values = (
            cache.unflatten(2, (heads, width)).transpose(1, 2).flatten(0, 1).contiguous()
            for cache in (keys, values)
        )

    def state(self, rows: Int[Tensor, " some"]) -> tuple[Tensor, Tensor]:
        """Return keys and values of these rows as a state has them, `[batch, slots, dim]`."""
        keys, values = (
            cache.unflatten(0, (-1, self.heads)).index_select(0, rows).transpose(1, 2).flatten(2)
            for cache in (self.keys, self.values)
        )
        keys[:, : self.num_sinks] = self.sinks.index_select(0, rows)
        return keys, values

    def turn(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the rows' times for every place of a head, two heads' width."""
        cos, sin = turns(time, self.frequencies, self.width, self.keys.dtype)
        return cos[:, None], sin[:, None]

    def step(self, x: Tensor, turn: tuple[Tensor, Tensor], present: _Present) -> Tensor:
        batch, dim, heads = len(x), self.dim, self.heads
        projected = functional.linear(self.norm(x), self.projections)
        along, turned, value = projected.split([2 * dim, 2 * dim, dim], dim=1)
        cos, sin = turn
        both = along.view(batch, 2 * heads, -1) * cos
        both.addcmul_(turned.view(batch, 2 * heads, -1), sin)
        query, key = both.view(batch, 2, dim).unbind(1)
        if present.born is not None:
            for cache in (self.keys, self.values, self.sinks):
                cache.view(batch, -1).index_fill_(0, present.born, 0)
        if present.early is not None:
            new = key[present.early]
            self.sinks[present.early, present.slot] = new
            key = key.index_copy(0, present.early, new * self.keeps + self.positions[present.slot])
        for cache, new in ((self.keys, key), (self.values, value)):
            cache.view(-1, self.width).index_copy_(0, present.where, new.reshape(-1, self.width))
        scores = torch.bmm(query.reshape(batch * heads, 1, -1), self.keys.transpose(1, 2)).view(
            batch, heads, -1
        )
        scores += present.unseen
        if self.logit is None:
            weights = torch.softmax(scores, dim=-1)
        else:
            silent = self.logit.view(1, heads, 1).expand(batch, -1, -1)
            weights = torch.softmax(torch.cat([scores, silent], dim=-1), dim=-1)[..., :-1]
        read = torch.bmm(weights.reshape(batch * heads, 1, -1), self.values)
        x = torch.addmm(x, read.view(batch, dim), self.out)
        return x + self.outward(functional.gelu(self.inward(self.norm_before(x))))
