"""Chunks of an episode in a store of fixed capacity: when they are completed and when they are readable.

A chunk starts at each episode start and every `chunk_size` steps after the start. Later steps can read a
chunk after its last step. A full store drops its oldest chunk. Chunks are stored oldest first in the last
slots of the store, so unused slots come first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.dispatch import needs_plain_autograd
from scrubjay.memory.contract.base import Memory, State, add_affixes
from scrubjay.memory.contract.clock import Clock


class ChunkPlan(NamedTuple):
    """Chunks of a segment and the steps that may read them. All layers share the plan.

    `readable` and `retained_chunks` refer to a chunk table. Each layer has such a table. It contains the
    stored chunks, followed by the N chunks that the segment completes. Leading slots of the store that are
    unwritten in all rows are omitted.
    """

    num_unwritten: int
    """Number of leading slots of a store that no row has written before the segment."""
    steps: Int[Tensor, "batch N chunk_size"]
    """For each completed chunk: the positions of its steps. Position 0 is the first step of the window, which
    precedes the segment."""
    readable: Bool[Tensor, "batch time chunks_and_N"]
    max_readable: int
    """Largest number of chunks that any query may read."""
    retained_chunks: Int[Tensor, "batch slots"]
    """Chunks that the store holds once the segment is processed, as indices into the chunk table: one for
    each of its last slots. The earlier slots are empty in all rows."""
    occupied_slots: Bool[Tensor, "batch slots"] | None
    """True for slots of `retained_chunks` that contain a chunk; None if every slot contains a chunk."""

    def store(
        self, table: Float[Tensor, "batch chunks_and_N *dims"], num_chunks: int
    ) -> Float[Tensor, "batch chunks *dims"]:
        """Return the contents of all slots of the store after the segment, zeros in unwritten slots."""
        slots = take(table, self.retained_chunks)
        if self.occupied_slots is not None:
            mask = self.occupied_slots.view(*self.occupied_slots.shape, *[1] * (table.ndim - 2))
            slots = slots.masked_fill_(~mask, 0)
        before = num_chunks - slots.shape[1]
        return functional.pad(slots, (*[0, 0] * (table.ndim - 2), before, 0)) if before else slots


def plan_chunks(clock: Clock, chunk_size: int, num_chunks: int, window: int) -> ChunkPlan:
    """Return the chunk plan of a segment. Positions count from the step `window` steps before the segment."""
    batch, length = clock.step.shape
    device = clock.age.device
    chunk = clock.chunk_index(chunk_size)
    completes = clock.chunk_position(chunk_size) == chunk_size - 1
    num_completed = completes.cumsum(dim=1)
    num_written = (clock.age_after // chunk_size).clamp(max=num_chunks)
    # Chunks that no row has are skipped. A traced graph cannot depend on these counts.
    num_stored, new = num_chunks, -(-length // chunk_size)
    max_readable = num_slots = num_chunks
    counts_known = bool(batch) and not (clock.age.is_cuda or needs_plain_autograd(clock.age))
    if counts_known:
        max_written = (clock.age.amax() // chunk_size).clamp(max=num_chunks)
        numbers = torch.stack(
            [max_written, num_completed[:, -1].amax(), chunk.amax(), num_written.amax(), num_written.amin()]
        )
        num_stored, new, max_readable, num_slots, fewest = numbers.tolist()
        new, max_readable = max(new, 1 - num_stored), min(max_readable, num_chunks)

    step = torch.arange(length, device=device)
    ends = torch.full((batch, new + 1), chunk_size - 1, device=device)
    ends = ends.scatter(1, torch.where(completes, num_completed - 1, new), step.expand(batch, -1))[:, :new]
    ends = ends.clamp(max=length - 1)
    steps = (window + ends)[:, :, None] + torch.arange(1 - chunk_size, 1, device=device)

    # A row's chunks are in order; those of the current episode are the last ones before a step.
    last = (num_stored + num_completed - completes.long())[..., None]
    place = torch.arange(num_stored + new, device=device)
    readable = (place < last) & (place >= last - chunk.clamp(max=num_chunks)[..., None])
    slot = torch.arange(-num_slots, 0, device=device)
    retained_chunks = (num_completed[:, -1:] + num_stored + slot).clamp(min=0)
    all_occupied = counts_known and num_slots == fewest
    return ChunkPlan(
        num_chunks - num_stored,
        steps,
        readable,
        max_readable,
        retained_chunks,
        None if all_occupied else slot >= -num_written[:, None],
    )


def take(table: Tensor, places: Int[Tensor, "batch *some"]) -> Tensor:
    """Gather the items at these positions of each row's table into a new tensor."""
    first = torch.arange(table.shape[0], device=table.device) * table.shape[1]
    where = places + first.view(-1, *[1] * (places.ndim - 1))
    return table.flatten(0, 1).index_select(0, where.flatten()).view(*places.shape, *table.shape[2:])


def push(store: Tensor, item: Tensor, where: Bool[Tensor, "batch"]) -> Tensor:
    """Append `item` to `store` and drop the oldest item, in the rows where `where` is True."""
    if torch.compiler.is_compiling():
        shifted_items = torch.cat([store[:, 1:], item[:, None]], dim=1)
        return torch.where(where.view(-1, *[1] * (store.ndim - 1)), shifted_items, store)
    # Rows complete their chunks at different steps; only these rows are shifted.
    rows = where.nonzero().flatten()
    if rows.numel() == 0:
        return store
    return store.index_copy(0, rows, torch.cat([store[rows, 1:], item[rows, None]], dim=1))


def written_slots(
    time: Int[Tensor, "batch"], chunk_size: int, num_chunks: int
) -> Bool[Tensor, "batch chunks"]:
    """Return a mask of the slots that hold a chunk after `time` steps of an episode."""
    slot = torch.arange(num_chunks, device=time.device)
    return slot >= num_chunks - (time // chunk_size)[:, None]


def stored_steps(
    time: Int[Tensor, " batch"], chunk_size: int, num_chunks: int
) -> Int[Tensor, "batch chunks chunk_size"]:
    """Return the numbers of the steps that each slot holds after `time` steps of an episode; -1 if empty."""
    chunk = time[:, None] // chunk_size + torch.arange(-num_chunks, 0, device=time.device)
    steps = chunk[..., None] * chunk_size + torch.arange(chunk_size, device=time.device)
    return steps.clamp(min=-1)


def last_steps(time: Int[Tensor, " batch"], window: int) -> Int[Tensor, "batch window_and_1"]:
    """Return the episode step numbers of the last `window` steps and of the present one; -1 before step 0."""
    return (time[:, None] + torch.arange(-window, 1, device=time.device)).clamp(min=-1)


def compute_slot_steps(
    count: Int[Tensor, " batch"], num_sinks: int, window: int
) -> Int[Tensor, "batch slots"]:
    """Return the number of the step (from 0) in each slot after `count` steps; -1 for an empty slot.

    The first `num_sinks` slots hold the first steps. The other slots are a ring buffer of the last `window`
    steps, as in `kernels.sink_slot`.
    """
    slot = torch.arange(num_sinks + window, device=count.device)
    newest = count[:, None] - 1
    # The step in a ring slot is as far behind the newest step as the two slots are apart.
    ring = newest - (newest - slot) % window
    step = torch.where(slot < num_sinks, slot, ring)
    return torch.where((step >= slot) & (step <= newest), step, -1)


def visited_slots(time: Int[Tensor, " batch"], window: int) -> Bool[Tensor, "batch window"]:
    """Return a mask over the last `window` steps, True for steps that belong to the current episode.

    The current episode has `time` steps so far.
    """
    return torch.arange(window, 0, -1, device=time.device) <= time[:, None]


def zero_slots(value: Float[Tensor, "batch slots *dims"], mask: Bool[Tensor, "batch slots"]) -> Tensor:
    """Return `value` with zeros in the slots where the mask is False."""
    return torch.where(mask.view(*mask.shape, *[1] * (value.ndim - 2)), value, 0)


def build_empty_state(memory: Memory, batch: int, layers: int, shapes: dict[str, tuple[int, ...]]) -> State:
    """Return the initial state of a memory: the entry `time`, and zeros of these shapes for each layer."""
    state: State = {"time": torch.zeros(batch, dtype=torch.long, device=memory.device)}
    for layer in range(layers):
        empty = {
            name: torch.zeros(batch, *shape, dtype=memory.state_dtype, device=memory.device)
            for name, shape in shapes.items()
        }
        state |= add_affixes(empty, suffix=f"_{layer}")
    return state


def is_finite_state(state: State) -> bool:
    """Return True if all entries except `time` are finite. The check takes a tenth of the time of a copy."""
    total = sum(value.detach().sum() for name, value in state.items() if name != "time")
    return bool(torch.as_tensor(total).isfinite())
