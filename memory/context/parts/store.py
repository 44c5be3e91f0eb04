"""Where chunks of keys and values lie that nothing is read of at the moment.

With the model, in memory, on disk.
"""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Place = Literal["model", "cpu", "disk"]


class Places(NamedTuple):
    """Where new tokens lie in their rows' texts: those that do, in no order."""

    row: Int[Tensor, " tokens"]
    column: Int[Tensor, " tokens"]
    time: Int[Tensor, " tokens"]
    longest: int
    """Tokens of the longest row."""

    @classmethod
    def of(cls, time: Int[Tensor, "batch length"]) -> Places:
        """Return the places of tokens of these times; of negative time they have none."""
        row, column = (time >= 0).nonzero(as_tuple=True)
        return cls(row, column, time[row, column], int(time.max()) + 1)


class ChunkStore:
    """A growing table `[chunks, batch, heads, chunk_size, width]`, on disk in a file that goes with it."""

    def __init__(self, place: Place, folder: str | None, like: Tensor, chunk_size: int) -> None:
        batch, heads, _, width = like.shape
        self._place, self._folder = place, folder
        self._device = like.device
        self._inner = (batch, heads, chunk_size, width)
        self._dtype = like.dtype
        self._table = self._allocate(0)

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return self._inner[0]

    @property
    def heads(self) -> int:
        """Heads of the table."""
        return self._inner[1]

    def write(self, new: Float[Tensor, "batch heads length width"], places: Places) -> None:
        """Put tokens at their places in their rows' texts."""
        size = self._inner[2]
        chunks = -(-places.longest // size)
        if chunks > len(self._table):
            on_disk = self._place == "disk" and len(self._table) > 0 and os.path.exists(self._path)
            grown = self._allocate(max(chunks, 2 * len(self._table)))
            # The longer file begins with the shorter one, unless somebody has tidied that away.
            if not on_disk:
                grown[: len(self._table)] = self._table
            self._table = grown
        here = places.time.to(self._table.device)
        token = new.detach().transpose(1, 2)[places.row, places.column].to(self._table.device)
        self._table[here // size, places.row.to(here.device), :, here % size] = token

    def fetch(self, chunks: Int[Tensor, "batch heads chosen"]) -> Float[Tensor, "batch heads tokens width"]:
        """Return the tokens of chosen chunks, on the model's device."""
        chunks = chunks.to(self._table.device)
        row = torch.arange(self._inner[0], device=chunks.device)[:, None, None]
        head = torch.arange(self._inner[1], device=chunks.device)[:, None]
        # Row by row of one long table: several times as fast as by three indices.
        index = (chunks * self._inner[0] + row) * self._inner[1] + head
        found = self._table.flatten(3).flatten(0, 2).index_select(0, index.flatten())
        return found.view(*chunks.shape[:2], -1, self._inner[3]).to(self._device, non_blocking=True)

    def all(self, chunks: int, first: int = 0) -> Float[Tensor, "batch heads tokens width"]:
        """Return the tokens of chunks from `first` to `chunks`, on the model's device."""
        return self._table[first:chunks].permute(1, 2, 0, 3, 4).flatten(2, 3).to(self._device)

    def reorder(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep the given rows, in their order."""
        old = self._table
        self._inner = (len(rows), *self._inner[1:])
        self._close()
        self._table = self._allocate(len(old))
        torch.index_select(old, 1, rows.to(old.device), out=self._table)

    def __deepcopy__(self, memo: dict[int, object]) -> ChunkStore:
        """Return a table of the same content, on disk in a file of its own."""
        twin = object.__new__(ChunkStore)
        twin._place, twin._folder, twin._device = self._place, self._folder, self._device
        twin._inner, twin._dtype = self._inner, self._dtype
        twin._table = twin._allocate(0)
        if len(self._table):
            twin._table = twin._allocate(len(self._table)).copy_(self._table)
        return twin

    # What is made in inference mode could not be written to outside of it.
    @torch.inference_mode(False)
    def _allocate(self, chunks: int) -> Tensor:
        shape = (chunks, *self._inner)
        if self._place != "disk":
            return torch.zeros(
                shape, dtype=self._dtype, device=self._device if self._place == "model" else "cpu"
            )
        if chunks == 0:
            handle, self._path = tempfile.mkstemp(prefix="scrubjay-", suffix=".chunks", dir=self._folder)
            os.close(handle)
            self._close = weakref.finalize(self, _remove, self._path)
            return torch.zeros(shape, dtype=self._dtype)
        if not os.path.exists(self._path):
            self._allocate(0)
        return torch.from_file(self._path, shared=True, size=math.prod(shape), dtype=self._dtype).view(shape)

    def _close(self) -> None:
        """Remove the file, if there is one."""


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.remove(path)
