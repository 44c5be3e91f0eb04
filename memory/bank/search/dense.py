"""The dense arm: how near every record that may be found is to a query, by exact cosines.

The embeddings lie in memory, numpy's, so that who embeds by a service need not import torch, or on a device
of torch (`memory/bank/search/matrix.py`). A scan reads them once.
"""

from __future__ import annotations

import math
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels.select import best
from scrubjay.memory.bank.file.damage import fact, unpacked
from scrubjay.memory.bank.search.matrix import DeviceMatrix, Matrix, with_room

if TYPE_CHECKING:
    import torch

_BATCH = 8192  # embeddings read at a time
_LEAST_DEVIATION = 1e-3  # below it cosines differ by rounding alone

Allows = Callable[[str, str], bool]
"""Whether records of a namespace and a kind may be found."""


class Scan(ABC):
    """What embeddings know about one query."""

    def __init__(self, sample: Float[np.ndarray, "S"], count: int) -> None:
        """Take cosines to measure others by, of `count` records that may be found."""
        self.count = count
        """How many records may be found."""
        sample = sample.astype(np.float64, copy=False)
        self._mean = float(sample.mean()) if len(sample) else 0.0
        # In one pass, which is exact enough of numbers from -1 to 1.
        square = sample @ sample / len(sample) if len(sample) else 1.0
        self._deviation = math.sqrt(max(square - self._mean**2, 0.0))

    def deviations(self, cosines: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return by how many standard deviations cosines are above those of all records on average."""
        return (cosines - self._mean) / max(self._deviation, _LEAST_DEVIATION)

    @abstractmethod
    def cosines(self, numbers: Int[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return the cosines of records that may be found, NaN for one without an embedding."""

    @abstractmethod
    def nearest(self, count: int) -> Int[np.ndarray, "K"]:
        """Return the numbers of up to `count` records, the nearest first, of equals the newest."""


class DenseIndex(ABC):
    """What finds records by a query's embedding."""

    @abstractmethod
    def refresh(self, connection: sqlite3.Connection) -> None:
        """Bring the index up to the state of the file that `connection` sees."""

    @abstractmethod
    def scan(self, query: Float[np.ndarray, "D"], allows: Allows) -> Scan:
        """Return how near records are to a query of length 1."""


class ExactScan(Scan):
    """Cosines of all records that may be found, their numbers ascending."""

    def __init__(self, numbers: Int[np.ndarray, "N"], cosines: Float[np.ndarray, "N"]) -> None:
        self._numbers, self._cosines = numbers, cosines.astype(np.float64)
        super().__init__(self._cosines, len(cosines))

    def cosines(self, numbers: Int[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return the cosines of records that may be found, NaN for one without an embedding."""
        if not self.count:
            return np.full(len(numbers), np.nan)
        places = np.minimum(np.searchsorted(self._numbers, numbers), self.count - 1)
        return np.where(self._numbers[places] == numbers, self._cosines[places], np.nan)

    def nearest(self, count: int) -> Int[np.ndarray, "K"]:
        """Return the numbers of up to `count` records, the nearest first, of equals the newest."""
        return self._numbers[::-1][best(self._cosines[::-1], count)]


class VectorIndex(DenseIndex):
    """The embeddings of a bank, kept up with its file, whoever writes it.

    They lie in numpy's memory, or on a device of torch.

    Those of records with numbers above `after`.
    """

    def __init__(self, dimension: int, device: torch.device | None = None, after: int = 0) -> None:
        self._dimension, self._after = dimension, after
        self._count, self._newest, self._deletions = 0, after, 0
        self._numbers = np.zeros(0, dtype=np.int64)
        self._matrix = Matrix(dimension) if device is None else DeviceMatrix(dimension, device)
        self._scope_of_row = np.zeros(0, dtype=np.int64)
        self._scopes: dict[tuple[str, str], int] = {}

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Read what was written since; what was deleted goes."""
        deletions = fact(connection, "deletions")
        if deletions != self._deletions:
            self._drop_missing(connection)
            self._deletions = deletions
        (highest,) = connection.execute("SELECT MAX(number) FROM vectors").fetchone()
        if highest is not None and highest > self._newest:
            self._reserve(self._count + highest - self._newest)
        rows = connection.execute(
            "SELECT number, vector, namespace, kind FROM vectors JOIN records USING (number) "
            "WHERE number > ? ORDER BY number",
            (self._newest,),
        )
        while batch := rows.fetchmany(_BATCH):
            self._append(batch)

    def scan(self, query: Float[np.ndarray, "D"], allows: Allows) -> ExactScan:
        """Return how near records are to a query of length 1."""
        numbers, allowed = self._numbers[: self._count], [allows(*scope) for scope in self._scopes]
        if all(allowed):
            return ExactScan(numbers, self._matrix.first_scores(query, self._count))
        rows = np.flatnonzero(np.array(allowed)[self._scope_of_row[: self._count]])
        return ExactScan(numbers[rows], self._matrix.scores(query, rows))

    def __len__(self) -> int:
        return self._count

    def _reserve(self, rows: int) -> None:
        # At once, as to grow by steps needs room for both, twice the whole; what is never filled takes no
        # memory.
        self._numbers = with_room(self._numbers, rows)
        self._matrix.reserve(rows)
        self._scope_of_row = with_room(self._scope_of_row, rows)

    def _append(self, batch: list[tuple[int, bytes, str, str]]) -> None:
        rows = slice(self._count, self._count + len(batch))
        numbers, blobs, namespaces, kinds = zip(*batch, strict=True)
        self._numbers[rows] = numbers
        self._matrix[rows] = unpacked(list(blobs), self._dimension)
        self._scope_of_row[rows] = [
            self._scopes.setdefault(scope, len(self._scopes)) for scope in zip(namespaces, kinds, strict=True)
        ]
        self._count, self._newest = rows.stop, numbers[-1]

    def _drop_missing(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute("SELECT number FROM vectors WHERE number > ?", (self._after,))
        there = np.array([number for (number,) in rows], dtype=np.int64)
        kept = np.flatnonzero(np.isin(self._numbers[: self._count], there))
        self._matrix.keep(kept)
        self._numbers, self._scope_of_row = self._numbers[kept], self._scope_of_row[kept]
        self._count = len(kept)


def stored_dimension(connection: sqlite3.Connection) -> int | None:
    """Return the length of the bank's embeddings, None while it has none."""
    return fact(connection, "dimension")


def unit_vectors(vectors: list[list[float]], count: int) -> Float[np.ndarray, "count dimension"]:
    """Return embeddings at length 1.

    Raises ValueError unless they are `count` finite vectors of one length.
    """
    if len(vectors) != count or len({len(vector) for vector in vectors}) != 1:
        raise ValueError(
            f"{count} texts got {len(vectors)} embeddings; each text needs one, all equally long"
        )
    array = np.array(vectors, dtype=np.float32)
    if not np.isfinite(array).all():
        raise ValueError("an embedding is not finite; check the model that made it")
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
