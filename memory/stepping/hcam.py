"""The steps of `HCAM`: one store per row that chunks go round in, and the read folded into three matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.select import best
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.stepping.shelves import Librarian, Shelves
from scrubjay.memory.stepping.window import Ring, WindowSteps

# Products with summaries up to which numpy is quicker than torch.
_FEW_SCALARS = 1 << 13


class HCAMStepper(Stepper):
    """Advances rows of an `HCAM`.

    Args:
        blocks: Its blocks.
        state: The rows, with zeros where nothing was stored.
        chunk_size: Steps per chunk.
    """

    @torch.no_grad()
    def __init__(self, blocks: Iterable[Any], state: dict[str, Tensor], chunk_size: int) -> None:
        recent, contents = state["recent_0"], state["contents_0"]
        self.window = recent.shape[1]
        self.librarian = Librarian(state["time"], chunk_size, contents.shape[1])
        self.ring = Ring(self.window, state["time"], recent.dtype)
        self.blocks = [
            _Block(block, self.ring, part_of(state, suffix=f"_{layer}")) for layer, block in enumerate(blocks)
        ]

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the outputs of one input each."""
        born = self.librarian.begin(start)
        self.ring.advance(born)
        shelves, full = self.librarian.advance()
        completed = None
        if full is not None:
            completed = _Completed(full.rows, full.slots, self.ring.last(self.librarian.chunk_size))
        for block in self.blocks:
            x = block.step(x, born, shelves, completed)
        if full is not None:
            self.librarian.put_away(full)
        return x

    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        everywhere = torch.from_numpy(self.librarian.time)
        rows = torch.arange(len(everywhere)) if rows is None else rows
        time = everywhere[rows]
        slots, unwritten = self.librarian.slots(rows), self.librarian.unwritten(time)
        unseen = (torch.arange(self.window, 0, -1) > time[:, None])[..., None]
        state = {"time": time}
        for layer, block in enumerate(self.blocks):
            contents = block.contents[:-1].unflatten(0, (len(everywhere), -1))
            own = {
                "recent": block.local.recent(self.window)[rows].masked_fill_(unseen, 0),
                "contents": contents[rows[:, None], slots].masked_fill_(unwritten[..., None, None], 0),
                "summaries": block.summaries[rows].masked_fill_(unwritten[..., None], 0),
            }
            state |= named(own, suffix=f"_{layer}")
        return state


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
        seen = torch.cat([key.mT @ query, key.mT @ bias], dim=2) * scale
        positions = block.positions.to(seen.dtype)
        coarse = block.summary_key.weight.T @ block.summary_query.weight * dim**-0.5
        self.queries = torch.cat(
            [coarse, seen[..., :dim].flatten(0, 1), (positions @ seen[..., :dim]).flatten(0, 1)]
        )
        self.queries_bias = torch.cat(
            [torch.zeros_like(coarse[0]), seen[..., dim].flatten(), (positions @ seen[..., dim:]).flatten()]
        )
        out = value.mT @ block.out.weight.T.unflatten(0, (heads, width))
        # What is read of contents, then of positions.
        self.out = torch.cat([out.flatten(0, 1), (positions @ out).flatten(0, 1)])
        self.out_bias = block.out.bias

    def step(
        self, x: Tensor, born: Tensor | None, shelves: Shelves | None, completed: _Completed | None
    ) -> Tensor:
        x = self.local.step(x, self.local_norm(x), born)
        asking, x = x, torch.zeros_like(x) if self.bottleneck else x
        if shelves is not None:
            read = self._read(asking, x, shelves)
            x = read if shelves.some is None else torch.where(shelves.some, read, x)
        if completed is not None:
            self._store(completed)
        inward, outward = self.inward, self.outward
        hidden = functional.gelu(functional.linear(self.norm_before(x), inward.weight, inward.bias))
        return x + functional.linear(hidden, outward.weight, outward.bias)

    def _read(self, asking: Tensor, x: Tensor, shelves: Shelves) -> Tensor:
        """Return `x` and what is read by who asks."""
        batch, dim, heads, steps = len(x), self.dim, self.heads, self.chunk_size
        projected = functional.linear(self.read_norm(asking), self.queries, self.queries_bias)
        query = projected[:, dim : dim + heads * dim].view(batch, heads, dim)
        positions = projected[:, dim + heads * dim :].view(batch, heads, 1, steps)
        scores, slots = self._choose(projected[:, :dim], shelves)
        chosen = self.contents.index_select(0, slots.flatten()).view(batch, -1, dim)
        inside = torch.bmm(query, chosen.mT).view(batch, heads, -1, steps) + positions
        weights = torch.softmax(inside, dim=-1).mul_(torch.softmax(scores, dim=-1)[:, None, :, None])
        read = torch.bmm(weights.view(batch, heads, -1), chosen).view(batch, -1)
        where = weights.sum(dim=2).view(batch, -1)
        return torch.addmm(x + self.out_bias, torch.cat([read, where], dim=1), self.out)

    def _choose(self, query: Tensor, shelves: Shelves) -> tuple[Tensor, Tensor]:
        """Return scores and slots of the best chunks, the least score and the slot of zeros for none."""
        least = torch.finfo(query.dtype).min
        before = self.num_chunks - shelves.most
        if shelves.most > self.top_k and query.numel() * shelves.most <= _FEW_SCALARS:
            exact = self._exactly(query, shelves, slice(None), least)
            chunks = np.argsort(-_ranked(exact), axis=1, kind="stable")[:, : self.top_k]
            values = torch.from_numpy(np.take_along_axis(exact, chunks, axis=1))
        else:
            # A row times a matrix is ten times as fast as a matrix times a column.
            scores = torch.bmm(query[:, None], self.summaries[:, before:].mT)[:, 0]
            if shelves.readable is not None:
                scores = torch.where(shelves.readable, scores, least)
            if shelves.most <= self.top_k:
                values, chunks = scores, np.arange(shelves.most)[None]
            else:
                values, chunks = self._best(query, scores, shelves, least)
        # So few numbers are quicker reckoned with in numpy.
        slots = (shelves.oldest[:, None] + (before + chunks)) % self.num_chunks + self.first
        if shelves.readable is not None:
            slots[values.numpy() == least] = len(self.contents) - 1
        return values, torch.from_numpy(slots)

    def _best(
        self, query: Tensor, scores: Tensor, shelves: Shelves, least: float
    ) -> tuple[Tensor, Int[np.ndarray, "batch top_k"]]:
        values, places = scores.topk(self.top_k + 1, dim=1)
        kept, chunks, asked = values.numpy(), places.numpy()[:, :-1], query.numpy()
        # A product may round scores of equal summaries differently; of equals the earlier is kept.
        rounding = 2 * self.dim * torch.finfo(query.dtype).eps * self.largest
        with np.errstate(over="ignore", invalid="ignore"):
            near = kept[:, -2] - kept[:, -1] <= np.abs(asked).sum(axis=1) * rounding
            close = np.flatnonzero(near & (kept[:, -1] > least))
            if len(close) == 0:
                return values[:, :-1], chunks
        chunks = chunks.copy()
        exact = _ranked(self._exactly(query, shelves, close, least))
        chunks[close] = best(torch.from_numpy(exact), self.top_k)
        return scores.gather(1, torch.from_numpy(chunks)), chunks

    def _exactly(
        self, query: Tensor, shelves: Shelves, rows: Any, least: float
    ) -> Float[np.ndarray, "rows most"]:
        """Return scores that are the same for equal summaries."""
        with np.errstate(over="ignore", invalid="ignore"):
            products = self.summaries.numpy()[rows, -shelves.most :] * query.numpy()[rows, None]
            exact = products.sum(axis=-1)
        if shelves.readable is None:
            return exact
        return np.where(shelves.readable.numpy()[rows], exact, exact.dtype.type(least))

    def _store(self, completed: _Completed) -> None:
        rows, slots, places = completed
        chunk = self.local.held[rows[:, None], places]
        summary = chunk.mean(dim=1)
        self.contents.index_copy_(0, rows * self.num_chunks + slots, chunk)
        self.summaries[rows] = torch.cat([self.summaries[rows, 1:], summary[:, None]], dim=1)
        self.largest = max(self.largest, float(summary.abs().amax()))


def _ranked(scores: Float[np.ndarray, "rows most"]) -> Float[np.ndarray, "rows most"]:
    """Return what to rank by: a score that is no number is the best of all, and read."""
    return np.where(np.isnan(scores), scores.dtype.type(np.inf), scores)


def _norm(module: Any) -> Callable[[Tensor], Tensor]:
    """Return what the layer norm does, without the price of a module."""
    shape, weight, bias, eps = list(module.normalized_shape), module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
