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
    """A growing table `[rows, chunks, chunk_size, width]`, on disk in a file that goes with it.

    Its rows are those of the batch and in each of them those of heads.
    """

    def __init__(self, place: Place, folder: str | None, like: Tensor, chunk_size: int) -> None:
        batch, heads, _, width = like.shape
        self._place, self._folder = place, folder
        self._device = like.device
        self.batch, self.heads, self._inner = batch, heads, (chunk_size, width)
        self._dtype = like.dtype
        self._lay(self._allocate(0))

    def append(self, new: Float[Tensor, "batch heads length width"], first: int) -> None:
        """Put tokens, the same ones in every row's text, `first` and those after it, at their places."""
        self._grow(first + new.shape[2])
        self._tokens.narrow(1, first, new.shape[2]).copy_(new.detach().flatten(0, 1))

    def write(self, new: Float[Tensor, "batch heads length width"], places: Places) -> None:
        """Put tokens at their places in their rows' texts."""
        self._grow(places.longest)
        here, row = (place.to(self._table.device) for place in (places.time, places.row))
        token = new.detach().transpose(1, 2)[places.row, places.column].to(self._table.device)
        self._tokens.unflatten(0, (self.batch, self.heads))[row, :, here] = token

    def fetch(self, chunks: Int[Tensor, "rows chosen"]) -> Float[Tensor, "rows chosen chunk_size width"]:
        """Return chosen chunks, on the model's device."""
        # Row by row of one long table: several times as fast as by three indices.
        index = (chunks.to(self._table.device) + self._begins).flatten()
        found = self._wholes.index_select(0, index).view(*chunks.shape, *self._inner)
        return found.to(self._device, non_blocking=True)

    def run(self, first: int, last: int) -> Float[Tensor, "rows tokens width"]:
        """Return tokens from `first` to `last`, on the model's device: where they lie, if they lie there."""
        return self._tokens.narrow(1, first, last - first).to(self._device)

    def reorder(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep the given rows, in their order."""
        old = self._table.unflatten(0, (self.batch, self.heads))
        self.batch = len(rows)
        self._close()
        self._lay(self._allocate(old.shape[2]))
        torch.index_select(old, 0, rows.to(old.device), out=self._table.unflatten(0, (len(rows), self.heads)))

    def _lay(self, table: Tensor) -> None:
        """Take a table for its own, and note how it looks when it is read."""
        self._table, chunks = table, table.shape[1]
        self._tokens, self._wholes = table.flatten(1, 2), table.flatten(2).flatten(0, 1)
        self._begins = chunks * torch.arange(len(table), device=table.device)[:, None]

    def _grow(self, tokens: int) -> None:
        """Make room for so many tokens."""
        old, chunks = self._table, -(-tokens // self._inner[0])
        if chunks <= old.shape[1]:
            return
        grown = self._allocate(max(chunks, 2 * old.shape[1]))
        # The longer file begins with the shorter one, unless somebody has tidied that away. A row's new place
        # lies behind all rows before it, and so the last are moved first.
        for row, kept in reversed(list(zip(grown, old, strict=True))):
            row[: len(kept)] = kept
        self._lay(grown)

    def __deepcopy__(self, memo: dict[int, object]) -> ChunkStore:
        """Return a table of the same content, on disk in a file of its own."""
        twin = object.__new__(ChunkStore)
        twin._place, twin._folder, twin._device = self._place, self._folder, self._device
        twin.batch, twin.heads, twin._inner, twin._dtype = self.batch, self.heads, self._inner, self._dtype
        twin._lay(twin._allocate(0))
        if self._table.shape[1]:
            twin._lay(twin._allocate(self._table.shape[1]).copy_(self._table))
        return twin

    # What is made in inference mode could not be written to outside of it.
    @torch.inference_mode(False)
    def _allocate(self, chunks: int) -> Tensor:
        shape = (self.batch * self.heads, chunks, *self._inner)
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
        size = math.prod(shape)
        # Where torch makes a file longer itself, it writes a zero over its first byte.
        os.truncate(self._path, size * self._dtype.itemsize)
        return torch.from_file(self._path, shared=True, size=size, dtype=self._dtype).view(shape)

    def _close(self) -> None:
        """Remove the file, if there is one."""


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.remove(path)
