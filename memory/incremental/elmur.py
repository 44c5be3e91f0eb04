"""Stepper of `ELMUR`: keys and values of memory slots are cached until a slot is rewritten."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.memory.contract.base import add_affixes, select_part
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.incremental.local_chunk import ChunkPosition, ChunkPositions, CurrentChunk, RecentSteps

WriteTimes = Callable[[Int[Tensor, " batch"]], Int[Tensor, "batch slots"]]
"""Function from the number of completed chunks to the step of each slot's last write; -1 if unwritten."""


class ELMURStepper(Stepper):
    """Incremental inference of an `ELMUR`: one step per call, with the state updated in place.

    At width 64 on one thread, `ELMUR.step` takes 2.3, 2.3 and 2.6 times as long for 1, 8 and 64 rows.

    Args:
        layers: Layers of the memory.
        state: Initial state, with zeros in unwritten slots.
        chunk_size: Steps per chunk; a slot is rewritten at the end of each chunk.
        write_times: Function from the number of completed chunks to the write times of slots.
        slots: Function that builds the slots of a layer from their contents and write times.
    """

    @torch.no_grad()
    def __init__(
        self,
        layers: Iterable[Any],
        state: dict[str, Tensor],
        chunk_size: int,
        write_times: WriteTimes,
        slots: Callable[[Tensor, Tensor], Any],
    ) -> None:
        self.time, self.chunk_size, self.write_times = state["time"].clone(), chunk_size, write_times
        self.layers = [
            _ELMURLayerStepper(layer, select_part(state, suffix=f"_{index}"), self.time, slots)
            for index, layer in enumerate(layers)
        ]
        self.positions, self.edges = ChunkPositions(self.layers[0].layer), self.layers[0].layer.edges
        self.last_written = write_times(self.time // chunk_size)

    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the output of one step of every row."""
        starts = None
        if start is not None and start.any():
            starts = start.nonzero()[:, 0]
            self.time.index_fill_(0, starts, 0)
            self.last_written.index_fill_(0, starts, -1)
        position = self.positions.lookup(self.time.numpy())
        distance = (self.time[:, None] - self.last_written).clamp_(min=0)
        view = _SlotView(torch.bucketize(distance, self.edges, right=True), self.last_written >= 0)
        rows_at_end = (position.offset == self.chunk_size - 1).nonzero()[:, 0]
        new_chunks = _CompletedELMURChunks(
            rows_at_end, self.time[rows_at_end] // self.chunk_size, self.last_written[rows_at_end]
        )
        for layer in self.layers:
            x = layer.step(x, position, view, starts)
            if len(rows_at_end):
                layer.rewrite(new_chunks)
        self.time += 1
        if len(rows_at_end):
            self.last_written[rows_at_end] = self.write_times(self.time[rows_at_end] // self.chunk_size)
        return x

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of `rows`, by default of all rows."""
        rows = torch.arange(len(self.time)) if rows is None else rows
        time = self.time[rows]
        recent, state = RecentSteps.from_age(time, self.chunk_size), {"time": time}
        for index, layer in enumerate(self.layers):
            state |= add_affixes(layer.state(rows, recent), suffix=f"_{index}")
        return state


class _SlotView(NamedTuple):
    """Time since the last write of every slot, shared by all layers."""

    bucket: Int[Tensor, "batch slots"]
    """Bucket index of the time since each slot was last written."""
    is_written: Bool[Tensor, "batch slots"]


class _CompletedELMURChunks(NamedTuple):
    """Rows whose chunk ends at a step, the index of each chunk, and the write times of the rows' slots."""

    rows: Int[Tensor, " some"]
    chunks: Int[Tensor, " some"]
    write_times: Int[Tensor, "some slots"]


class _ELMURLayerStepper:
    """Stepper of one layer: the current chunks, the layer's outputs in these chunks, and the slots."""

    def __init__(
        self,
        layer: Any,
        state: dict[str, Tensor],
        time: Int[Tensor, " batch"],
        slots: Callable[[Tensor, Tensor], Any],
    ) -> None:
        self.layer, self.make_slots, self.current = layer, slots, CurrentChunk(layer, state, time)
        self.heads, self.scale = layer.heads, self.current.width**-0.5
        self.outputs = self.current.by_position(state["recent"])
        self.slots = state["slots"].clone()
        self.keys, self.values = (part.contiguous() for part in self._project(self.slots))
        self.bias = layer.read_bias.T.contiguous()

    def _project(self, slots: Float[Tensor, "some slots dim"]) -> list[Float[Tensor, "some heads slots w"]]:
        normalized = self.layer.slot_norm(slots)
        return [
            self.current.by_head(part(normalized)) for part in (self.layer.read_key, self.layer.read_value)
        ]

    def step(self, x: Tensor, position: ChunkPosition, view: _SlotView, starts: Tensor | None) -> Tensor:
        """Return the outputs of the layer."""
        layer, batch = self.layer, len(x)
        if starts is not None:
            self._forget(starts)
        _, scores = self.current.append(layer.norm(x), position, num_rotations=1)
        x = x + layer.out(self.current.read(torch.softmax(scores, dim=-1)).view(batch, -1))
        x = x + self._read(x, view)
        x = x + layer.feed_forward(x)
        self.outputs[torch.arange(batch), position.offset] = x
        return x

    def _read(self, x: Tensor, view: _SlotView) -> Tensor:
        """Return the attention output over the written slots."""
        query = (self.layer.read_query(self.layer.read_norm(x)) * self.scale).view(-1, 1, self.current.width)
        scores = torch.bmm(query, self.keys.flatten(0, 1).mT).view(len(x), self.heads, -1)
        scores += self.bias[view.bucket].transpose(1, 2)
        weights = softmax_or_zero(scores.masked_fill(~view.is_written[:, None], -math.inf))
        read = torch.bmm(weights.flatten(0, 1)[:, None], self.values.flatten(0, 1))
        return self.layer.read_out(read.view(len(x), -1))

    def rewrite(self, new_chunks: _CompletedELMURChunks) -> None:
        """Rewrite one slot for each chunk that this step completes."""
        rows, chunks, write_times = new_chunks
        slots = self.make_slots(self.slots[rows], write_times)
        all_rows = torch.ones(len(rows), dtype=torch.bool)
        new = self.layer.rewrite_slot(slots, self.outputs[rows], chunks, all_rows)
        self.slots[rows] = new
        self.keys[rows], self.values[rows] = self._project(new)

    def _forget(self, rows: Int[Tensor, " some"]) -> None:
        """Zero the buffers of these rows. A mask alone does not remove NaN, because 0 * NaN is NaN."""
        self.current.clear(rows)
        for store in (self.outputs, self.slots, self.keys, self.values):
            store.index_fill_(0, rows, 0)

    def state(self, rows: Tensor, recent: RecentSteps) -> dict[str, Tensor]:
        """Return the state of these rows."""
        return {
            "slots": self.slots[rows],
            "recent": recent.gather(self.outputs[rows]),
            **self.current.state(rows, recent),
        }
