"""Stores of chunks that go round in place: which may be read at a step, and where the next one goes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Shelves(NamedTuple):
    """What rows may read: of their last `most` chunks, the newest last, those that are `readable`."""

    most: int
    readable: Bool[Tensor, "batch most"] | None
    """None for all."""
    some: Bool[Tensor, "batch 1"] | None
    """Who may read any; None for all."""
    oldest: Int[np.ndarray, " batch"]
    """Where each row's oldest chunk lies."""


class Full(NamedTuple):
    """Rows whose chunk ends with a step, and where it goes."""

    rows: Int[Tensor, " some"]
    slots: Int[Tensor, " some"]


class Librarian:
    """Keeps the time of rows whose chunks of `chunk_size` steps go round in `num_chunks` slots each."""

    def __init__(self, time: Int[Tensor, " batch"], chunk_size: int, num_chunks: int) -> None:
        self.chunk_size, self.num_chunks = chunk_size, num_chunks
        self.time = time.numpy().copy()
        # Where each row's oldest chunk lies, and the next will.
        self.oldest = np.zeros_like(self.time)
        self._look()

    def begin(self, start: Bool[Tensor, " batch"] | None) -> Int[Tensor, " born"] | None:
        """Let rows begin an episode; return which, None for none."""
        if start is None or not start.any():
            return None
        self.time[start.numpy()] = 0
        self._look()
        return start.nonzero()[:, 0]

    def advance(self) -> tuple[Shelves | None, Full | None]:
        """Take a step; return what it may read, and whose chunk it completes: to be `put_away` after it."""
        self.time += 1
        self.until -= 1
        if self.until >= 0:
            return self.shelves, None
        full = np.flatnonzero(self.time % self.chunk_size == 0)
        return self.shelves, Full(torch.from_numpy(full), torch.from_numpy(self.oldest[full]))

    def put_away(self, full: Full) -> None:
        """Let the chunks that a step completed be read from now on."""
        rows = full.rows.numpy()
        self.oldest[rows] = (self.oldest[rows] + 1) % self.num_chunks
        self._look()

    def slots(self, rows: Int[Tensor, " some"]) -> Int[Tensor, "some num_chunks"]:
        """Return where the chunks of these rows lie, oldest first."""
        return (torch.from_numpy(self.oldest)[rows, None] + torch.arange(self.num_chunks)) % self.num_chunks

    def unwritten(self, time: Int[Tensor, " some"]) -> Bool[Tensor, "some num_chunks"]:
        """Return which of their chunks, oldest first, rows of this age do not have."""
        return torch.arange(self.num_chunks) < self.num_chunks - (time // self.chunk_size)[:, None]

    def _look(self) -> None:
        """See what may be read, and in how many steps that changes, unless an episode begins before."""
        self.shelves = self._shelves()
        self.until = int((self.chunk_size - 1 - self.time % self.chunk_size).min(initial=self.chunk_size))

    def _shelves(self) -> Shelves | None:
        written = np.minimum(self.time // self.chunk_size, self.num_chunks)
        most = int(written.max(initial=0))
        if most == 0:
            return None
        if written.min() == most:
            return Shelves(most, None, None, self.oldest)
        readable = torch.from_numpy(np.arange(most) >= most - written[:, None])
        return Shelves(most, readable, readable[:, -1:].contiguous(), self.oldest)
