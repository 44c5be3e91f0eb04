"""Stepper of `Routing`: a ring buffer per row and centroid, and a window with slots shared by all rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.contract.base import add_affixes, select_part
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.incremental.window import WindowRingBuffer


class RoutingStepper(Stepper):
    """Incremental inference of a `Routing`: one step per call, with the state updated in place.

    At width 64 on one thread, `Routing.step` takes 2.2, 2.4 and 3.1 times as long for 1, 8 and 64 rows.

    Args:
        layers: Layers of the memory.
        state: Initial state, with zeros in unwritten slots.
        window: Number of earlier steps that are read regardless of their centroid.
    """

    @torch.no_grad()
    def __init__(self, layers: Iterable[Any], state: dict[str, Tensor], window: int) -> None:
        self.time, self.window = state["time"].clone(), window
        self.ring = WindowRingBuffer(window, self.time, state["recent_keys_0"].dtype)
        self.layers = [
            _RoutingLayerStepper(layer, self.ring, select_part(state, suffix=f"_{index}"))
            for index, layer in enumerate(layers)
        ]

    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the output of one step of every row."""
        starts = None
        if start is not None and start.any():
            starts = start.nonzero()[:, 0]
            self.time.index_fill_(0, starts, 0)
        self.ring.advance(starts)
        leaves = self.time >= self.window
        self.time += 1
        # Usually a step leaves the window in all rows or in none.
        rows = torch.arange(len(x)) if leaves.all() else leaves.nonzero()[:, 0]
        when = self.time[rows] - 1 - self.window
        for layer in self.layers:
            x = layer.step(x, starts, rows, when)
        return x

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of `rows`, by default of all rows."""
        rows = torch.arange(len(self.time)) if rows is None else rows
        time = self.time[rows]
        is_empty = torch.arange(self.window, 0, -1) > time[:, None]
        state = {"time": time}
        for index, layer in enumerate(self.layers):
            state |= add_affixes(layer.state(rows, is_empty), suffix=f"_{index}")
        return state


class _RoutingLayerStepper:
    """Stepper of one layer: the window, and ring buffers `[batch * centroids, heads, capacity, width]`."""

    def __init__(self, layer: Any, ring: WindowRingBuffer, state: dict[str, Tensor]) -> None:
        self.ring, self.heads, self.layer = ring, layer.heads, layer
        self.counts, self.times = state["counts"].clone(), state["times"].clone()
        batch, self.centroids = self.counts.shape
        self.capacity = state["keys"].shape[1] // self.centroids
        self.row = torch.arange(batch)
        self.stores, self.windows = [], []
        for name in ("keys", "values"):
            by_head = state[name].unflatten(1, (self.centroids, self.capacity)).unflatten(3, (self.heads, -1))
            by_head = by_head.transpose(2, 3).clone(memory_format=torch.contiguous_format)
            self.stores.append(by_head.flatten(0, 1))
            recent = state[f"recent_{name}"].unflatten(2, (self.heads, -1)).transpose(1, 2)
            self.windows.append(functional.pad(recent, (0, 0, 0, 1)).contiguous())
        self.dim = state["keys"].shape[2]
        self.projections = torch.cat([layer.query.weight, layer.key.weight, layer.value.weight])
        self.nearness = functional.normalize(layer.centroids, dim=1).T.contiguous()
        # Distance bias of each slot, by the present slot.
        slot = torch.arange(ring.num_slots)
        self.distances = (
            layer.distances[:, (slot[:, None] - slot) % ring.num_slots].transpose(0, 1).contiguous()
        )

    def step(
        self,
        x: Tensor,
        starts: Int[Tensor, " starts"] | None,
        leaving: Int[Tensor, " leaving"],
        when: Int[Tensor, " leaving"],
    ) -> Tensor:
        layer, ring, batch, dim = self.layer, self.ring, len(x), self.dim
        if starts is not None:
            self._forget(starts)
        query, key, value = functional.linear(layer.norm(x), self.projections).split(dim, dim=1)
        query, key = functional.layer_norm(query, [dim]), functional.layer_norm(key, [dim])
        for window, new in zip(self.windows, (key, value), strict=True):
            window[:, :, ring.slot] = new.unflatten(1, (self.heads, -1))
        oldest = (ring.slot + 1) % ring.num_slots
        old = self.windows[0][leaving, :, oldest]
        shares = torch.log_softmax(torch.mm(torch.cat([query, old.flatten(1)]), self.nearness), dim=1)
        share, home = shares.max(dim=1)

        own_centroid = home[:batch]
        num_written = self.counts.gather(1, own_centroid[:, None])
        unwritten = torch.arange(self.capacity) >= num_written
        where = self.row * self.centroids + own_centroid
        ring_keys, ring_values = (store.index_select(0, where).flatten(0, 1) for store in self.stores)
        keys, values = (window.flatten(0, 1) for window in self.windows)
        query = (query * (dim // self.heads) ** -0.5).view(batch * self.heads, 1, -1)
        far = torch.bmm(query, ring_keys.mT).view(batch, self.heads, -1)
        far += share[:batch, None, None].masked_fill(unwritten[:, None], -math.inf)
        near = torch.bmm(query, keys.mT).view(batch, self.heads, -1)
        near += self.distances[ring.slot]
        near += ring.mask
        weights = torch.softmax(torch.cat([far, near], dim=2), dim=2).flatten(0, 1)[:, None]
        read = torch.bmm(weights[..., : self.capacity], ring_values)
        read = torch.baddbmm(read, weights[..., self.capacity :], values)
        x = layer.finish(x, read.view(batch, dim))
        self._store(leaving, home[batch:], oldest, old, when)
        return x

    def _forget(self, rows: Int[Tensor, " some"]) -> None:
        """Zero the buffers of these rows. A mask alone does not remove NaN, because 0 * NaN is NaN."""
        self.counts.index_fill_(0, rows, 0)
        for window, store in zip(self.windows, self.stores, strict=True):
            window.index_fill_(0, rows, 0)
            store.unflatten(0, (-1, self.centroids)).index_fill_(0, rows, 0)

    def _store(
        self,
        rows: Int[Tensor, " some"],
        to: Int[Tensor, " some"],
        oldest: int,
        keys: Tensor,
        when: Int[Tensor, " some"],
    ) -> None:
        """Copy the steps that are no longer in the window to the ring buffers of their centroids."""
        count = self.counts[rows, to]
        ring, slot = rows * self.centroids + to, count % self.capacity
        self.stores[0][ring, :, slot] = keys
        self.stores[1][ring, :, slot] = self.windows[1][rows, :, oldest]
        self.times[rows, to * self.capacity + slot] = when
        self.counts[rows, to] = count + 1

    def state(self, rows: Int[Tensor, " some"], is_empty: Bool[Tensor, "some window"]) -> dict[str, Tensor]:
        counts = self.counts[rows]
        unwritten = (torch.arange(self.capacity) >= counts[..., None]).flatten(1)
        slots = self.ring.recent_slots(self.ring.num_slots - 1)
        state = {"counts": counts, "times": self.times[rows].masked_fill(unwritten, 0)}
        for name, store, window in zip(("keys", "values"), self.stores, self.windows, strict=True):
            by_row = store.unflatten(0, (-1, self.centroids))[rows].transpose(2, 3)
            recent = window[rows][:, :, slots].transpose(1, 2).flatten(2)
            state[name] = by_row.flatten(3).flatten(1, 2).masked_fill(unwritten[..., None], 0)
            state[f"recent_{name}"] = recent.masked_fill(is_empty[..., None], 0)
        return state
