"""Storage for chunks of keys and values: on the model's device, in main memory, or on disk."""

from __future__ import annotations

import math
import os
import tempfile
import weakref
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

StoreLocation = Literal["model", "cpu", "disk"]


class TokenPlaces(NamedTuple):
    """Indices of new tokens that are not padding, in any order."""

    row: Int[Tensor, " tokens"]
    column: Int[Tensor, " tokens"]
    time: Int[Tensor, " tokens"]
    longest: int
    """Token count of the longest row."""

    @classmethod
    def from_times(cls, time: Int[Tensor, "batch length"]) -> TokenPlaces:
        """Return the indices of tokens with these times; negative times are padding."""
        row, column = (time >= 0).nonzero(as_tuple=True)
        return cls(row, column, time[row, column], int(time.max()) + 1)


class ChunkStore:
    """Growing table `[rows, chunks, chunk_size, width]`; on disk it is a file deleted with the store.

    Its rows are the heads of each batch row.
    """

    def __init__(self, place: StoreLocation, folder: str | None, like: Tensor, chunk_size: int) -> None:
        batch, heads, _, width = like.shape
        self._place, self._folder = place, folder
        self._device = like.device
        self.batch, self.heads, self._inner = batch, heads, (chunk_size, width)
        self._dtype = like.dtype
        self._set_table(self._allocate(0))

    def append(self, new: Float[Tensor, "batch heads length width"], first: int) -> None:
        """Write tokens from index `first` on, with equal indices in every row."""
        self._grow(first + new.shape[2])
        self._tokens.narrow(1, first, new.shape[2]).copy_(new.detach().flatten(0, 1))

    def write(self, new: Float[Tensor, "batch heads length width"], places: TokenPlaces) -> None:
        """Write tokens at their indices in each row."""
        self._grow(places.longest)
        time, row = (place.to(self._table.device) for place in (places.time, places.row))
        token = new.detach().transpose(1, 2)[places.row, places.column].to(self._table.device)
        self._tokens.unflatten(0, (self.batch, self.heads))[row, :, time] = token

    def fetch(self, chunks: Int[Tensor, "rows selected"]) -> Float[Tensor, "rows selected chunk_size width"]:
        """Return these chunks on the model's device."""
        # Indexing rows of one long table is several times as fast as using three indices.
        index = (chunks.to(self._table.device) + self._first_chunks).flatten()
        chunk_table = self._chunks.index_select(0, index).view(*chunks.shape, *self._inner)
        return chunk_table.to(self._device, non_blocking=True)

    def read_range(self, first: int, last: int) -> Float[Tensor, "rows tokens width"]:
        """Return the tokens from `first` to `last` on the model's device; a view if they are stored there."""
        return self._tokens.narrow(1, first, last - first).to(self._device)

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select these batch rows, in this order."""
        old = self._table.unflatten(0, (self.batch, self.heads))
        self.batch = len(rows)
        self._close()
        self._set_table(self._allocate(old.shape[2]))
        torch.index_select(old, 0, rows.to(old.device), out=self._table.unflatten(0, (len(rows), self.heads)))

    def _set_table(self, table: Tensor) -> None:
        """Set the table and the views of it used for reading."""
        self._table, chunks = table, table.shape[1]
        self._tokens, self._chunks = table.flatten(1, 2), table.flatten(2).flatten(0, 1)
        self._first_chunks = chunks * torch.arange(len(table), device=table.device)[:, None]

    def _grow(self, tokens: int) -> None:
        """Allocate capacity for this many tokens."""
        old, chunks = self._table, -(-tokens // self._inner[0])
        if chunks <= old.shape[1]:
            return
        table = self._allocate(max(chunks, 2 * old.shape[1]))
        # The grown file starts with the old content, unless the file was deleted. The new place of a row lies
        # after all earlier rows, so the last rows are moved first.
        for row, old_row in reversed(list(zip(table, old, strict=True))):
            row[: len(old_row)] = old_row
        self._set_table(table)

    def __deepcopy__(self, memo: dict[int, object]) -> ChunkStore:
        """Return a copy of the table; on disk it gets its own file."""
        clone = object.__new__(ChunkStore)
        clone._place, clone._folder, clone._device = self._place, self._folder, self._device
        clone.batch, clone.heads, clone._inner, clone._dtype = (
            self.batch,
            self.heads,
            self._inner,
            self._dtype,
        )
        clone._set_table(clone._allocate(0))
        if self._table.shape[1]:
            clone._set_table(clone._allocate(self._table.shape[1]).copy_(self._table))
        return clone

    # Tensors created in inference mode cannot be written in place outside of it.
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
        # If torch extends a file itself, it overwrites its first byte with a zero.
        os.truncate(self._path, size * self._dtype.itemsize)
        return torch.from_file(self._path, shared=True, size=size, dtype=self._dtype).view(shape)

    def _close(self) -> None:
        """Delete the file, if there is one."""


def _remove(path: str) -> None:
    if os.path.exists(path):
        os.remove(path)
