"""Stepper of memories that select chunks.

Each batch row has a ring buffer of chunks, which stores keys and values separately for every head. Steps of
the current chunk are stored at their position in the chunk, so a completed chunk needs no reordering.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels import choose_chunks
from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.memory.contract.base import add_affixes, select_part
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.incremental.local_chunk import ChunkPosition, ChunkPositions, CurrentChunk, RecentSteps
from scrubjay.memory.incremental.ring_buffer import ChunkRingBuffer, CompletedChunks, ReadableChunks


class ChunkedStepper(Stepper):
    """Incremental inference of a `ChunkedMemory`: one step per call, with the state updated in place.

    At width 64 on one thread, `step` of `Landmark` takes 4.3, 4.2 and 2.7 times as long for 1, 8 and 64 rows,
    that of `MoBA` 4.8, 4.2 and 2.9 times, and that of `NSA` 2.5, 2.5 and 2.2 times.

    Args:
        layers: Layers of the memory.
        state: Initial state, with zeros in unwritten slots.
        chunk_size: Steps per chunk.
        landmarks: Function that returns the initial landmarks of completed chunks, or None if the memory has
            no landmarks. Its arguments are the number of rows and the number of completed chunks per row. A
            landmark is a vector that represents a chunk. The first layer receives the initial landmarks.
            Each layer passes updated landmarks to the next layer.
        steps: Class of the stepper of each layer.
    """

    @torch.no_grad()
    def __init__(
        self,
        layers: Iterable[Any],
        state: dict[str, Tensor],
        chunk_size: int,
        landmarks: Callable[[int, int], Tensor | None],
        steps: type[ChunkedLayerStepper],
    ) -> None:
        self.chunk_size, self.landmarks = chunk_size, landmarks
        self.ring = ChunkRingBuffer(state["time"], chunk_size, state["keys_0"].shape[1])
        self.layers = [
            steps(layer, select_part(state, suffix=f"_{index}"), state["time"])
            for index, layer in enumerate(layers)
        ]
        self.positions = ChunkPositions(self.layers[0].layer)

    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the output of one step of every row."""
        starts = self.ring.reset(start)
        position = self.positions.lookup(self.ring.time)
        readable, full_chunks = self.ring.advance()
        landmarks = None if full_chunks is None else self.landmarks(len(full_chunks.rows), 1)
        for layer in self.layers:
            x = layer.step(x, position, readable, starts)
            if full_chunks is not None:
                landmarks = layer.store(full_chunks, landmarks)
        if full_chunks is not None:
            self.ring.commit(full_chunks)
        return x

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of `rows`, by default of all rows."""
        all_times = torch.from_numpy(self.ring.time)
        rows = torch.arange(len(all_times)) if rows is None else rows
        time = all_times[rows]
        slots, unwritten = self.ring.slots(rows), self.ring.empty_slots(time)
        recent, state = RecentSteps.from_age(time, self.chunk_size), {"time": time}
        for index, layer in enumerate(self.layers):
            state |= add_affixes(layer.state(rows, slots, unwritten, recent), suffix=f"_{index}")
        return state


class ChunkedLayerStepper:
    """Stepper of one layer: current chunks, stored chunks and summaries of all rows.

    A chunk stays in its slot after it is written. Summaries are small, so they are moved at every write to
    stay sorted oldest first. In this order, the earlier of two chunks with equal scores is selected.
    """

    def __init__(self, layer: Any, state: dict[str, Tensor], time: Int[Tensor, " batch"]) -> None:
        self.layer, self.current = layer, CurrentChunk(layer, state, time)
        self.heads, self.width = self.current.heads, self.current.width
        batch, self.num_chunks, self.chunk_size, _ = state["keys"].shape
        self.top_k = min(layer.top_k, self.num_chunks)
        self.rows, self.head_numbers = np.arange(batch)[:, None, None], np.arange(self.heads)[:, None]
        self.stores = []
        for name in ("keys", "values"):
            shape = (batch * self.num_chunks + 1, self.heads, self.chunk_size, self.width)
            store = state[name].new_zeros(shape)
            store[:-1] = self.current.by_head(state[name].flatten(0, 1))
            self.stores.append(store)
        # Always a copy: with one head or one chunk `contiguous` would return the tensor of the state itself.
        self.summaries = self.current.by_head(state["summaries"]).clone(memory_format=torch.contiguous_format)

    def step(
        self, x: Tensor, position: ChunkPosition, readable: ReadableChunks | None, starts: Tensor | None
    ) -> Tensor:
        """Return the outputs of the layer."""
        layer = self.layer
        if starts is not None:
            # Earlier values are cleared, since 0 * NaN is NaN.
            self.current.clear(starts)
            self.summaries.index_fill_(0, starts, 0)
        inputs = layer.norm(x)
        query, own_scores = self.current.append(inputs, position, num_rotations=2)
        read = self.read(inputs, own_scores, query[:, 1:], readable)
        x = x + layer.out(read.view(len(x), -1))
        return x + layer.feed_forward(x)

    def read(
        self,
        inputs: Float[Tensor, "batch dim"],
        own_scores: Float[Tensor, "batch heads chunk_size"],
        far: Float[Tensor, "units 1 width"],
        readable: ReadableChunks | None,
    ) -> Float[Tensor, "units 1 width"]:
        """Return the attention output of all heads.

        Args:
            inputs: Normalized inputs of the layer.
            own_scores: Attention scores of the steps of the current chunk.
            far: Scaled queries for stored chunks.
            readable: Stored chunks that may be read; None if no chunk is readable.
        """
        if readable is None:
            return self.current.read(torch.softmax(own_scores, dim=-1))
        scores = torch.bmm(far, self.summaries.flatten(0, 1)[:, self.num_chunks - readable.num_readable :].mT)
        scores = scores.view(len(own_scores), 1, self.heads, -1)
        if readable.num_readable > self.top_k:
            # NaN scores rank first, so that they are read.
            ranking = torch.nan_to_num(scores, nan=math.inf, posinf=math.inf, neginf=-math.inf)
            chosen_chunks = choose_chunks(readable.valid, top_k=self.top_k, scores=ranking)
            slots = readable.slots[self.rows, chosen_chunks.chunks.numpy()[:, 0]]
            return self.read_selected(own_scores, far, chosen_chunks.scores[:, 0], slots)
        scores, slots = scores[:, 0], readable.slots[:, None, :-1]
        if readable.mask is not None:
            scores = torch.where(readable.valid, scores, -math.inf)
            slots = np.where(readable.valid.numpy(), slots, readable.slots[:, None, -1:])
        return self.read_selected(own_scores, far, scores, slots)

    def read_selected(
        self,
        own_scores: Float[Tensor, "batch heads chunk_size"],
        far: Float[Tensor, "batch_heads 1 width"],
        scores: Float[Tensor, "batch units K"],
        slots: Int[np.ndarray, "batch #units K"],
    ) -> Float[Tensor, "batch_heads 1 width"]:
        """Return the attention output over the current chunk and the selected chunks.

        A unit is one head of a row, or all heads of a row together. The arguments `scores` and `slots`
        describe the selected chunks of each unit; the score is -inf where no chunk is selected.
        """
        batch, steps = len(own_scores), own_scores.shape[2]
        rows = torch.from_numpy((slots * self.heads + self.head_numbers).ravel())
        chosen_keys, chosen_values = (
            store.flatten(0, 1).index_select(0, rows).view(batch * self.heads, -1, self.width)
            for store in self.stores
        )
        within = torch.bmm(far, chosen_keys.mT).view(batch, self.heads, -1, self.chunk_size)
        scores = scores[..., None]
        if self.layer.combine == "hierarchical":
            within = torch.log_softmax(within, dim=-1) + scores
        else:
            within = within.masked_fill(scores == -math.inf, -math.inf)
        weights = torch.softmax(torch.cat([own_scores, within.flatten(2)], dim=2), dim=2)
        stored_weights = weights[..., steps:].flatten(0, 1)[:, None]
        return torch.baddbmm(self.current.read(weights[..., :steps]), stored_weights, chosen_values)

    def store(self, full_chunks: CompletedChunks, landmarks: Tensor | None) -> Tensor | None:
        """Store the chunks that this step completes, and return their landmarks for the next layer.

        A landmark is a vector that represents a chunk. Return None if the memory has no landmarks.
        """
        rows, slots = full_chunks
        chunks = [values[rows] for values in (self.current.keys, self.current.values)]
        for store, chunk in zip(self.stores, chunks, strict=True):
            store.index_copy_(0, slots, chunk)
        keys, values = (chunk.transpose(1, 2)[:, None] for chunk in chunks)
        summaries, landmarks = self.layer.summarise(keys, values, landmarks)
        self.summaries[rows] = torch.cat([self.summaries[rows, :, 1:], summaries.transpose(1, 2)], dim=2)
        return landmarks

    def state(self, rows: Tensor, slots: Tensor, unwritten: Tensor, recent: RecentSteps) -> dict[str, Tensor]:
        """Return the state of these rows.

        Args:
            rows: Indices of the rows.
            slots: Slots of their chunks, oldest first.
            unwritten: True for slots without a chunk.
            recent: Positions of the most recent steps of these rows.
        """
        summaries = self.summaries[rows].transpose(1, 2).flatten(2)
        state = {"summaries": summaries.masked_fill_(unwritten[..., None], 0)}
        for name, store in zip(("keys", "values"), self.stores, strict=True):
            chunks = store[slots].transpose(2, 3).flatten(3)
            state[name] = chunks.masked_fill_(unwritten[..., None, None], 0)
        return state | self.current.state(rows, recent)


class CompressedLayerStepper(ChunkedLayerStepper):
    """Stepper of one layer of `NSA`.

    Heads read a compressed form of every chunk. All heads of a row select the same chunks to read in full.
    """

    def read(
        self, inputs: Tensor, own_scores: Tensor, far: Tensor, readable: ReadableChunks | None
    ) -> Tensor:
        """Return the gated sum of three reads: compressed chunks, selected chunks and the current chunk."""
        gates = torch.sigmoid(self.layer.gate(inputs)).view(len(own_scores), 3, self.heads).transpose(0, 1)
        compress, select, window = gates.reshape(3, -1, 1, 1)
        alone = self.current.read(torch.softmax(own_scores, dim=-1))
        if readable is None:
            return (select + window) * alone
        keys, compressed_values = self.summaries.flatten(0, 1)[
            :, self.num_chunks - readable.num_readable :
        ].chunk(2, dim=2)
        scores = torch.bmm(far, keys.mT).view(len(own_scores), self.heads, -1)
        mask = readable.mask
        if mask is None:
            mask = torch.ones(len(own_scores), readable.num_readable, dtype=torch.bool)
        weights = softmax_or_zero(scores.masked_fill(~mask[:, None], -math.inf))
        always = int(self.layer.top_k > 2)
        indices = choose_chunks(
            mask[:, None],
            top_k=self.layer.top_k,
            scores=weights.sum(dim=1)[:, None, None],
            num_sink_chunks=always,
            num_local_chunks=always,
        ).chunks[:, 0]
        scores = torch.zeros(indices.shape, dtype=own_scores.dtype).masked_fill_(indices < 0, -math.inf)
        chosen_read = self.read_selected(own_scores, far, scores, readable.slots[self.rows, indices.numpy()])
        read = torch.bmm(weights.flatten(0, 1)[:, None], compressed_values)
        return compress * read + select * chosen_read + window * alone
