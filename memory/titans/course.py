"""Where the steps of a segment lie that `TitansMAC` goes through chunk by chunk, and what happens there.

Letters as in `memory/titans/chunks.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.parts.rotary import complex_turns, in_pairs


class Sizes(NamedTuple):
    """Of a layer and a segment."""

    batch: int
    chunks: int
    length: int
    """Places of a chunk."""
    dim: int
    heads: int
    """Of attention."""
    rotated: int
    """How much of one of them is turned by time."""
    persistent: int
    memories: int
    """Heads of memory."""
    largest_step: float
    most_momentum: float
    read_before_write: bool


class Course(NamedTuple):
    """What follows from steps alone."""

    sizes: Sizes
    source: Int[Tensor, " N*B*C"]
    """The step at every place, the number of all steps for none."""
    target: Int[Tensor, " B*T"]
    """The place of every step."""
    pairs: Int[Tensor, " D"]
    """Where coordinates of queries and keys come from that lie in pairs..."""
    apart: Int[Tensor, " D"]
    """...and the way back."""
    turn: Complex[Tensor, "C 1 E//2"]
    """By which pairs are turned."""
    hidden: Float[Tensor, "C S"]
    """What is added to scores: 0 or -inf."""
    held: Bool[Tensor, "B 1 2*C 1"] | None
    """Slots of the first chunk that the segment before has written, None if none."""
    learned: Bool[Tensor, "N R C"] | None
    """Which places hold a step, None if all do."""
    fresh: dict[int, Int[Tensor, " some"]]
    """Rows of memory that begin anew with a chunk."""
    stopped: dict[int, Int[Tensor, " some"]]
    """Those across whose beginning no gradient flows."""
    anchored: Int[Tensor, " R"] | None
    """The chunk with whose beginning anchors moved last, 0 for those given; None if all did with the end."""
    last: tuple[Int[Tensor, " B"], Bool[Tensor, "B 1 2*C 1"]] | None
    """Every row's last chunk, and which of its slots hold something; None if the last is full."""


def course_of(grid: ChunkGrid, sizes: Sizes, turn: tuple[Tensor, Tensor], every: int | None) -> Course:
    """Return the course of a segment.

    Args:
        grid: Where its steps lie.
        sizes: Those of the layer.
        turn: Cosines and sines `[C, E]` of the places of a chunk.
        every: Chunks through which gradients flow back, None for all.
    """
    batch, chunks, length = sizes.batch, sizes.chunks, sizes.length
    source, target = _places(grid, batch)
    cos, sin = turn
    pairs, apart = in_pairs(sizes.heads, cos.shape[1], sizes.rotated)
    place = torch.arange(length)
    seen = functional.pad((place[:, None] >= place).repeat(1, 2), (sizes.persistent, 0), value=True)
    held = learned = anchored = last = None
    if grid.valid is not None:
        valid = grid.valid.unflatten(1, (chunks, length))
        learned = valid.transpose(0, 1)[:, :, None].expand(-1, -1, sizes.memories, -1)
        learned = learned.reshape(chunks, -1, length)
        kept = ~valid[:, 0] & ~grid.begins[:, :1]
        held = _slots(kept) if kept.any() else None
        if not valid[:, -1].all():
            chunk = valid.any(-1).long().cumsum(1).argmax(1)
            row = torch.arange(batch)
            last = chunk, _slots(valid[row, chunk] | ((chunk == 0) & ~grid.begins[:, 0])[:, None])
        anchored = _anchored(valid[..., -1], grid.fresh, sizes)
    cut = grid.boundaries(every) if every else None
    stopped = grid.fresh if cut is None else cut if grid.fresh is None else cut | grid.fresh
    return Course(
        sizes,
        source,
        target,
        pairs,
        apart,
        complex_turns(pairs, cos, sin)[:, None],
        torch.zeros_like(seen, dtype=cos.dtype).masked_fill_(~seen, -math.inf),
        held,
        learned,
        _rows(grid.fresh, sizes.memories),
        _rows(stopped, sizes.memories),
        anchored,
        last,
    )


def _places(grid: ChunkGrid, batch: int) -> tuple[Int[Tensor, " places"], Int[Tensor, " steps"]]:
    """Return the steps of places and the places of steps, chunk after chunk, all rows of each."""
    chunks, length, time = grid.num_chunks, grid.chunk_size, grid.clock.length
    row = torch.arange(batch)[:, None]
    if grid.source is None or grid.place is None:
        place = torch.arange(grid.offset, grid.offset + time).expand(batch, -1)
        source = torch.full((batch, chunks * length), batch * time)
        source[:, grid.offset : grid.offset + time] = row * time + torch.arange(time)
    else:
        place, source = grid.place, grid.source
    target = (place // length * batch + row) * length + place % length
    return source.view(batch, chunks, length).transpose(0, 1).flatten(), target.flatten()


def _slots(places: Bool[Tensor, "B C"]) -> Bool[Tensor, "B 1 two_C 1"]:
    """Return the slots of inputs and recalls at these places."""
    return places.repeat(1, 2)[:, None, :, None]


def _anchored(
    full: Bool[Tensor, "B N"], fresh: Bool[Tensor, "B N"] | None, sizes: Sizes
) -> Int[Tensor, " R"] | None:
    """Return where anchors after the segment have moved last: behind full chunks, and where one is fresh."""
    moves = functional.pad(full, (1, 0), value=False)
    if fresh is not None:
        moves[:, :-1] |= fresh
    border = torch.where(moves, torch.arange(sizes.chunks + 1), 0).amax(1)
    if (border == sizes.chunks).all():
        return None
    return border[:, None].expand(-1, sizes.memories).flatten()


def _rows(some: Bool[Tensor, "B N"] | None, memories: int) -> dict[int, Int[Tensor, " some"]]:
    """Return the rows of memory of every chunk that has some."""
    if some is None:
        return {}
    each = some.repeat_interleave(memories, 0).T
    return {index: each[index].nonzero()[:, 0] for index in some.any(0).nonzero()[:, 0].tolist()}
