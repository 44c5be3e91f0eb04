"""The steps of `ELMUR`: slots whose keys and values are kept until these are rewritten, and own chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.stepping.own import Last, OwnChunk, Place, Places

Written = Callable[[Int[Tensor, " batch"]], Int[Tensor, "batch slots"]]
"""Returns at which step each slot was last written, after so many chunks of an episode, or -1."""


class ELMURStepper(Stepper):
    """Advances rows of an `ELMUR`.

    Args:
        layers: Its layers.
        state: The rows, with zeros where nothing was stored.
        chunk_size: Steps at whose end a slot is rewritten.
        written: When slots were written.
        slots: What a layer calls slots: contents, and when they were written.
    """

    @torch.no_grad()
    def __init__(
        self,
        layers: Iterable[Any],
        state: dict[str, Tensor],
        chunk_size: int,
        written: Written,
        slots: Callable[[Tensor, Tensor], Any],
    ) -> None:
        self.time, self.chunk_size, self.written = state["time"].clone(), chunk_size, written
        self.layers = [
            _Layer(layer, part_of(state, suffix=f"_{index}"), self.time, slots)
            for index, layer in enumerate(layers)
        ]
        self.places, self.edges = Places(self.layers[0].layer), self.layers[0].layer.edges
        self.last_written = written(self.time // chunk_size)

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the outputs of one input each."""
        born = None
        if start is not None and start.any():
            born = start.nonzero()[:, 0]
            self.time.index_fill_(0, born, 0)
            self.last_written.index_fill_(0, born, -1)
        at = self.places.of(self.time.numpy())
        distance = (self.time[:, None] - self.last_written).clamp_(min=0)
        seen = _Seen(torch.bucketize(distance, self.edges, right=True), self.last_written >= 0)
        full = (at.place == self.chunk_size - 1).nonzero()[:, 0]
        completed = _Completed(full, self.time[full] // self.chunk_size, self.last_written[full])
        for layer in self.layers:
            x = layer.step(x, at, seen, born)
            if len(full):
                layer.rewrite(completed)
        self.time += 1
        if len(full):
            self.last_written[full] = self.written(self.time[full] // self.chunk_size)
        return x

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        rows = torch.arange(len(self.time)) if rows is None else rows
        time = self.time[rows]
        last, state = Last.at(time, self.chunk_size), {"time": time}
        for index, layer in enumerate(self.layers):
            state |= named(layer.state(rows, last), suffix=f"_{index}")
        return state


class _Seen(NamedTuple):
    """What all layers see of the slots."""

    bucket: Int[Tensor, "batch slots"]
    """Of how long ago each was written."""
    there: Bool[Tensor, "batch slots"]


class _Completed(NamedTuple):
    """Rows whose chunk ends with a step, its number in their episodes, and when their slots were written."""

    rows: Int[Tensor, " some"]
    chunks: Int[Tensor, " some"]
    written: Int[Tensor, "some slots"]


class _Layer:
    """One layer: its rows' own chunks, what came out at their places, and slots."""

    def __init__(
        self,
        layer: Any,
        state: dict[str, Tensor],
        time: Int[Tensor, " batch"],
        slots: Callable[[Tensor, Tensor], Any],
    ) -> None:
        self.layer, self.named_slots, self.own = layer, slots, OwnChunk(layer, state, time)
        self.heads, self.scale = layer.heads, self.own.width**-0.5
        self.made = self.own.by_place(state["recent"])
        self.slots = state["slots"].clone()
        self.keys, self.values = (part.contiguous() for part in self._projected(self.slots))
        self.bias = layer.read_bias.T.contiguous()

    def _projected(self, slots: Float[Tensor, "some slots dim"]) -> list[Float[Tensor, "some heads slots w"]]:
        normed = self.layer.slot_norm(slots)
        return [self.own.by_head(part(normed)) for part in (self.layer.read_key, self.layer.read_value)]

    def step(self, x: Tensor, at: Place, seen: _Seen, born: Tensor | None) -> Tensor:
        """Return what comes out of the layer."""
        layer, batch = self.layer, len(x)
        if born is not None:
            self._forget(born)
        _, scores = self.own.take(layer.norm(x), at, turns=1)
        x = x + layer.out(self.own.read(torch.softmax(scores, dim=-1)).view(batch, -1))
        x = x + self._read(x, seen)
        x = x + layer.feed_forward(x)
        self.made[torch.arange(batch), at.place] = x
        return x

    def _read(self, x: Tensor, seen: _Seen) -> Tensor:
        """Return what is read of the slots that are written."""
        query = (self.layer.read_query(self.layer.read_norm(x)) * self.scale).view(-1, 1, self.own.width)
        scores = torch.bmm(query, self.keys.flatten(0, 1).mT).view(len(x), self.heads, -1)
        scores += self.bias[seen.bucket].transpose(1, 2)
        weights = softmax_or_zero(scores.masked_fill(~seen.there[:, None], -math.inf))
        read = torch.bmm(weights.flatten(0, 1)[:, None], self.values.flatten(0, 1))
        return self.layer.read_out(read.view(len(x), -1))

    def rewrite(self, completed: _Completed) -> None:
        """Let the chunks that this step completes rewrite a slot each."""
        rows, chunks, written = completed
        slots = self.named_slots(self.slots[rows], written)
        everywhere = torch.ones(len(rows), dtype=torch.bool)
        new = self.layer.rewritten(slots, self.made[rows], chunks, everywhere)
        self.slots[rows] = new
        self.keys[rows], self.values[rows] = self._projected(new)

    def _forget(self, rows: Int[Tensor, " some"]) -> None:
        """Leave nothing of these rows, lest a weight of zero meet what is not finite."""
        self.own.forget(rows)
        for held in (self.made, self.slots, self.keys, self.values):
            held.index_fill_(0, rows, 0)

    def state(self, rows: Tensor, last: Last) -> dict[str, Tensor]:
        """Return the state of these rows."""
        return {
            "slots": self.slots[rows],
            "recent": last.of(self.made[rows]),
            **self.own.state(rows, last),
        }
