"""The steps of `Routing`: rings that steps are put into where they stay, and one window that all go round."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.stepping.window import Ring


class RoutingStepper(Stepper):
    """Advances rows of a `Routing`.

    Args:
        layers: Its layers.
        state: The rows, with zeros where nothing was stored.
        window: Earlier steps that are read wherever they go.
    """

    @torch.no_grad()
    def __init__(self, layers: Iterable[Any], state: dict[str, Tensor], window: int) -> None:
        self.time, self.window = state["time"].clone(), window
        self.ring = Ring(window, self.time, state["recent_keys_0"].dtype)
        self.layers = [
            _Layer(layer, self.ring, part_of(state, suffix=f"_{index}")) for index, layer in enumerate(layers)
        ]

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the outputs of one input each."""
        born = None
        if start is not None and start.any():
            born = start.nonzero()[:, 0]
            self.time.index_fill_(0, born, 0)
        self.ring.advance(born)
        leaves = self.time >= self.window
        self.time += 1
        # As a rule all rows are old enough, or none is.
        rows = torch.arange(len(x)) if leaves.all() else leaves.nonzero()[:, 0]
        when = self.time[rows] - 1 - self.window
        for layer in self.layers:
            x = layer.step(x, born, rows, when)
        return x

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        rows = torch.arange(len(self.time)) if rows is None else rows
        time = self.time[rows]
        unseen = torch.arange(self.window, 0, -1) > time[:, None]
        state = {"time": time}
        for index, layer in enumerate(self.layers):
            state |= named(layer.state(rows, unseen), suffix=f"_{index}")
        return state


class _Layer:
    """One layer: its rows' rings, `[batch * centroids, heads, capacity, width]`, and window."""

    def __init__(self, layer: Any, ring: Ring, state: dict[str, Tensor]) -> None:
        self.ring, self.heads, self.layer = ring, layer.heads, layer
        self.counts, self.times = state["counts"].clone(), state["times"].clone()
        batch, self.centroids = self.counts.shape
        self.capacity = state["keys"].shape[1] // self.centroids
        self.row = torch.arange(batch)
        self.stored, self.held = [], []
        for name in ("keys", "values"):
            by_head = state[name].unflatten(1, (self.centroids, self.capacity)).unflatten(3, (self.heads, -1))
            by_head = by_head.transpose(2, 3).clone(memory_format=torch.contiguous_format)
            self.stored.append(by_head.flatten(0, 1))
            recent = state[f"recent_{name}"].unflatten(2, (self.heads, -1)).transpose(1, 2)
            self.held.append(functional.pad(recent, (0, 0, 0, 1)).contiguous())
        self.dim = state["keys"].shape[2]
        self.projections = torch.cat([layer.query.weight, layer.key.weight, layer.value.weight])
        self.nearness = functional.normalize(layer.centroids, dim=1).T.contiguous()
        # What the distance of each slot adds to scores, by the present place.
        slot = torch.arange(ring.slots)
        self.distances = layer.distances[:, (slot[:, None] - slot) % ring.slots].transpose(0, 1).contiguous()

    def step(
        self,
        x: Tensor,
        born: Int[Tensor, " born"] | None,
        leaving: Int[Tensor, " leaving"],
        when: Int[Tensor, " leaving"],
    ) -> Tensor:
        layer, ring, batch, dim = self.layer, self.ring, len(x), self.dim
        if born is not None:
            self._forget(born)
        query, key, value = functional.linear(layer.norm(x), self.projections).split(dim, dim=1)
        query, key = functional.layer_norm(query, [dim]), functional.layer_norm(key, [dim])
        for held, new in zip(self.held, (key, value), strict=True):
            held[:, :, ring.place] = new.unflatten(1, (self.heads, -1))
        oldest = (ring.place + 1) % ring.slots
        old = self.held[0][leaving, :, oldest]
        shares = torch.log_softmax(torch.mm(torch.cat([query, old.flatten(1)]), self.nearness), dim=1)
        share, home = shares.max(dim=1)

        asked = home[:batch]
        written = self.counts.gather(1, asked[:, None])
        unwritten = torch.arange(self.capacity) >= written
        where = self.row * self.centroids + asked
        ring_keys, ring_values = (stored.index_select(0, where).flatten(0, 1) for stored in self.stored)
        keys, values = (held.flatten(0, 1) for held in self.held)
        query = (query * (dim // self.heads) ** -0.5).view(batch * self.heads, 1, -1)
        far = torch.bmm(query, ring_keys.mT).view(batch, self.heads, -1)
        far += share[:batch, None, None].masked_fill(unwritten[:, None], -math.inf)
        near = torch.bmm(query, keys.mT).view(batch, self.heads, -1)
        near += self.distances[ring.place]
        near += ring.unseen
        weights = torch.softmax(torch.cat([far, near], dim=2), dim=2).flatten(0, 1)[:, None]
        read = torch.bmm(weights[..., : self.capacity], ring_values)
        read = torch.baddbmm(read, weights[..., self.capacity :], values)
        x = layer.finish(x, read.view(batch, dim))
        self._store(leaving, home[batch:], oldest, old, when)
        return x

    def _forget(self, rows: Int[Tensor, " some"]) -> None:
        """Leave nothing of these rows, lest a weight of zero meet what is not finite."""
        self.counts.index_fill_(0, rows, 0)
        for held, stored in zip(self.held, self.stored, strict=True):
            held.index_fill_(0, rows, 0)
            stored.unflatten(0, (-1, self.centroids)).index_fill_(0, rows, 0)

    def _store(
        self,
        rows: Int[Tensor, " some"],
        to: Int[Tensor, " some"],
        oldest: int,
        keys: Tensor,
        when: Int[Tensor, " some"],
    ) -> None:
        """Put into rings what leaves the window."""
        count = self.counts[rows, to]
        ring, slot = rows * self.centroids + to, count % self.capacity
        self.stored[0][ring, :, slot] = keys
        self.stored[1][ring, :, slot] = self.held[1][rows, :, oldest]
        self.times[rows, to * self.capacity + slot] = when
        self.counts[rows, to] = count + 1

    def state(self, rows: Int[Tensor, " some"], unseen: Bool[Tensor, "some window"]) -> dict[str, Tensor]:
        counts = self.counts[rows]
        unwritten = (torch.arange(self.capacity) >= counts[..., None]).flatten(1)
        last = self.ring.last(self.ring.slots - 1)
        state = {"counts": counts, "times": self.times[rows].masked_fill(unwritten, 0)}
        for name, stored, held in zip(("keys", "values"), self.stored, self.held, strict=True):
            by_row = stored.unflatten(0, (-1, self.centroids))[rows].transpose(2, 3)
            recent = held[rows][:, :, last].transpose(1, 2).flatten(2)
            state[name] = by_row.flatten(3).flatten(1, 2).masked_fill(unwritten[..., None], 0)
            state[f"recent_{name}"] = recent.masked_fill(unseen[..., None], 0)
        return state
