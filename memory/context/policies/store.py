"""Storage for chunks of keys and values: on the model's device, in main memory, or on disk."""

from __future__ import annotations

import copy
import math
import os
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

StoreLocation = Literal["model", "cpu", "disk"]


def compute_chunk_capacity(chunks: int) -> int:
    """Return the capacity for `chunks` chunks: the next power of 2, or 0."""
    return 1 << (chunks - 1).bit_length() if chunks else 0


class TokenPlaces(NamedTuple):
    """Indices of the new tokens, padding excluded: batch `row`, `column` in the call, `time` in the text."""

    row: Int[Tensor, " tokens"]
    column: Int[Tensor, " tokens"]
    time: Int[Tensor, " tokens"]
    longest: int
    """Number of tokens of the longest text."""

    @classmethod
    def from_times(cls, time: Int[Tensor, "batch length"]) -> TokenPlaces:
        """Return the indices of the tokens with `time` at least 0; negative values mark padding."""
        row, column = (time >= 0).nonzero(as_tuple=True)
        return cls(row, column, time[row, column], int(time.max()) + 1)


class ChunkStore:
    """Growing table of chunks of shape `[batch * heads, chunks, chunk_size, width]`.

    On disk, the table is a file. The file is deleted with the store.
    """

    def __init__(self, place: StoreLocation, folder: str | None, like: Tensor, chunk_size: int) -> None:
        batch, heads, _, width = like.shape
        self._place, self._folder = place, folder
        self._device = like.device
        self.batch, self.heads, self._inner = batch, heads, (chunk_size, width)
        self._dtype = like.dtype
        self._set_table(self._allocate(0))

    def append(self, new: Float[Tensor, "batch heads length width"], first: int) -> None:
        """Write `new` tokens to the same token indices of every row, from index `first` on."""
        self._grow(first + new.shape[2])
        self._tokens.narrow(1, first, new.shape[2]).copy_(new.detach().flatten(0, 1))

    def write(self, new: Float[Tensor, "batch heads length width"], places: TokenPlaces) -> None:
        """Write the tokens of `new` to their rows, each token at its index in the text.

        `places` has these rows and indices. It omits padding, so padding is not written.
        """
        self._grow(places.longest)
        time, row = (place.to(self._table.device) for place in (places.time, places.row))
        token = new.detach().transpose(1, 2)[places.row, places.column].to(self._table.device)
        self._tokens.unflatten(0, (self.batch, self.heads))[row, :, time] = token

    def fetch(self, chunks: Int[Tensor, "rows selected"]) -> Float[Tensor, "rows selected chunk_size width"]:
        """Return the chunks with these indices, on the model's device."""
        # Indexing rows of one long table is several times as fast as using three indices.
        index = (chunks + self._first_chunks).flatten().to(self._table.device)
        chunk_table = self._chunks.index_select(0, index).view(*chunks.shape, *self._inner)
        return chunk_table.to(self._device, non_blocking=True)

    def read_range(self, first: int, last: int) -> Float[Tensor, "rows tokens width"]:
        """Return the tokens from `first` to `last - 1` of every row, on the model's device.

        The result is a view if the table is on the model's device.
        """
        return self._tokens.narrow(1, first, last - first).to(self._device)

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `rows`, in this order."""
        old = self._table.unflatten(0, (self.batch, self.heads))
        self.batch = len(rows)
        self._close()
        self._set_table(self._allocate(old.shape[2]))
        torch.index_select(old, 0, rows.to(old.device), out=self._table.unflatten(0, (len(rows), self.heads)))

    def _set_table(self, table: Tensor) -> None:
        """Use `table` as storage, and create a view of its tokens and a view of its chunks."""
        self._table, chunks = table, table.shape[1]
        self._tokens, self._chunks = table.flatten(1, 2), table.flatten(2).flatten(0, 1)
        self._first_chunks = chunks * torch.arange(len(table), device=self._device)[:, None]

    def _grow(self, tokens: int) -> None:
        """Allocate capacity for `tokens` tokens per row."""
        old, chunks = self._table, -(-tokens // self._inner[0])
        if chunks <= old.shape[1]:
            return
        table = self._allocate(compute_chunk_capacity(chunks))
        # The grown file starts with the old content, unless the file was deleted. The new place of a row lies
        # after all earlier rows, so the last rows are moved first.
        for row, old_row in reversed(list(zip(table, old, strict=True))):
            row[: len(old_row)] = old_row
        self._set_table(table)

    def shrink(self, chunks: int) -> None:
        """Free the capacity that `chunks` chunks do not need; a file keeps its size."""
        capacity = compute_chunk_capacity(chunks)
        if self._place != "disk" and capacity < self._table.shape[1]:
            self._set_table(self._allocate(capacity).copy_(self._table[:, :capacity]))

    def get_tensors(self, place: str | None = None) -> Iterator[Tensor]:
        """Yield the tensors in the memory of the model's device, or those offloaded to `place` instead."""
        if place is None:
            yield self._first_chunks
        if place == self._offload_place:
            yield self._table

    @property
    def _offload_place(self) -> str | None:
        """Place of the chunks; None for the memory of the model's device."""
        if self._place == "disk":
            return "disk"
        return None if self._table.device.type == self._device.type else "cpu"

    def __deepcopy__(self, memo: dict[int, object]) -> ChunkStore:
        """Return a copy of the store. On disk, the copy has a file of its own."""
        clone = copy.copy(self)
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
            self._close = weakref.finalize(self, Path(self._path).unlink, missing_ok=True)
            return torch.zeros(shape, dtype=self._dtype)
        if not os.path.exists(self._path):
            self._allocate(0)
        size = math.prod(shape)
        # If torch extends a file itself, it overwrites its first byte with a zero.
        os.truncate(self._path, size * self._dtype.itemsize)
        return torch.from_file(self._path, shared=True, size=size, dtype=self._dtype).view(shape)

    def _close(self) -> None:
        """Delete the file, if there is one."""
