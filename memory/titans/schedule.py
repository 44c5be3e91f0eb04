"""Schedule of a segment of `TitansMAC`: positions of steps in chunks, masks, resets and gradient stops.

`memory/titans/forward.py` defines the dimension letters.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.parts.rotary import build_complex_rotations, interleave_pairs


class Sizes(NamedTuple):
    """Sizes of a layer and a segment."""

    batch: int
    chunks: int
    length: int
    """Steps per chunk."""
    dim: int
    heads: int
    """Number of attention heads."""
    rotary_width: int
    """Number of coordinates per attention head that the rotary positions rotate."""
    persistent: int
    memories: int
    """Number of memory heads."""
    max_step: float
    max_momentum: float
    read_before_write: bool

    @property
    def rows(self) -> int:
        """Number of networks: one per batch row and memory head."""
        return self.batch * self.memories

    @property
    def width(self) -> int:
        """Width of a memory head."""
        return self.dim // self.memories

    @property
    def attention_shape(self) -> tuple[int, int, int, int]:
        """Shape of a chunk's vectors, split by attention head."""
        return self.batch, self.length, self.heads, self.dim // self.heads

    @property
    def memory_shape(self) -> tuple[int, int, int, int, int]:
        """Shape of a chunk's queries, keys and values for the memory, split by memory head."""
        return self.batch, self.length, 3, self.memories, self.width


class Schedule(NamedTuple):
    """Indices and masks for a segment, which depend on its sizes and episode starts but not on its inputs."""

    sizes: Sizes
    source: Int[Tensor, " N*B*C"]
    """Index of the step at every position of the chunk grid; at an empty position, the number of steps."""
    target: Int[Tensor, " B*T"]
    """Position of every step in the chunk grid."""
    pairs: Int[Tensor, " D"]
    """Order of query and key coordinates in which the two coordinates of a rotary pair are adjacent."""
    inverse_pairs: Int[Tensor, " D"]
    """Inverse permutation of `pairs`."""
    rotation: Complex[Tensor, "C 1 E//2"]
    """Rotary positions: a complex factor for each rotary pair of coordinates."""
    hidden: Float[Tensor, "C S"]
    """Additive mask of the attention scores: 0 for visible slots, -inf for hidden slots."""
    cached_slots: Bool[Tensor, "B 1 2*C 1"] | None
    """Mask of slots that earlier segments filled in the first chunk; None if there are none."""
    valid_steps: Bool[Tensor, "N R C"] | None
    """Mask of positions that hold a step; None if all positions do."""
    fresh: dict[int, Int[Tensor, " some"]]
    """For each chunk: the memory rows in which an episode starts at this chunk. There is one memory row per
    batch row and head."""
    gradient_stops: dict[int, Int[Tensor, " some"]]
    """Dict from a chunk to the memory rows whose gradient stops at the start of this chunk."""
    anchor_chunk: Int[Tensor, " R"] | None
    """For each memory row, the index of the chunk before which its anchor last changed. An anchor holds the
    weights at which gradients are taken. A row without a change has 0. A row whose anchor changed after the
    last chunk has the number of chunks. None if all rows have the number of chunks."""
    last: tuple[Int[Tensor, " B"], Bool[Tensor, "B 1 2*C 1"]] | None
    """For each batch row: the index of the chunk that contains its last step, and the mask of the filled
    slots in that chunk. None if the last chunk of the segment is full in every batch row."""


def build_schedule(
    grid: ChunkGrid, sizes: Sizes, rotation: tuple[Tensor, Tensor], bptt_chunks: int | None
) -> Schedule:
    """Return the schedule of a segment.

    Args:
        grid: Chunk grid of the segment.
        sizes: Sizes of the layer.
        rotation: Cosines and sines `[C, E]` of the positions in a chunk.
        bptt_chunks: Number of chunks through which gradients flow back; None for all chunks.
    """
    batch, chunks, length = sizes.batch, sizes.chunks, sizes.length
    source, target = _places(grid, batch)
    cos, sin = rotation
    pairs, inverse_pairs = interleave_pairs(sizes.heads, cos.shape[1], sizes.rotary_width)
    place = torch.arange(length)
    visible = functional.pad((place[:, None] >= place).repeat(1, 2), (sizes.persistent, 0), value=True)
    cached_slots = valid_steps = anchor_chunk = last = None
    if grid.valid is not None:
        valid = grid.valid.unflatten(1, (chunks, length))
        valid_steps = valid.transpose(0, 1)[:, :, None].expand(-1, -1, sizes.memories, -1)
        valid_steps = valid_steps.reshape(chunks, -1, length)
        earlier = ~valid[:, 0] & ~grid.begins[:, :1]
        cached_slots = _slots(earlier) if earlier.any() else None
        if not valid[:, -1].all():
            chunk = valid.any(-1).long().cumsum(1).argmax(1)
            row = torch.arange(batch)
            last = chunk, _slots(valid[row, chunk] | ((chunk == 0) & ~grid.begins[:, 0])[:, None])
        anchor_chunk = _find_anchor_chunks(valid[..., -1], grid.fresh, sizes)
    cut = grid.boundaries(bptt_chunks) if bptt_chunks else None
    gradient_stops = grid.fresh if cut is None else cut if grid.fresh is None else cut | grid.fresh
    return Schedule(
        sizes,
        source,
        target,
        pairs,
        inverse_pairs,
        build_complex_rotations(pairs, cos, sin)[:, None],
        torch.zeros_like(visible, dtype=cos.dtype).masked_fill_(~visible, -math.inf),
        cached_slots,
        valid_steps,
        _rows(grid.fresh, sizes.memories),
        _rows(gradient_stops, sizes.memories),
        anchor_chunk,
        last,
    )


def _places(grid: ChunkGrid, batch: int) -> tuple[Int[Tensor, " places"], Int[Tensor, " steps"]]:
    """Return the step at each position, and the position of each step.

    Positions are ordered by chunk, then by batch row.
    """
    chunks, length, time = grid.num_chunks, grid.chunk_size, grid.clock.length
    row = torch.arange(batch)[:, None]
    if grid.source is None or grid.position is None:
        place = torch.arange(grid.offset, grid.offset + time).expand(batch, -1)
        source = torch.full((batch, chunks * length), batch * time)
        source[:, grid.offset : grid.offset + time] = row * time + torch.arange(time)
    else:
        place, source = grid.position, grid.source
    target = (place // length * batch + row) * length + place % length
    return source.view(batch, chunks, length).transpose(0, 1).flatten(), target.flatten()


def _slots(places: Bool[Tensor, "B C"]) -> Bool[Tensor, "B 1 two_C 1"]:
    """Convert a mask of positions to a mask of slots. Each position has an input slot and a recall slot."""
    return places.repeat(1, 2)[:, None, :, None]


def _find_anchor_chunks(
    full: Bool[Tensor, "B N"], fresh: Bool[Tensor, "B N"] | None, sizes: Sizes
) -> Int[Tensor, " R"] | None:
    """Return, for each memory row, the chunk at whose start its anchor last changed.

    A memory row is one memory head of one batch row. Its anchor holds the weights at which gradients are
    taken. An anchor changes at episode starts and after each full chunk. For an unchanged anchor, the result
    is chunk 0. Return None if every anchor changed after the last chunk.
    """
    moves = functional.pad(full, (1, 0), value=False)
    if fresh is not None:
        moves[:, :-1] |= fresh
    border = torch.where(moves, torch.arange(sizes.chunks + 1), 0).amax(1)
    if (border == sizes.chunks).all():
        return None
    return border[:, None].expand(-1, sizes.memories).flatten()


def _rows(some: Bool[Tensor, "B N"] | None, memories: int) -> dict[int, Int[Tensor, " some"]]:
    """Return a dict from a chunk to the memory rows that the mask `some` selects in this chunk.

    A memory row is one memory head of one batch row. Chunks without selected rows are omitted.
    """
    if some is None:
        return {}
    each = some.repeat_interleave(memories, 0).T
    return {index: each[index].nonzero()[:, 0] for index in some.any(0).nonzero()[:, 0].tolist()}
