"""The steps of `HCAM`: one store per row that chunks go round in, and the read folded into three matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.select import best
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.stepping.window import Ring, WindowSteps


class HCAMStepper(Stepper):
    """Advances rows of an `HCAM`.

    Args:
        blocks: Its blocks.
        state: The rows, with zeros where nothing was stored.
        chunk_size: Steps per chunk.
    """

    @torch.no_grad()
    def __init__(self, blocks: Iterable[Any], state: dict[str, Tensor], chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.time = state["time"].numpy().copy()
        recent, contents = state["recent_0"], state["contents_0"]
        self.window, self.num_chunks = recent.shape[1], contents.shape[1]
        self.ring = Ring(self.window, state["time"], recent.dtype)
        # Where each row's oldest chunk lies, and the next will.
        self.oldest = torch.zeros_like(state["time"])
        self.blocks = [
            _Block(block, self.ring, part_of(state, suffix=f"_{layer}")) for layer, block in enumerate(blocks)
        ]

    @torch.no_grad()
    def step(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """Return the outputs of one input each."""
        born = None
        if start is not None:
            self.time[start.numpy()] = 0
            born = start.nonzero()[:, 0]
        self.ring.advance(born)
        shelves = self._shelves()
        full = np.flatnonzero(self.time % self.chunk_size == self.chunk_size - 1)
        self.time += 1
        completed = None
        if len(full):
            rows = torch.from_numpy(full)
            completed = _Completed(rows, self.oldest[rows], self.ring.last(self.chunk_size))
        for block in self.blocks:
            x = block.step(x, born, shelves, completed)
        if completed is not None:
            self.oldest[completed.rows] = (completed.slots + 1) % self.num_chunks
        return x

    def _shelves(self) -> _Shelves | None:
        written = self.time // self.chunk_size
        if not written.any():
            return None
        readable = np.arange(self.num_chunks) >= self.num_chunks - written[:, None]
        return _Shelves(torch.from_numpy(readable), torch.from_numpy(readable[:, -1:].copy()), self.oldest)

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        rows = torch.arange(len(self.time)) if rows is None else rows
        time = torch.from_numpy(self.time)[rows]
        chunk, age = torch.arange(self.num_chunks), torch.arange(self.window, 0, -1)
        slots = (self.oldest[rows, None] + chunk) % self.num_chunks
        unwritten = chunk < self.num_chunks - (time // self.chunk_size)[:, None]
        unseen = (age > time[:, None])[..., None]
        state = {"time": time}
        for layer, block in enumerate(self.blocks):
            contents = block.contents[:-1].view(len(self.time), self.num_chunks, self.chunk_size, -1)
            own = {
                "recent": block.local.recent(self.window)[rows].masked_fill_(unseen, 0),
                "contents": contents[rows[:, None], slots].masked_fill_(unwritten[..., None, None], 0),
                "summaries": block.summaries[rows].masked_fill_(unwritten[..., None], 0),
            }
            state |= named(own, suffix=f"_{layer}")
        return state


class _Shelves(NamedTuple):
    """What rows may read."""

    readable: Bool[Tensor, "batch chunks"]
    """Oldest first."""
    some: Bool[Tensor, "batch 1"]
    oldest: Int[Tensor, " batch"]


class _Completed(NamedTuple):
    """Rows whose chunk ends with this step, where it goes, and where its steps lie in the ring."""

    rows: Int[Tensor, " some"]
    slots: Int[Tensor, " some"]
    places: Int[Tensor, " chunk_size"]


class _Block:
    """One block: its rows' ring, chunks and summaries.

    Chunks stay where they were written, rows of slots and one of zeros behind them all; summaries, which are
    small, are kept oldest first, since of equals the earlier is read.
    """

    def __init__(self, block: Any, ring: Ring, state: dict[str, Tensor]) -> None:
        self.local = WindowSteps(block.local, ring, state["recent"])
        contents, self.summaries = state["contents"], state["summaries"].clone()
        batch, self.num_chunks, self.chunk_size, self.dim = contents.shape
        self.contents = contents.new_zeros(batch * self.num_chunks + 1, self.chunk_size, self.dim)
        self.contents[:-1] = contents.flatten(0, 1)
        self.first = torch.arange(batch)[:, None] * self.num_chunks
        self.top_k = min(block.top_k, self.num_chunks)
        self.largest = float(self.summaries.abs().amax()) if self.summaries.numel() else 0.0
        self.local_norm, self.read_norm = block.local_norm, block.read_norm
        self.norm_before, self.inward, _, self.outward = block.feed_forward
        dim, heads = self.dim, block.num_heads
        self.heads, width = heads, dim // heads
        query, key, value = (
            projection.weight.unflatten(0, (heads, width))
            for projection in (block.query, block.key, block.value)
        )
        scale = width**-0.5
        bias = block.query.bias.view(heads, width, 1)
        seen = torch.cat([key.mT @ query, key.mT @ bias], dim=2) * scale
        positions = block.positions.to(seen.dtype)
        coarse = block.summary_key.weight.T @ block.summary_query.weight * dim**-0.5
        self.queries = torch.cat(
            [coarse, seen[..., :dim].flatten(0, 1), (positions @ seen[..., :dim]).flatten(0, 1)]
        )
        self.queries_bias = torch.cat(
            [
                torch.zeros_like(bias[0, 0]).expand(dim),
                seen[..., dim].flatten(),
                (positions @ seen[..., dim:]).flatten(),
            ]
        )
        out = value.mT @ block.out.weight.T.unflatten(0, (heads, width))
        # What is read of contents, then of positions.
        self.out = torch.cat([out.flatten(0, 1), (positions @ out).flatten(0, 1)])
        self.out_bias = block.out.bias

    def step(
        self, x: Tensor, born: Tensor | None, shelves: _Shelves | None, completed: _Completed | None
    ) -> Tensor:
        x = self.local.step(x, self.local_norm(x), born)
        if shelves is not None:
            x = torch.where(shelves.some, self._read(x, shelves), x)
        if completed is not None:
            self._store(completed)
        return x + self.outward(functional.gelu(self.inward(self.norm_before(x))))

    def _read(self, x: Tensor, shelves: _Shelves) -> Tensor:
        batch, dim, heads, steps = len(x), self.dim, self.heads, self.chunk_size
        projected = functional.linear(self.read_norm(x), self.queries, self.queries_bias)
        coarse, query, positions = projected.split([dim, heads * dim, heads * steps], dim=1)
        scores, slots = self._choose(coarse, shelves)
        chosen = self.contents.index_select(0, slots.flatten()).view(batch, -1, dim)
        inside = torch.bmm(query.view(batch, heads, dim), chosen.transpose(1, 2))
        inside = inside.view(batch, heads, -1, steps) + positions.view(batch, heads, 1, steps)
        weights = torch.softmax(inside, dim=-1) * torch.softmax(scores, dim=-1)[:, None, :, None]
        read = torch.bmm(weights.view(batch, heads, -1), chosen).view(batch, -1)
        where = weights.sum(dim=2).view(batch, -1)
        return torch.addmm(x + self.out_bias, torch.cat([read, where], dim=1), self.out)

    def _choose(self, query: Tensor, shelves: _Shelves) -> tuple[Tensor, Tensor]:
        """Return scores and slots of the best chunks, the least score and the slot of zeros for none."""
        least = torch.finfo(query.dtype).min
        scores = torch.bmm(self.summaries, query[:, :, None])[..., 0]
        scores = torch.where(shelves.readable, scores, least)
        if self.top_k == self.num_chunks:
            values, chunks = scores, torch.arange(self.num_chunks).expand_as(scores)
        else:
            values, chunks = scores.topk(self.top_k + 1, dim=1)
            values, chunks, gap = values[:, :-1], chunks[:, :-1], values[:, -2] - values[:, -1]
            # A product may round scores of equal summaries differently; of equals the earlier is kept.
            rounding = 2 * self.dim * torch.finfo(query.dtype).eps * self.largest
            close = (gap <= query.abs().sum(dim=1) * rounding) & (values[:, -1] > least)
            if close.any():
                exact = (self.summaries * query[:, None]).sum(dim=-1)
                exact = torch.where(shelves.readable, exact, least).nan_to_num(nan=least)
                chunks = torch.where(close[:, None], best(exact, self.top_k), chunks)
                values = scores.gather(1, chunks)
        slots = (shelves.oldest[:, None] + chunks) % self.num_chunks + self.first
        return values, slots.masked_fill_(values == least, len(self.contents) - 1)

    def _store(self, completed: _Completed) -> None:
        rows, slots, places = completed
        chunk = self.local.held[rows[:, None], places]
        summary = chunk.mean(dim=1)
        self.contents.index_copy_(0, self.first[rows, 0] + slots, chunk)
        self.summaries[rows] = torch.cat([self.summaries[rows, 1:], summary[:, None]], dim=1)
        self.largest = max(self.largest, float(summary.abs().amax()))
