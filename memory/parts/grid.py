"""Layout of a segment on a grid of chunks. Chunks start at multiples of `chunk_size` steps of an episode.

Chunk boundaries do not depend on how a sequence is cut into segments. A row of a segment may contain pieces
of several episodes. The grid places the pieces one after the other, in separate chunks. A piece begins at its
position within its first chunk. Positions without a step are empty. All rows get the number of chunks of the
row that needs the most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.derivatives import are_batched
from scrubjay.kernels.dispatch import needs_plain_autograd, without_autocast
from scrubjay.memory.contract.clock import Clock


@dataclass(frozen=True)
class ChunkGrid:
    """Positions of a segment's steps on the grid. Create one with `from_starts`."""

    clock: Clock
    """Step numbers and episode starts of the segment."""
    chunk_size: int
    num_chunks: int
    offset: int
    """Position of the segment's first step in its chunk. 0 if it differs between batch rows, or if a new
    episode starts after the first step."""
    position: Int[Tensor, "batch time"] | None
    """Position of every step on the grid; None if positions count up from `offset`."""
    source: Int[Tensor, " all_places"] | None
    """Flat index (row * time + t) of the step at every position; batch * time at empty positions. None if
    `position` is None."""
    target: Int[Tensor, " all_steps"] | None
    """Flat index of every step's position: row * (number of positions per row) + position. None if `position`
    is None."""
    valid: Bool[Tensor, "batch places"] | None
    """True at positions that hold a step; None if all do."""
    fresh: Bool[Tensor, "batch chunks"] | None
    """True for chunks that begin an episode; None if no chunk does."""
    begins: Bool[Tensor, "batch chunks"]
    """True for chunks that begin in this segment."""
    index: Int[Tensor, "batch chunks"]
    """Index of the chunk in its episode."""

    @classmethod
    def from_starts(
        cls, age: Int[Tensor, " batch"], start: Bool[Tensor, "batch time"], chunk_size: int
    ) -> ChunkGrid:
        """Return the grid of a segment; `age` is the number of earlier steps in the episode of each row."""
        batch, length = start.shape
        clock = Clock.from_starts(age, start)
        number, in_chunk = clock.chunk_index(chunk_size), clock.chunk_position(chunk_size)
        offset = int(in_chunk[0, 0]) if batch else 0
        if not start[:, 1:].any() and bool((in_chunk[:, 0] == offset).all()):
            num_chunks = -(-(offset + length) // chunk_size)
            valid = None
            if num_chunks * chunk_size > length:
                places = torch.arange(num_chunks * chunk_size, device=start.device)
                valid = ((places >= offset) & (places < offset + length)).expand(batch, -1)
            chunk = torch.arange(num_chunks, device=start.device)
            fresh = functional.pad(start[:, :1], (0, num_chunks - 1)) if start[:, 0].any() else None
            begins = (offset == 0) | (chunk > 0)
            index = number[:, :1] + chunk
            return cls(
                clock,
                chunk_size,
                num_chunks,
                offset,
                None,
                None,
                None,
                valid,
                fresh,
                begins.expand(batch, -1),
                index,
            )
        opens = start | (in_chunk == 0)
        opens[:, 0] = True
        chunk = opens.cumsum(dim=1) - 1
        num_chunks = int(chunk[:, -1].max()) + 1
        position = chunk * chunk_size + in_chunk
        source = torch.full((batch, num_chunks * chunk_size), -1, device=start.device)
        now = torch.arange(length, device=start.device)
        row = torch.arange(batch, device=start.device)[:, None]
        source = source.scatter(1, position, now.expand(batch, -1))

        def by_chunk(values: Tensor, blank: int) -> Tensor:
            """Return the value at the first step of each chunk."""
            # Other steps write to an extra column, which is dropped.
            where = torch.where(opens, chunk, num_chunks)
            table = torch.full((batch, num_chunks + 1), blank, dtype=values.dtype, device=start.device)
            return table.scatter(1, where, values)[:, :num_chunks]

        return cls(
            clock,
            chunk_size,
            num_chunks,
            0,
            position,
            torch.where(source < 0, batch * length, row * length + source).flatten(),
            (row * num_chunks * chunk_size + position).flatten(),
            source >= 0,
            by_chunk(start, False),
            by_chunk(in_chunk == 0, False),
            by_chunk(number, 0),
        )

    def boundaries(self, every: int) -> Bool[Tensor, "batch chunks"]:
        """Return a mask of chunks that begin in this segment and whose index is a multiple of `every`."""
        return self.begins & (self.index % every == 0)

    def to_grid(self, x: Tensor) -> Tensor:
        """Convert `[batch, time, ...]` to `[batch, places, ...]`, with zeros at positions without a step."""
        if self.source is None or self.target is None:
            behind = self.num_chunks * self.chunk_size - self.offset - self.clock.length
            if not self.offset and not behind:
                return x
            return functional.pad(x.flatten(2), (0, 0, self.offset, behind)).unflatten(2, x.shape[2:])
        return _take(x, self.source, self.target, some_empty=True)

    def from_grid(self, x: Tensor) -> Tensor:
        """Convert `[batch, places, ...]` to `[batch, time, ...]`; the inverse of `to_grid`."""
        if self.source is None or self.target is None:
            return x[:, self.offset : self.offset + self.clock.length]
        return _take(x, self.target, self.source, some_empty=False)


def _take(x: Tensor, index: Tensor, inverse: Tensor, some_empty: bool) -> Tensor:
    rows = x.flatten(2).flatten(0, 1)
    if needs_plain_autograd(rows):
        result = _select(rows, index, some_empty)
    else:
        result = _Take.apply(rows, index, inverse, some_empty)
    return result.view(x.shape[0], -1, *x.shape[2:])


def _select(rows: Float[Tensor, "rows width"], index: Tensor, some_empty: bool) -> Tensor:
    if some_empty:
        # Empty positions are gathered from a row of zeros: a copy is faster than a select.
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return rows.index_select(0, index)


class _Take(torch.autograd.Function):
    """Variant of `_select` whose backward pass gathers by the inverse index, without a scatter-add."""

    @staticmethod
    def forward(ctx, rows, index, inverse, some_empty):
        ctx.save_for_backward(index, inverse)
        ctx.some_empty = some_empty
        return _select(rows, index, some_empty)

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        index, inverse = ctx.saved_tensors
        if are_batched(grad):
            return _select(grad, inverse, not ctx.some_empty), None, None, None
        return _Take.apply(grad, inverse, index, not ctx.some_empty), None, None, None
