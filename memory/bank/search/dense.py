"""Dense search: exact cosine similarities of all accepted records to a query.

NumPy holds the embeddings, so that a bank with a remote embedding service does not import torch. If a torch
device is chosen, that device holds them. Inputs and outputs are NumPy arrays; `scrubjay.kernels.row_scores`
scans the rows on their device and reads each embedding once.
"""

from __future__ import annotations

import functools
import math
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels import row_scores
from scrubjay.kernels.select import best
from scrubjay.memory.bank.file.damage import read_fact, unpack_vectors

if TYPE_CHECKING:
    import torch


class Matrix:
    """Matrix with rows of `dimension` numbers, held on a torch device, or by NumPy if `device` is None."""

    def __init__(self, dimension: int, device: torch.device | None = None) -> None:
        self._device = device
        self._rows = self._to_device(np.zeros((0, dimension), dtype=np.float32))

    def reserve(self, rows: int) -> None:
        """Reserve memory for at least `rows` rows, filled with zeros."""
        zeros: Callable[..., Any] = np.zeros
        if self._device is not None:
            import torch

            zeros = functools.partial(torch.zeros, device=self._device)
        self._rows = reserve_rows(self._rows, rows, zeros)

    def __setitem__(self, rows: slice | Int[np.ndarray, "R"], vectors: Float[np.ndarray, "R D"]) -> None:
        self._rows[self._to_device(rows)] = self._to_device(vectors)

    def keep(self, rows: Int[np.ndarray, "R"]) -> None:
        """Drop all rows that are not in `rows`, and release the reserved memory."""
        self._rows = self._rows[self._to_device(rows)]

    def scores(
        self, query: Float[np.ndarray, "D"], count: int, rows: Int[np.ndarray, "R"] | None = None
    ) -> Float[np.ndarray, "R"]:
        """Return the dot products of a query with the first `count` rows, or with some of them (`rows`)."""
        scores = row_scores(self._to_device(query[None]), self._rows[:count], self._to_device(rows))[0]
        return scores if self._device is None else scores.cpu().numpy()

    def _to_device(self, array: Any) -> Any:
        if self._device is None or not isinstance(array, np.ndarray):
            return array
        import torch

        return torch.from_numpy(array).to(self._device)


def reserve_rows(array: Any, rows: int, zeros: Callable[..., Any] = np.zeros) -> Any:
    """Return the array or tensor with at least `rows` rows.

    If `array` is too short, it is copied to an array with at least 1.5 times as many rows, so that copies
    stay rare.
    """
    if rows <= len(array):
        return array
    larger = zeros((max(rows, len(array) * 3 // 2, 64), *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


_BATCH = 8192  # embeddings read at a time
_MIN_DEVIATION = 1e-3  # cosines differ by rounding only below it

ScopePredicate = Callable[[str, str], bool]
"""Predicate on a stored namespace and a kind: True if a search accepts such records."""


class Scan(ABC):
    """Similarities of records to one query."""

    def __init__(self, sample: Float[np.ndarray, "S"], count: int) -> None:
        """Compute mean and standard deviation of the cosines in a sample of the `count` accepted records."""
        self.count = count
        """Number of accepted records."""
        sample = sample.astype(np.float64, copy=False)
        self.mean = float(sample.mean()) if len(sample) else 0.0
        """Mean of the cosines of the accepted records."""
        # One pass is accurate enough for numbers from -1 to 1.
        square = sample @ sample / len(sample) if len(sample) else 1.0
        self.deviation = math.sqrt(max(square - self.mean**2, 0.0))
        """Standard deviation of these cosines."""

    def deviations(self, cosines: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return the z-scores of cosines in the distribution of the cosines of all accepted records."""
        return (cosines - self.mean) / max(self.deviation, _MIN_DEVIATION)

    @abstractmethod
    def cosines(self, numbers: Int[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return the cosine of the query and each of these records, NaN for a record without an embedding."""

    @abstractmethod
    def nearest(self, count: int) -> Int[np.ndarray, "K"]:
        """Return the record numbers of up to `count` nearest records, best first; ties: newest first."""


class ExactScan(Scan):
    """Exact scan: cosines of all accepted records, in ascending order of their numbers."""

    def __init__(self, numbers: Int[np.ndarray, "N"], cosines: Float[np.ndarray, "N"]) -> None:
        self._numbers, self._cosines = numbers, cosines.astype(np.float64)
        super().__init__(self._cosines, len(cosines))

    def cosines(self, numbers: Int[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return the cosine of the query and each of these records, NaN for a record without an embedding."""
        if not self.count:
            return np.full(len(numbers), np.nan)
        places = np.minimum(np.searchsorted(self._numbers, numbers), self.count - 1)
        return np.where(self._numbers[places] == numbers, self._cosines[places], np.nan)

    def nearest(self, count: int) -> Int[np.ndarray, "K"]:
        """Return the record numbers of up to `count` nearest records, best first; ties: newest first."""
        return self._numbers[::-1][best(self._cosines[::-1], count)]


class VectorIndex:
    """Exact index of the records with numbers above `after`. It includes records that other processes write.

    The embeddings are in a NumPy array or on a torch device.
    """

    def __init__(self, dimension: int, device: torch.device | None = None, after: int = 0) -> None:
        self._dimension, self._after = dimension, after
        self._count, self._newest, self._deletions = 0, after, 0
        self._numbers = np.zeros(0, dtype=np.int64)
        self._matrix = Matrix(dimension, device)
        self._scope_of_row = np.zeros(0, dtype=np.int64)
        self._scopes: dict[tuple[str, str], int] = {}

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Read new records and drop deleted ones."""
        deletions = read_fact(connection, "deletions")
        if deletions != self._deletions:
            self._drop_missing(connection)
            self._deletions = deletions
        (highest,) = connection.execute("SELECT MAX(number) FROM vectors").fetchone()
        if highest is not None and highest > self._newest:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (page_size,) = connection.execute("PRAGMA page_size").fetchone()
            most = pages * page_size // (4 * max(self._dimension, 1))  # the numbers may have gaps of any size
            self._reserve(self._count + min(highest - self._newest, most))
        rows = connection.execute(
            "SELECT number, vector, namespace, kind FROM vectors JOIN records USING (number) "
            "WHERE number > ? ORDER BY number",
            (self._newest,),
        )
        while batch := rows.fetchmany(_BATCH):
            self._append(batch)

    def scan(self, query: Float[np.ndarray, "D"], allows: ScopePredicate) -> ExactScan:
        """Return the similarities of records to a query vector of length 1."""
        numbers, accepted_scopes = self._numbers[: self._count], [allows(*scope) for scope in self._scopes]
        if all(accepted_scopes):
            return ExactScan(numbers, self._matrix.scores(query, self._count))
        rows = np.flatnonzero(np.array(accepted_scopes)[self._scope_of_row[: self._count]])
        return ExactScan(numbers[rows], self._matrix.scores(query, self._count, rows))

    def __len__(self) -> int:
        return self._count

    def _reserve(self, rows: int) -> None:
        # Reserve all rows at once, since growing in steps holds two copies. Reserved rows that stay empty use
        # no physical memory.
        self._numbers = reserve_rows(self._numbers, rows)
        self._matrix.reserve(rows)
        self._scope_of_row = reserve_rows(self._scope_of_row, rows)

    def _append(self, batch: list[tuple[int, bytes, str, str]]) -> None:
        rows = slice(self._count, self._count + len(batch))
        numbers, blobs, namespaces, kinds = zip(*batch, strict=True)
        self._numbers[rows] = numbers
        self._matrix[rows] = unpack_vectors(list(blobs), self._dimension)
        self._scope_of_row[rows] = [
            self._scopes.setdefault(scope, len(self._scopes)) for scope in zip(namespaces, kinds, strict=True)
        ]
        self._count, self._newest = rows.stop, numbers[-1]

    def _drop_missing(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute("SELECT number FROM vectors WHERE number > ?", (self._after,))
        stored_numbers = np.array([number for (number,) in rows], dtype=np.int64)
        retained_rows = np.flatnonzero(np.isin(self._numbers[: self._count], stored_numbers))
        self._matrix.keep(retained_rows)
        self._numbers, self._scope_of_row = self._numbers[retained_rows], self._scope_of_row[retained_rows]
        self._count = len(retained_rows)
