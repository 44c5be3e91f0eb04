"""A segment laid out on chunk grids that begin with its episodes: resets and cuts move no boundary.

Chunk boundaries are multiples of `chunk_size` in episode time. Each row's pieces of episodes are laid one
after the other, each from the place in its chunk where it begins; what no step fills is empty, and the number
of chunks is that of the row that needs most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.derivatives import come_in_batches
from scrubjay.kernels.dispatch import without_autocast, without_own_gradient
from scrubjay.memory.contract.clock import Clock


@dataclass(frozen=True)
class ChunkGrid:
    """Where the steps of a segment lie; `of` makes one."""

    clock: Clock
    """Where the steps are in their episodes."""
    chunk_size: int
    num_chunks: int
    offset: int
    """Place of the first step where all rows are one piece, begun at the same place of a chunk."""
    place: Int[Tensor, "batch time"] | None
    """Place of every step on the grid, None where it is `offset` and on."""
    source: Int[Tensor, " all_places"] | None
    """The step at every place, counted through all rows, the number of all steps for none; None where `place`
    is."""
    target: Int[Tensor, " all_steps"] | None
    """The place of every step, counted likewise; None where `place` is."""
    valid: Bool[Tensor, "batch places"] | None
    """Which places hold a step, None if all do."""
    fresh: Bool[Tensor, "batch chunks"] | None
    """Which chunks begin an episode, None if none does."""
    begins: Bool[Tensor, "batch chunks"]
    """Which chunks begin in this segment."""
    index: Int[Tensor, "batch chunks"]
    """The chunk's number in its episode."""

    @classmethod
    def of(cls, age: Int[Tensor, " batch"], start: Bool[Tensor, "batch time"], chunk_size: int) -> ChunkGrid:
        """Lay out a segment whose rows were `age` steps into an episode before it."""
        batch, length = start.shape
        clock = Clock.of(age, start)
        number, in_chunk = clock.chunk(chunk_size), clock.place(chunk_size)
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
        place = chunk * chunk_size + in_chunk
        source = torch.full((batch, num_chunks * chunk_size), -1, device=start.device)
        now = torch.arange(length, device=start.device)
        row = torch.arange(batch, device=start.device)[:, None]
        source = source.scatter(1, place, now.expand(batch, -1))

        def by_chunk(of_step: Tensor, blank: int) -> Tensor:
            """Return what holds at the step that opens each chunk."""
            # The others write to a column of their own, which is dropped.
            where = torch.where(opens, chunk, num_chunks)
            table = torch.full((batch, num_chunks + 1), blank, dtype=of_step.dtype, device=start.device)
            return table.scatter(1, where, of_step)[:, :num_chunks]

        return cls(
            clock,
            chunk_size,
            num_chunks,
            0,
            place,
            torch.where(source < 0, batch * length, row * length + source).flatten(),
            (row * num_chunks * chunk_size + place).flatten(),
            source >= 0,
            by_chunk(start, False),
            by_chunk(in_chunk == 0, False),
            by_chunk(number, 0),
        )

    def boundaries(self, every: int) -> Bool[Tensor, "batch chunks"]:
        """Return which chunks begin in this segment at a multiple of `every` chunks of their episode."""
        return self.begins & (self.index % every == 0)

    def lay(self, x: Tensor) -> Tensor:
        """Return `[batch, places, ...]` of `[batch, time, ...]`, zeros where no step lies."""
        if self.source is None or self.target is None:
            behind = self.num_chunks * self.chunk_size - self.offset - self.clock.length
            if not self.offset and not behind:
                return x
            return functional.pad(x.flatten(2), (0, 0, self.offset, behind)).unflatten(2, x.shape[2:])
        return _take(x, self.source, self.target, some_empty=True)

    def collect(self, x: Tensor) -> Tensor:
        """Return `[batch, time, ...]` of `[batch, places, ...]`; undoes `lay`."""
        if self.source is None or self.target is None:
            return x[:, self.offset : self.offset + self.clock.length]
        return _take(x, self.target, self.source, some_empty=False)


def _take(x: Tensor, index: Tensor, inverse: Tensor, some_empty: bool) -> Tensor:
    rows = x.flatten(2).flatten(0, 1)
    if without_own_gradient(rows):
        taken = _select(rows, index, some_empty)
    else:
        taken = _Take.apply(rows, index, inverse, some_empty)
    return taken.view(x.shape[0], -1, *x.shape[2:])


def _select(rows: Float[Tensor, "rows width"], index: Tensor, some_empty: bool) -> Tensor:
    if some_empty:
        # What no step fills is taken from a row of zeros: a copy is quicker than a selection.
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return rows.index_select(0, index)


class _Take(torch.autograd.Function):
    """`_select`, whose gradient takes by the inverse and adds nothing up."""

    @staticmethod
    def forward(ctx, rows, index, inverse, some_empty):
        ctx.save_for_backward(index, inverse)
        ctx.some_empty = some_empty
        return _select(rows, index, some_empty)

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        index, inverse = ctx.saved_tensors
        if come_in_batches(grad):
            return _select(grad, inverse, not ctx.some_empty), None, None, None
        return _Take.apply(grad, inverse, index, not ctx.some_empty), None, None, None
