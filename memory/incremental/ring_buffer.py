"""Ring buffers of chunks: they track which chunks are readable and the slot of the next chunk."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


class ReadableChunks(NamedTuple):
    """Readable chunks among the last `num_readable` chunks of each row, newest last."""

    num_readable: int
    mask: Bool[Tensor, "batch num_readable"] | None
    """True for readable chunks; None if all `num_readable` chunks of every row are readable."""
    valid: Bool[Tensor, "batch 1 num_readable"]
    """True for readable chunks, as `choose_chunks` expects it."""
    any_readable: Bool[Tensor, "batch 1"] | None
    """True for rows with a readable chunk; None if every row has a readable chunk."""
    slots: Int[np.ndarray, "batch num_readable_and_1"]
    """Slots of these chunks, and the empty slot, which the index -1 of `choose_chunks` therefore selects."""


class CompletedChunks(NamedTuple):
    """Rows whose chunk ends at a step, and the slot of each row's chunk."""

    rows: Int[Tensor, " some"]
    slots: Int[Tensor, " some"]


class ChunkRingBuffer:
    """Slot indices of one ring buffer per row.

    A ring buffer has `num_chunks` slots. Each slot holds one chunk of `chunk_size` steps. A slot is an index
    in the flattened slots of all rows. One more slot at the end, the empty slot, holds zeros.
    """

    def __init__(self, time: Int[Tensor, " batch"], chunk_size: int, num_chunks: int) -> None:
        self.chunk_size, self.num_chunks = chunk_size, num_chunks
        self.time = time.numpy().copy()
        # Slots of each row in the order of their chunks, oldest first. The empty slot is last.
        self._slots = np.full((len(time), num_chunks + 1), len(time) * num_chunks)
        self._slots[:, :-1] = np.arange(len(time) * num_chunks).reshape(-1, num_chunks)
        self._next_order = np.append(np.roll(np.arange(num_chunks), -1), num_chunks)
        self._all_valid = torch.ones(len(time), 1, num_chunks, dtype=torch.bool)
        self._update()

    def reset(self, start: Bool[Tensor, " batch"] | None) -> Int[Tensor, " starts"] | None:
        """Reset the rows that start an episode and return their indices; None if no row starts one."""
        if start is None or not start.any():
            return None
        self.time[start.numpy()] = 0
        self._update()
        return start.nonzero()[:, 0]

    def advance(self) -> tuple[ReadableChunks | None, CompletedChunks | None]:
        """Advance one step. Return the chunks that this step may read and the chunks that it completes.

        Pass the completed chunks to `commit` after they are stored.
        """
        self.time += 1
        self.steps_until_full -= 1
        if self.steps_until_full >= 0:
            return self.readable, None
        full_rows = np.flatnonzero(self.time % self.chunk_size == 0)
        return self.readable, CompletedChunks(
            torch.from_numpy(full_rows), torch.from_numpy(self._slots[full_rows, 0])
        )

    def commit(self, chunks: CompletedChunks) -> None:
        """Mark completed chunks as readable. Call this method after the chunks are stored."""
        rows = chunks.rows.numpy()
        self._slots[rows] = self._slots[rows].take(self._next_order, axis=1)
        self._update()

    def slots(self, rows: Int[Tensor, " some"]) -> Int[Tensor, "some num_chunks"]:
        """Return all slots of these rows in the order of their chunks, oldest first."""
        return torch.from_numpy(self._slots)[rows, :-1]

    def empty_slots(self, time: Int[Tensor, " some"]) -> Bool[Tensor, "some num_chunks"]:
        """Return a mask in the order of `slots()`. It is True where a slot holds no chunk.

        `time` is the number of steps in each row's episode.
        """
        return torch.arange(self.num_chunks) < self.num_chunks - (time // self.chunk_size)[:, None]

    def _update(self) -> None:
        """Update `readable` and `steps_until_full`.

        `steps_until_full` is the number of steps before the next step that completes a chunk in any row.
        """
        self.readable = self._find_readable()
        self.steps_until_full = int(
            (self.chunk_size - 1 - self.time % self.chunk_size).min(initial=self.chunk_size)
        )

    def _find_readable(self) -> ReadableChunks | None:
        num_chunks_written = np.minimum(self.time // self.chunk_size, self.num_chunks)
        num_readable = int(num_chunks_written.max(initial=0))
        if num_readable == 0:
            return None
        slots = self._slots[:, self.num_chunks - num_readable :]
        if num_chunks_written.min() == num_readable:
            return ReadableChunks(num_readable, None, self._all_valid[:, :, :num_readable], None, slots)
        ages = np.arange(num_readable, 0, -1)
        readable = torch.from_numpy(ages <= num_chunks_written[:, None])
        any_readable = readable[:, -1:].contiguous()
        return ReadableChunks(num_readable, readable, readable[:, None], any_readable, slots)
