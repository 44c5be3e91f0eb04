"""The steps of memories of chosen chunks: chunks go round in a store per row, keys and values by head.

A row's own chunk lies by its places, so that it needs no moving to be stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels import choose_chunks
from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.kernels.select import best
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.stepping.own import Last, OwnChunk, Place, Places
from scrubjay.memory.stepping.shelves import Full, Librarian, Shelves


class ChunkedStepper(Stepper):
    """Advances rows of a `ChunkedMemory`.

    Args:
        layers: Its layers.
        state: The rows, with zeros where nothing was stored.
        chunk_size: Steps per chunk.
        landmarks: Returns what runs through the layers for so many rows and chunks of them that are complete.
        steps: Takes the steps of a layer.
    """

    @torch.no_grad()
    def __init__(
        self,
        layers: Iterable[Any],
        state: dict[str, Tensor],
        chunk_size: int,
        landmarks: Callable[[int, int], Tensor | None],
        steps: type[LayerSteps],
    ) -> None:
        self.chunk_size, self.landmarks = chunk_size, landmarks
        self.librarian = Librarian(state["time"], chunk_size, state["keys_0"].shape[1])
        self.layers = [
            steps(layer, part_of(state, suffix=f"_{index}"), state["time"])
            for index, layer in enumerate(layers)
        ]
        self.places = Places(self.layers[0].layer)

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the outputs of one input each."""
        born = self.librarian.begin(start)
        at = self.places.of(self.librarian.time)
        shelves, full = self.librarian.advance()
        landmarks = None if full is None else self.landmarks(len(full.rows), 1)
        for layer in self.layers:
            x = layer.step(x, at, shelves, born)
            if full is not None:
                landmarks = layer.store(full, landmarks)
        if full is not None:
            self.librarian.put_away(full)
        return x

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        everywhere = torch.from_numpy(self.librarian.time)
        rows = torch.arange(len(everywhere)) if rows is None else rows
        time = everywhere[rows]
        slots, unwritten = self.librarian.slots(rows), self.librarian.unwritten(time)
        last, state = Last.at(time, self.chunk_size), {"time": time}
        for index, layer in enumerate(self.layers):
            state |= named(layer.state(rows, slots, unwritten, last), suffix=f"_{index}")
        return state


class _Far(NamedTuple):
    """Chunks that units of a row choose, of heads or of all heads alike."""

    scores: Float[Tensor, "batch units K"]
    """-inf for none."""
    slots: Int[Tensor, "batch units K"]
    """Of rows of slots, and one of zeros behind them all."""


class LayerSteps:
    """One layer: its rows' own chunks, stored chunks and summaries.

    Chunks stay where they were written; summaries, which are small, are kept oldest first, since of equals
    the earlier is read.
    """

    def __init__(self, layer: Any, state: dict[str, Tensor], time: Int[Tensor, " batch"]) -> None:
        self.layer, self.own = layer, OwnChunk(layer, state, time)
        self.heads, self.width = self.own.heads, self.own.width
        batch, self.num_chunks, self.chunk_size, _ = state["keys"].shape
        self.top_k = min(layer.top_k, self.num_chunks)
        self.first = torch.arange(batch)[:, None, None] * self.num_chunks
        self.stored = []
        for name in ("keys", "values"):
            shape = (batch * self.num_chunks + 1, self.heads, self.chunk_size, self.width)
            store = state[name].new_zeros(shape)
            store[:-1] = self.own.by_head(state[name].flatten(0, 1))
            self.stored.append(store)
        # A copy, whatever its order: with one head or one chunk it would be contiguous, and the state's own.
        self.summaries = self.own.by_head(state["summaries"]).clone(memory_format=torch.contiguous_format)

    def step(self, x: Tensor, at: Place, shelves: Shelves | None, born: Tensor | None) -> Tensor:
        """Return what comes out of the layer."""
        layer = self.layer
        if born is not None:
            # Nothing is left of what was before, lest a weight of zero meet what is not finite.
            self.own.forget(born)
            self.summaries.index_fill_(0, born, 0)
        normed = layer.norm(x)
        query, own = self.own.take(normed, at, turns=2)
        read = self.read(normed, own, query[:, 1:], shelves)
        x = x + layer.out(read.view(len(x), -1))
        return x + layer.feed_forward(x)

    def read(
        self,
        normed: Float[Tensor, "batch dim"],
        own: Float[Tensor, "batch heads chunk_size"],
        far: Float[Tensor, "units 1 width"],
        shelves: Shelves | None,
    ) -> Float[Tensor, "units 1 width"]:
        """Return what heads read in all.

        Args:
            normed: The layer's normed input.
            own: Scores of the steps of the own chunk.
            far: What asks stored chunks, scaled.
            shelves: What may be read of them.
        """
        if shelves is None:
            return self.own.read(torch.softmax(own, dim=-1))
        scores = torch.bmm(far, self.summaries.flatten(0, 1)[:, self.num_chunks - shelves.most :].mT)
        scores = scores.view(len(own), self.heads, -1)
        if shelves.readable is not None:
            scores = scores.masked_fill(~shelves.readable[:, None], -math.inf)
        if shelves.most > self.top_k:
            # What is no number is the best of all, and read.
            chunks = best(
                torch.nan_to_num(scores, nan=math.inf, posinf=math.inf, neginf=-math.inf), self.top_k
            )
            scores = scores.gather(2, chunks)
        else:
            chunks = torch.arange(shelves.most)[None, None]
        return self.read_chosen(own, far, self._named(scores, chunks, shelves))

    def _named(
        self, scores: Float[Tensor, "batch units K"], chunks: Int[Tensor, "#batch #units K"], shelves: Shelves
    ) -> _Far:
        """Return where the chunks lie whose places on the shelves are given."""
        place = chunks + (self.num_chunks - shelves.most)
        slots = (torch.from_numpy(shelves.oldest)[:, None, None] + place) % self.num_chunks + self.first
        return _Far(scores, slots.masked_fill(scores == -math.inf, self.stored[0].shape[0] - 1))

    def read_chosen(self, own: Tensor, far: Tensor, chosen: _Far) -> Tensor:
        """Return what heads read of their own chunks and of those that are chosen."""
        batch, steps = len(own), own.shape[2]
        rows = (chosen.slots * self.heads + torch.arange(self.heads)[:, None]).flatten()
        chosen_keys, chosen_values = (
            store.flatten(0, 1).index_select(0, rows).view(batch * self.heads, -1, self.width)
            for store in self.stored
        )
        within = torch.bmm(far, chosen_keys.mT).view(batch, self.heads, -1, self.chunk_size)
        scores = chosen.scores[..., None]
        if self.layer.combine == "hierarchical":
            within = torch.log_softmax(within, dim=-1) + scores
        else:
            within = within.masked_fill(scores == -math.inf, -math.inf)
        weights = torch.softmax(torch.cat([own, within.flatten(2)], dim=2), dim=2)
        stored = weights[..., steps:].flatten(0, 1)[:, None]
        return torch.baddbmm(self.own.read(weights[..., :steps]), stored, chosen_values)

    def store(self, full: Full, landmarks: Tensor | None) -> Tensor | None:
        """Put away the chunks that this step completes; return what the layer makes of their landmarks."""
        rows, slots = full
        chunks = [own[rows] for own in (self.own.keys, self.own.values)]
        for store, chunk in zip(self.stored, chunks, strict=True):
            store.index_copy_(0, rows * self.num_chunks + slots, chunk)
        keys, values = (chunk.transpose(1, 2)[:, None] for chunk in chunks)
        summaries, landmarks = self.layer.summarise(keys, values, landmarks)
        self.summaries[rows] = torch.cat([self.summaries[rows, :, 1:], summaries.transpose(1, 2)], dim=2)
        return landmarks

    def state(self, rows: Tensor, slots: Tensor, unwritten: Tensor, last: Last) -> dict[str, Tensor]:
        """Return the state of rows.

        Args:
            rows: Which.
            slots: Where their chunks lie, oldest first.
            unwritten: Which of these there are not.
            last: Where the last steps of these rows are.
        """
        summaries = self.summaries[rows].transpose(1, 2).flatten(2)
        state = {"summaries": summaries.masked_fill_(unwritten[..., None], 0)}
        for name, store in zip(("keys", "values"), self.stored, strict=True):
            chunks = store[rows[:, None] * self.num_chunks + slots].transpose(2, 3).flatten(3)
            state[name] = chunks.masked_fill_(unwritten[..., None, None], 0)
        return state | self.own.state(rows, last)


class CompressedSteps(LayerSteps):
    """One layer of `NSA`: heads read all chunks compressed, and together choose those that they read."""

    def read(self, normed: Tensor, own: Tensor, far: Tensor, shelves: Shelves | None) -> Tensor:
        """Return what comes through the gates of all streams."""
        gates = torch.sigmoid(self.layer.gate(normed)).view(len(own), 3, self.heads).transpose(0, 1)
        compress, select, window = gates.reshape(3, -1, 1, 1)
        alone = self.own.read(torch.softmax(own, dim=-1))
        if shelves is None:
            return (select + window) * alone
        keys, compressed = self.summaries.flatten(0, 1)[:, self.num_chunks - shelves.most :].chunk(2, dim=2)
        scores = torch.bmm(far, keys.mT).view(len(own), self.heads, -1)
        readable = shelves.readable
        if readable is None:
            readable = torch.ones(len(own), shelves.most, dtype=torch.bool)
        weights = softmax_or_zero(scores.masked_fill(~readable[:, None], -math.inf))
        always = int(self.layer.top_k > 2)
        chosen = choose_chunks(
            readable[:, None],
            top_k=self.layer.top_k,
            scores=weights.sum(dim=1)[:, None, None],
            num_sink_chunks=always,
            num_local_chunks=always,
        ).chunks[:, 0]
        there = (chosen >= 0) & (chosen < shelves.most)
        scores = torch.zeros(chosen.shape, dtype=own.dtype).masked_fill_(~there, -math.inf)
        selected = self.read_chosen(own, far, self._named(scores, chosen.clamp(0, shelves.most - 1), shelves))
        read = torch.bmm(weights.flatten(0, 1)[:, None], compressed)
        return compress * read + select * selected + window * alone
