"""Chunks of an episode in a store of a fixed number: where a segment completes them, and who may read them.

Their boundaries are multiples of the chunk's size in episode time. A chunk is readable from the step after
its last; the oldest is dropped first. A store holds them oldest first and aligned to the end.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.dispatch import without_own_gradient
from scrubjay.memory.contract.base import Memory, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.contract.nested import named


class ChunkPlan(NamedTuple):
    """Where the chunks of a segment lie and who may read them; the same for every layer.

    A layer's table is its stored chunks, without the first slots that no row has written, and behind them
    those that the segment completes.
    """

    unwritten: int
    """Slots of the stores that no row has written before the segment."""
    steps: Int[Tensor, "batch N chunk_size"]
    """Where the steps of the chunks lie that it completes, in the window and the segment."""
    readable: Bool[Tensor, "batch time chunks_and_N"]
    most: int
    """How many of them any query may read at most."""
    kept: Int[Tensor, "batch kept"]
    """Which chunks of the table the last slots hold after the segment."""
    held: Bool[Tensor, "batch kept"] | None
    """Which of these slots hold a chunk at all, None if all do."""

    def store(
        self, table: Float[Tensor, "batch chunks_and_N *dims"], num_chunks: int
    ) -> Float[Tensor, "batch chunks *dims"]:
        """Return the slots after the segment, zero where nothing is written."""
        kept = take(table, self.kept)
        if self.held is not None:
            kept = kept.masked_fill_(~self.held.view(*self.held.shape, *[1] * (table.ndim - 2)), 0)
        before = num_chunks - kept.shape[1]
        return functional.pad(kept, (*[0, 0] * (table.ndim - 2), before, 0)) if before else kept


def plan_chunks(clock: Clock, chunk_size: int, num_chunks: int, window: int) -> ChunkPlan:
    """Place the segment's chunk boundaries, at multiples of `chunk_size` since each row's own `start`."""
    batch, length = clock.step.shape
    device = clock.age.device
    chunk = clock.chunk(chunk_size)
    completes = clock.place(chunk_size) == chunk_size - 1
    completed = completes.cumsum(dim=1)
    lived = (clock.after // chunk_size).clamp(max=num_chunks)
    # Of chunks that no row has, none is looked at; a graph that is recorded cannot know.
    stored, new, most, held = num_chunks, -(-length // chunk_size), num_chunks, num_chunks
    known = bool(batch) and not (clock.age.is_cuda or without_own_gradient(clock.age))
    if known:
        written = (clock.age.amax() // chunk_size).clamp(max=num_chunks)
        numbers = torch.stack([written, completed[:, -1].amax(), chunk.amax(), lived.amax(), lived.amin()])
        stored, new, most, held, fewest = numbers.tolist()
        new, most = max(new, 1 - stored), min(most, num_chunks)

    step = torch.arange(length, device=device)
    ends = torch.full((batch, new + 1), chunk_size - 1, device=device)
    ends = ends.scatter(1, torch.where(completes, completed - 1, new), step.expand(batch, -1))[:, :new]
    ends = ends.clamp(max=length - 1)
    steps = (window + ends)[:, :, None] + torch.arange(1 - chunk_size, 1, device=device)

    # A row's chunks lie in their order, and an episode's own are the last before a step.
    last = (stored + completed - completes.long())[..., None]
    place = torch.arange(stored + new, device=device)
    readable = (place < last) & (place >= last - chunk.clamp(max=num_chunks)[..., None])
    slot = torch.arange(-held, 0, device=device)
    kept = (completed[:, -1:] + stored + slot).clamp(min=0)
    everything = known and held == fewest
    return ChunkPlan(
        num_chunks - stored, steps, readable, most, kept, None if everything else slot >= -lived[:, None]
    )


def take(table: Tensor, places: Int[Tensor, "batch *some"]) -> Tensor:
    """Return a copy of what is at the given places of each row's table."""
    first = torch.arange(table.shape[0], device=table.device) * table.shape[1]
    where = places + first.view(-1, *[1] * (places.ndim - 1))
    return table.flatten(0, 1).index_select(0, where.flatten()).view(*places.shape, *table.shape[2:])


def push(store: Tensor, item: Tensor, where: Bool[Tensor, "batch"]) -> Tensor:
    """Return `store` with `item` appended and the oldest dropped, in the rows named by `where`."""
    if torch.compiler.is_compiling():
        pushed = torch.cat([store[:, 1:], item[:, None]], dim=1)
        return torch.where(where.view(-1, *[1] * (store.ndim - 1)), pushed, store)
    # Rows fill their chunks at different steps; only those that do are moved.
    rows = where.nonzero().flatten()
    if rows.numel() == 0:
        return store
    return store.index_copy(0, rows, torch.cat([store[rows, 1:], item[rows, None]], dim=1))


def written_slots(
    time: Int[Tensor, "batch"], chunk_size: int, num_chunks: int
) -> Bool[Tensor, "batch chunks"]:
    """Return which slots hold a chunk of an episode that is `time` steps old."""
    slot = torch.arange(num_chunks, device=time.device)
    return slot >= num_chunks - (time // chunk_size)[:, None]


def stored_steps(
    time: Int[Tensor, " batch"], chunk_size: int, num_chunks: int
) -> Int[Tensor, "batch chunks chunk_size"]:
    """Return which steps of an episode that is `time` steps old the slots hold, -1 for none."""
    chunk = time[:, None] // chunk_size + torch.arange(-num_chunks, 0, device=time.device)
    steps = chunk[..., None] * chunk_size + torch.arange(chunk_size, device=time.device)
    return steps.clamp(min=-1)


def last_steps(time: Int[Tensor, " batch"], window: int) -> Int[Tensor, "batch window_and_1"]:
    """Return the `window` steps before the present one, and that, -1 where there has been none."""
    return (time[:, None] + torch.arange(-window, 1, device=time.device)).clamp(min=-1)


def seen_steps(time: Int[Tensor, " batch"], window: int) -> Bool[Tensor, "batch window"]:
    """Return which of the last `window` steps there have been in an episode that is `time` steps old."""
    return torch.arange(window, 0, -1, device=time.device) <= time[:, None]


def blanked(value: Float[Tensor, "batch slots *dims"], mask: Bool[Tensor, "batch slots"]) -> Tensor:
    """Return a value with zeros in the slots that the mask leaves out."""
    return torch.where(mask.view(*mask.shape, *[1] * (value.ndim - 2)), value, 0)


def empty_layers(memory: Memory, batch: int, layers: int, shapes: dict[str, tuple[int, ...]]) -> State:
    """Return the state of a memory whose layers have seen nothing: time, and zeros of these shapes each."""
    state: State = {"time": torch.zeros(batch, dtype=torch.long, device=memory.device)}
    for layer in range(layers):
        empty = {
            name: torch.zeros(batch, *shape, dtype=memory.state_dtype, device=memory.device)
            for name, shape in shapes.items()
        }
        state |= named(empty, suffix=f"_{layer}")
    return state


def is_harmless(state: State) -> bool:
    """Return whether all is finite, but for the time: to see it takes a tenth of a copy."""
    total = sum(value.detach().sum() for name, value in state.items() if name != "time")
    return bool(torch.as_tensor(total).isfinite())
