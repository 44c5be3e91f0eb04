"""The steps of memories of chosen chunks: chunks go round in a store per row, keys and values by head.

A row's own chunk is written by its places, so that it needs no moving to be stored; behind the present place
lies what is left of the chunk before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels import choose_chunks
from scrubjay.kernels.select import best
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.parts.rotary import across
from scrubjay.memory.stepping.shelves import Full, Librarian, Shelves


class ChunkedStepper(Stepper):
    """Advances rows of a `ChunkedMemory`.

    Args:
        layers: Its layers.
        state: The rows, with zeros where nothing was stored.
        chunk_size: Steps per chunk.
        landmarks: Returns what runs through the layers for so many rows and chunks of them that are complete.
        steps: Makes the steps of a layer; by default those that choose by their summaries alone.
    """

    @torch.no_grad()
    def __init__(
        self,
        layers: Sequence[Any],
        state: dict[str, Tensor],
        chunk_size: int,
        landmarks: Callable[[int, int], Tensor | None],
        steps: type[LayerSteps] | None = None,
    ) -> None:
        steps = LayerSteps if steps is None else steps
        self.chunk_size, self.landmarks = chunk_size, landmarks
        self.librarian = Librarian(state["time"], chunk_size, state["keys_0"].shape[1])
        self.layers = [
            steps(layer, part_of(state, suffix=f"_{index}"), state["time"])
            for index, layer in enumerate(layers)
        ]
        # Of a place, and of a chunk more: who asks stored chunks is turned twice.
        (cos, once_more), (sin, more) = (
            part[:, None].split(chunk_size) for part in (layers[0].cos, layers[0].sin)
        )
        self.cos = torch.cat([cos, cos * once_more - sin * more], dim=1)
        self.sin = torch.cat([sin, sin * once_more + cos * more], dim=1)
        place = torch.arange(chunk_size)
        self.later = torch.zeros(chunk_size, chunk_size, dtype=self.cos.dtype)
        self.later.masked_fill_(place > place[:, None], -math.inf)

    @torch.no_grad()
    def step(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """Return the outputs of one input each."""
        born = self.librarian.begin(start)
        place = torch.from_numpy(self.librarian.time % self.chunk_size)
        shelves, full = self.librarian.advance()
        at = _Moment(place, self.cos[place], self.sin[place], self.later[place][:, None], shelves, born)
        landmarks = None if full is None else self.landmarks(len(full.rows), 1)
        for layer in self.layers:
            x = layer.step(x, at)
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
        unseen = torch.arange(self.chunk_size, 0, -1) > time[:, None]
        last = (time[:, None] + torch.arange(self.chunk_size)) % self.chunk_size
        state = {"time": time}
        for index, layer in enumerate(self.layers):
            state |= named(layer.state(rows, slots, unwritten, last, unseen), suffix=f"_{index}")
        return state


class _Moment(NamedTuple):
    """What all layers see of a step's time."""

    place: Int[Tensor, " batch"]
    """Of each row's step in its chunk."""
    cos: Float[Tensor, "batch 2 1 width"]
    """Of its place, and of a chunk more."""
    sin: Float[Tensor, "batch 2 1 width"]
    later: Float[Tensor, "batch 1 chunk_size"]
    """What is added to scores of the own chunk: -inf from the next place on."""
    shelves: Shelves | None
    born: Int[Tensor, " born"] | None


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
        self.layer, self.heads, self.chunk_size = layer, layer.heads, layer.chunk_size
        batch, self.num_chunks, _, dim = state["keys"].shape
        self.top_k, self.width = min(layer.top_k, self.num_chunks), dim // self.heads
        self.first = torch.arange(batch)[:, None, None] * self.num_chunks
        self.own_row = torch.arange(batch * self.heads).view(batch, self.heads) * self.chunk_size
        # The state holds the last steps oldest first, a step of place p at p here.
        back = (torch.arange(self.chunk_size) - time[:, None]) % self.chunk_size
        self.own, self.stored = [], []
        for name in ("keys", "values"):
            recent = state[f"recent_{name}"].gather(1, back[..., None].expand(-1, -1, dim))
            self.own.append(self._by_head(recent).contiguous())
            store = state[name].new_zeros(
                batch * self.num_chunks + 1, self.heads, self.chunk_size, self.width
            )
            store[:-1] = self._by_head(state[name].flatten(0, 1))
            self.stored.append(store)
        # A copy, whatever its order: with one head or one chunk it would be contiguous, and the state's own.
        self.summaries = self._by_head(state["summaries"]).clone(memory_format=torch.contiguous_format)
        self.scale = self.width**-0.5
        by_head = [
            part.weight.unflatten(0, (self.heads, -1)) for part in (layer.query, layer.key, layer.value)
        ]
        turned = self.width // 2 * 2
        by_head = [by_head[0] * self.scale, *by_head[1:]]
        self.projections = torch.cat(
            [part.flatten(0, 1) for part in (*by_head, *(across(part, turned) for part in by_head[:2]))]
        )

    def _by_head(self, x: Tensor) -> Float[Tensor, "batch heads items width"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def step(self, x: Tensor, at: _Moment) -> Tensor:
        """Return what comes out of the layer."""
        layer, batch = self.layer, len(x)
        if at.born is not None:
            self._forget(at.born)
        normed = layer.norm(x)
        parts = functional.linear(normed, self.projections).view(batch, 5, self.heads, self.width)
        query = parts[:, :1] * at.cos + parts[:, 3:4] * at.sin
        key = parts[:, 1] * at.cos[:, 0] + parts[:, 4] * at.sin[:, 0]
        where = (self.own_row + at.place[:, None]).flatten()
        for own, new in zip(self.own, (key, parts[:, 2]), strict=True):
            own.view(-1, self.width).index_copy_(0, where, new.reshape(-1, self.width))
        near, far = (part.reshape(-1, 1, self.width) for part in query.unbind(1))
        keys, values = (own.flatten(0, 1) for own in self.own)
        own = torch.bmm(near, keys.mT).view(batch, self.heads, -1) + at.later
        read = self.read(normed, own, values, far, at.shelves)
        x = x + layer.out(read.view(batch, -1))
        return x + layer.feed_forward(x)

    def read(
        self,
        normed: Float[Tensor, "batch dim"],
        own: Float[Tensor, "batch heads chunk_size"],
        values: Float[Tensor, "units chunk_size width"],
        far: Float[Tensor, "units 1 width"],
        shelves: Shelves | None,
    ) -> Float[Tensor, "units 1 width"]:
        """Return what heads read in all.

        Args:
            normed: The layer's normed input.
            own: Scores of the steps of the own chunk.
            values: Of these.
            far: What asks stored chunks, scaled.
            shelves: What may be read of them.
        """
        if shelves is None:
            return torch.bmm(self._weights(own), values)
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
        return self.read_chosen(own, values, far, self._named(scores, chunks, shelves))

    def _named(
        self, scores: Float[Tensor, "batch units K"], chunks: Int[Tensor, "#batch #units K"], shelves: Shelves
    ) -> _Far:
        """Return where the chunks lie whose places on the shelves are given."""
        place = chunks + (self.num_chunks - shelves.most)
        slots = (torch.from_numpy(shelves.oldest)[:, None, None] + place) % self.num_chunks + self.first
        return _Far(scores, slots.masked_fill(scores == -math.inf, self.stored[0].shape[0] - 1))

    def read_chosen(self, own: Tensor, values: Tensor, far: Tensor, chosen: _Far) -> Tensor:
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
        weights = self._weights(torch.cat([own, within.flatten(2)], dim=2))
        return torch.baddbmm(torch.bmm(weights[..., :steps], values), weights[..., steps:], chosen_values)

    def _weights(self, scores: Float[Tensor, "batch heads items"]) -> Float[Tensor, "units 1 items"]:
        return torch.softmax(scores, dim=-1).flatten(0, 1)[:, None]

    def store(self, full: Full, landmarks: Tensor | None) -> Tensor | None:
        """Put away the chunks that this step completes; return what the layer makes of their landmarks."""
        rows, slots = full
        chunks = [own[rows] for own in self.own]
        for store, chunk in zip(self.stored, chunks, strict=True):
            store.index_copy_(0, rows * self.num_chunks + slots, chunk)
        keys, values = (chunk.transpose(1, 2)[:, None] for chunk in chunks)
        summaries, landmarks = self.layer.summarise(keys, values, landmarks)
        self.summaries[rows] = torch.cat([self.summaries[rows, :, 1:], summaries.transpose(1, 2)], dim=2)
        return landmarks

    def _forget(self, rows: Int[Tensor, " some"]) -> None:
        """Leave nothing of these rows, lest a weight of zero meet what is not finite."""
        for held in (*self.own, self.summaries):
            held.index_fill_(0, rows, 0)

    def state(
        self, rows: Tensor, slots: Tensor, unwritten: Tensor, last: Tensor, unseen: Tensor
    ) -> dict[str, Tensor]:
        """Return the state of rows.

        Args:
            rows: Which.
            slots: Where their chunks lie, oldest first.
            unwritten: Which of these there are not.
            last: Places of their last steps, oldest first.
            unseen: Which of these there have not been.
        """
        state = {"summaries": self.summaries[rows].transpose(1, 2).flatten(2)}
        state["summaries"].masked_fill_(unwritten[..., None], 0)
        for name, own, store in zip(("keys", "values"), self.own, self.stored, strict=True):
            chunks = store[rows[:, None] * self.num_chunks + slots].transpose(2, 3).flatten(3)
            state[name] = chunks.masked_fill(unwritten[..., None, None], 0)
            steps = own.transpose(1, 2).flatten(2)[rows[:, None], last]
            state[f"recent_{name}"] = steps.masked_fill(unseen[..., None], 0)
        return state


class CompressedSteps(LayerSteps):
    """One layer of `NSA`: heads read all chunks compressed, and together choose those that they read."""

    def read(
        self, normed: Tensor, own: Tensor, values: Tensor, far: Tensor, shelves: Shelves | None
    ) -> Tensor:
        """Return what comes through the gates of all streams."""
        gates = torch.sigmoid(self.layer.gate(normed)).view(len(own), 3, self.heads).transpose(0, 1)
        compress, select, window = gates.reshape(3, -1, 1, 1)
        alone = torch.bmm(self._weights(own), values)
        if shelves is None:
            return (select + window) * alone
        keys, compressed = self.summaries.flatten(0, 1)[:, self.num_chunks - shelves.most :].chunk(2, dim=2)
        scores = torch.bmm(far, keys.mT).view(len(own), self.heads, -1)
        if shelves.readable is not None:
            # Of a row that may read none, none is weighed.
            least = torch.finfo(scores.dtype).min
            scores = scores.masked_fill(~shelves.readable[:, None], least)
            weights = torch.softmax(scores, dim=-1).masked_fill(~shelves.readable[:, None], 0)
        else:
            weights = torch.softmax(scores, dim=-1)
        always = int(self.layer.top_k > 2)
        readable = shelves.readable
        if readable is None:
            readable = torch.ones(len(own), shelves.most, dtype=torch.bool)
        chosen = choose_chunks(
            readable[:, None],
            top_k=self.layer.top_k,
            scores=weights.sum(dim=1)[:, None, None],
            num_sink_chunks=always,
            num_local_chunks=always,
        ).chunks[:, 0]
        there = (chosen >= 0) & (chosen < shelves.most)
        scores = torch.zeros(chosen.shape, dtype=own.dtype).masked_fill_(~there, -math.inf)
        selected = self.read_chosen(
            own, values, far, self._named(scores, chosen.clamp(0, shelves.most - 1), shelves)
        )
        read = torch.bmm(weights.flatten(0, 1)[:, None], compressed)
        return compress * read + select * selected + window * alone
