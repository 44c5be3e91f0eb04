"""Stepper of `HCAM`: a ring buffer of chunks per row, and read projections folded into two matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.select import best
from scrubjay.memory.contract.nested import add_affixes, select_part
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.incremental.ring_buffer import ChunkRingBuffer, ReadableChunks
from scrubjay.memory.incremental.window import WindowRingBuffer, WindowStepper

# Largest number of products with summaries for which numpy is faster than torch.
_FEW_SCALARS = 1 << 13


class HCAMStepper(Stepper):
    """Incremental inference of an `HCAM`: one step per call, with the state updated in place.

    Args:
        blocks: Blocks of the memory.
        state: Initial state, with zeros in unwritten slots.
        chunk_size: Steps per chunk.
    """

    @torch.no_grad()
    def __init__(self, blocks: Iterable[Any], state: dict[str, Tensor], chunk_size: int) -> None:
        recent, contents = state["recent_0"], state["contents_0"]
        self.window = recent.shape[1]
        self.chunk_ring = ChunkRingBuffer(state["time"], chunk_size, contents.shape[1])
        self.ring = WindowRingBuffer(self.window, state["time"], recent.dtype)
        self.blocks = [
            _HCAMBlockStepper(block, self.ring, select_part(state, suffix=f"_{layer}"))
            for layer, block in enumerate(blocks)
        ]

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the output of one step of every row."""
        starts = self.chunk_ring.reset(start)
        self.ring.advance(starts)
        readable, completed_chunks = self.chunk_ring.advance()
        new_chunks = None
        if completed_chunks is not None:
            new_chunks = _CompletedHCAMChunks(
                completed_chunks.rows,
                completed_chunks.slots,
                self.ring.recent_slots(self.chunk_ring.chunk_size),
            )
        for block in self.blocks:
            x = block.step(x, starts, readable, new_chunks)
        if completed_chunks is not None:
            self.chunk_ring.commit(completed_chunks)
        return x

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of `rows`, by default of all rows."""
        all_times = torch.from_numpy(self.chunk_ring.time)
        rows = torch.arange(len(all_times)) if rows is None else rows
        time = all_times[rows]
        slots, unwritten = self.chunk_ring.slots(rows), self.chunk_ring.empty_slots(time)
        is_empty = (torch.arange(self.window, 0, -1) > time[:, None])[..., None]
        state = {"time": time}
        for layer, block in enumerate(self.blocks):
            contents = block.contents[:-1].unflatten(0, (len(all_times), -1))
            own = {
                "recent": block.local.recent(self.window)[rows].masked_fill_(is_empty, 0),
                "contents": contents[rows[:, None], slots].masked_fill_(unwritten[..., None, None], 0),
                "summaries": block.summaries[rows].masked_fill_(unwritten[..., None], 0),
            }
            state |= add_affixes(own, suffix=f"_{layer}")
        return state


class _CompletedHCAMChunks(NamedTuple):
    """Rows whose chunk ends at a step, the slots for these chunks, and the window slots of their steps."""

    rows: Int[Tensor, " some"]
    slots: Int[Tensor, " some"]
    ring_slots: Int[Tensor, " chunk_size"]


class _HCAMBlockStepper:
    """Stepper of one block: window, chunks and summaries of all rows.

    A chunk stays in its slot after it is written. If a row has too few readable chunks, each
    missing chunk is replaced by a slot of zeros. Summaries are small, so they are moved at every write to
    stay sorted oldest first. In this order, the earlier of two chunks with equal scores is selected.
    """

    def __init__(self, block: Any, ring: WindowRingBuffer, state: dict[str, Tensor]) -> None:
        self.local = WindowStepper(block.local, ring, state["recent"])
        self.bottleneck = block.bottleneck
        contents, self.summaries = state["contents"], state["summaries"].clone()
        batch, self.num_chunks, self.chunk_size, self.dim = contents.shape
        self.contents = contents.new_zeros(batch * self.num_chunks + 1, self.chunk_size, self.dim)
        self.contents[:-1] = contents.flatten(0, 1)
        self.first = np.arange(batch)[:, None] * self.num_chunks
        self.top_k = min(block.top_k, self.num_chunks)
        self.largest = float(self.summaries.nan_to_num(0.0).abs().amax()) if self.summaries.numel() else 0.0
        self.local_norm, self.read_norm = _norm(block.local_norm), _norm(block.read_norm)
        norm, self.inward, _, self.outward = block.feed_forward
        self.norm_before = _norm(norm)
        dim, heads = self.dim, block.num_heads
        self.heads, width = heads, dim // heads
        query, key, value = (
            projection.weight.unflatten(0, (heads, width))
            for projection in (block.query, block.key, block.value)
        )
        scale = width**-0.5
        bias = block.query.bias.view(heads, width, 1)
        folded_keys = torch.cat([key.mT @ query, key.mT @ bias], dim=2) * scale
        positions = block.positions.to(folded_keys.dtype)
        coarse = block.summary_key.weight.T @ block.summary_query.weight * dim**-0.5
        self.queries = torch.cat(
            [coarse, folded_keys[..., :dim].flatten(0, 1), (positions @ folded_keys[..., :dim]).flatten(0, 1)]
        )
        self.queries_bias = torch.cat(
            [
                torch.zeros_like(coarse[0]),
                folded_keys[..., dim].flatten(),
                (positions @ folded_keys[..., dim:]).flatten(),
            ]
        )
        out = value.mT @ block.out.weight.T.unflatten(0, (heads, width))
        # Output weights of the content read-out, then of the position read-out.
        self.out = torch.cat([out.flatten(0, 1), (positions @ out).flatten(0, 1)])
        self.out_bias = block.out.bias

    def step(
        self,
        x: Tensor,
        starts: Tensor | None,
        readable: ReadableChunks | None,
        new_chunks: _CompletedHCAMChunks | None,
    ) -> Tensor:
        x = self.local.step(x, self.local_norm(x), starts)
        query_input, x = x, torch.zeros_like(x) if self.bottleneck else x
        if readable is not None:
            read = self._read(query_input, x, readable)
            x = read if readable.any_readable is None else torch.where(readable.any_readable, read, x)
        if new_chunks is not None:
            self._store(new_chunks)
        inward, outward = self.inward, self.outward
        hidden = functional.gelu(functional.linear(self.norm_before(x), inward.weight, inward.bias))
        return x + functional.linear(hidden, outward.weight, outward.bias)

    def _read(self, query_input: Tensor, x: Tensor, readable: ReadableChunks) -> Tensor:
        """Return `x` plus the output of attention to stored chunks, with queries from `query_input`."""
        batch, dim, heads, steps = len(x), self.dim, self.heads, self.chunk_size
        projections = functional.linear(self.read_norm(query_input), self.queries, self.queries_bias)
        query = projections[:, dim : dim + heads * dim].view(batch, heads, dim)
        positions = projections[:, dim + heads * dim :].view(batch, heads, 1, steps)
        scores, slots = self._choose(projections[:, :dim], readable)
        chosen_steps = self.contents.index_select(0, slots.flatten()).view(batch, -1, dim)
        inside = torch.bmm(query, chosen_steps.mT).view(batch, heads, -1, steps) + positions
        weights = torch.softmax(inside, dim=-1).mul_(torch.softmax(scores, dim=-1)[:, None, :, None])
        read = torch.bmm(weights.view(batch, heads, -1), chosen_steps).view(batch, -1)
        where = weights.sum(dim=2).view(batch, -1)
        return torch.addmm(x + self.out_bias, torch.cat([read, where], dim=1), self.out)

    def _choose(self, query: Tensor, readable: ReadableChunks) -> tuple[Tensor, Tensor]:
        """Return the scores and slots of the best chunks.

        If a row has too few readable chunks, the remaining results are padding. The score of padding is the
        most negative finite number. Its slot is the last slot of `contents`, which holds zeros.
        """
        least = torch.finfo(query.dtype).min
        before = self.num_chunks - readable.num_readable
        if readable.num_readable > self.top_k and query.numel() * readable.num_readable <= _FEW_SCALARS:
            exact = self._score_exactly(query, readable, slice(None), least)
            chunks = np.argsort(-_rank_nan_first(exact), axis=1, kind="stable")[:, : self.top_k]
            values = torch.from_numpy(np.take_along_axis(exact, chunks, axis=1))
        else:
            # A row-matrix product is ten times as fast as a matrix-column product.
            scores = torch.bmm(query[:, None], self.summaries[:, before:].mT)[:, 0]
            if readable.mask is not None:
                scores = torch.where(readable.mask, scores, least)
            if readable.num_readable <= self.top_k:
                values, chunks = scores, np.arange(readable.num_readable)[None]
            else:
                values, chunks = self._best(query, scores, readable, least)
        # numpy is faster for so few numbers.
        slots = (readable.oldest_slot[:, None] + (before + chunks)) % self.num_chunks + self.first
        if readable.mask is not None:
            slots[values.numpy() == least] = len(self.contents) - 1
        return values, torch.from_numpy(slots)

    def _best(
        self, query: Tensor, scores: Tensor, readable: ReadableChunks, least: float
    ) -> tuple[Tensor, Int[np.ndarray, "batch top_k"]]:
        values, columns = scores.topk(self.top_k + 1, dim=1)
        top_values, chunks, query_values = values.numpy(), columns.numpy()[:, :-1], query.numpy()
        # A product may round scores of equal summaries differently; the earlier of equal ones must be
        # selected.
        rounding = 2 * self.dim * torch.finfo(query.dtype).eps * self.largest
        with np.errstate(over="ignore", invalid="ignore"):
            near = top_values[:, -2] - top_values[:, -1] <= np.abs(query_values).sum(axis=1) * rounding
            close = np.flatnonzero(near & (top_values[:, -1] > least))
            if len(close) == 0:
                return values[:, :-1], chunks
        chunks = chunks.copy()
        exact = _rank_nan_first(self._score_exactly(query, readable, close, least))
        chunks[close] = best(torch.from_numpy(exact), self.top_k)
        return scores.gather(1, torch.from_numpy(chunks)), chunks

    def _score_exactly(
        self, query: Tensor, readable: ReadableChunks, rows: Any, least: float
    ) -> Float[np.ndarray, "rows num_readable"]:
        """Return scores of summaries, rounded such that equal summaries have equal scores."""
        with np.errstate(over="ignore", invalid="ignore"):
            products = self.summaries.numpy()[rows, -readable.num_readable :] * query.numpy()[rows, None]
            exact = products.sum(axis=-1)
        if readable.mask is None:
            return exact
        return np.where(readable.mask.numpy()[rows], exact, exact.dtype.type(least))

    def _store(self, new_chunks: _CompletedHCAMChunks) -> None:
        rows, slots, ring_slots = new_chunks
        chunk = self.local.inputs[rows[:, None], ring_slots]
        summary = chunk.mean(dim=1)
        self.contents.index_copy_(0, rows * self.num_chunks + slots, chunk)
        self.summaries[rows] = torch.cat([self.summaries[rows, 1:], summary[:, None]], dim=1)
        self.largest = max(self.largest, float(summary.abs().amax()))


def _rank_nan_first(scores: Float[np.ndarray, "rows num_readable"]) -> Float[np.ndarray, "rows num_readable"]:
    """Return `scores` with NaN replaced by infinity, so that chunks with NaN scores are selected."""
    return np.where(np.isnan(scores), scores.dtype.type(np.inf), scores)


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """Return a function that computes the layer norm without the overhead of a module call."""
    shape, weight, bias, eps = list(module.normalized_shape), module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
