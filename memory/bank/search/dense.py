"""The dense arm: embeddings in memory, scored first by chunk, then inside the chosen chunks, as HCAM does.

Lampinen et al. 2021, arXiv 2105.14039: a chunk's summary is the mean of what it holds; attention goes to the
chunks whose summaries score best, and only there to single memories. Here both scores are cosines; inside,
they are told in standard deviations of all that are looked at, as one model's cosines lie from 0 to 1 and
another's above 0.7.

Chunks are chosen by `scrubjay.kernels.choose_chunks`, as everywhere. Scores are exact scans: numpy's, so that
who embeds by a service need not import torch, or on a device of torch (`memory/bank/search/matrix.py`).
"""

from __future__ import annotations

import math
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels.select import best
from scrubjay.memory.bank.file.damage import fact, unpacked
from scrubjay.memory.bank.search.choice import best_chunks
from scrubjay.memory.bank.search.matrix import DeviceMatrix, Matrix, with_room
from scrubjay.memory.bank.search.shares import PORTIONS, lent, shares

if TYPE_CHECKING:
    import torch

_TEMPERATURE = 1.5  # standard deviations
_SHARED_WORD = 0.75
_BATCH = 8192  # embeddings read or added up at a time


class Near(NamedTuple):
    """A record near a query."""

    number: int
    """Its number."""
    cosine: float
    """Its own cosine."""
    score: float
    """What it has of one whole, and what neighbours in its chunk lend."""
    chunk_rank: int | None
    """Place of its chunk among the chosen summaries, from 1; None if it was not chosen."""


class Nearby(NamedTuple):
    """What embeddings know about a query."""

    records: list[Near]
    """The nearest, best first, and behind them what was asked for by number."""
    excess: float
    """By how many standard deviations the nearest is nearer than the nearest of as many unrelated ones would
    be."""


class Looked(NamedTuple):
    """Records that a query is compared with, those of a chunk together and in order."""

    numbers: Int[np.ndarray, "R"]
    """Their numbers."""
    chunks: Int[np.ndarray, "R"]
    """What is the same for those of one chunk."""
    cosines: Float[np.ndarray, "R"]
    """How near they are."""
    places: Int[np.ndarray, "R"]
    """Place of their chunk among those chosen, from 1; 0 if it was not."""


class DenseIndex(ABC):
    """What finds records by a query's embedding: chunks first, which it chooses, then records inside them."""

    @abstractmethod
    def refresh(self, connection: sqlite3.Connection) -> None:
        """Bring the index up to the state of the file that `connection` sees."""

    @abstractmethod
    def look(
        self,
        query: Float[np.ndarray, "D"],
        allows: Callable[[str, str], bool],
        top_chunks: int,
        also: Sequence[int],
    ) -> Looked:
        """Return all records of the `top_chunks` best chunks that are allowed, and those of `also`."""

    def nearest(
        self,
        query: np.ndarray,
        allows: Callable[[str, str], bool],
        top_chunks: int,
        limit: int,
        also: Sequence[int],
        bm25: Mapping[int, float],
    ) -> Nearby:
        """Return up to `limit` records of the `top_chunks` best chunks, best first.

        Args:
            query: The question's embedding, of length 1.
            allows: Whether records of a namespace and kind may be returned.
            top_chunks: Chunks that are looked into.
            limit: Records at most, those of `also` aside.
            also: Numbers of records that come behind, whatever their chunk.
            bm25: Scores by words; a record that has one counts about twice.
        """
        numbers, chunks, fine, places = self.look(query, allows, top_chunks, also)
        if not len(numbers):
            return Nearby([], 0.0)
        z = (fine - fine.mean()) / max(float(fine.std()), 1e-6)
        shared = np.minimum([bm25.get(number, 0.0) for number in numbers.tolist()], 1.0)
        score = _with_neighbours(shares(z / _TEMPERATURE + _SHARED_WORD * shared, 1.0), chunks)
        chosen = best(np.where(places > 0, score, -np.inf), min(limit, int((places > 0).sum())))
        behind = np.flatnonzero(np.isin(numbers, also))
        records = [
            Near(
                number=int(numbers[i]),
                cosine=float(fine[i]),
                score=float(score[i]),
                chunk_rank=int(places[i]) or None,
            )
            for i in [*chosen, *np.setdiff1d(behind, chosen)]
        ]
        return Nearby(records, float(z.max()) - math.sqrt(2 * math.log(len(z))))


class VectorIndex(DenseIndex):
    """The embeddings of a bank, kept up with its file, whoever writes it.

    They lie in numpy's memory, or on a device of torch.

    Those of records with numbers above `after`.
    """

    def __init__(self, dimension: int, device: torch.device | None = None, after: int = 0) -> None:
        self._dimension, self._device, self._after = dimension, device, after
        self._clear()

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
            "SELECT number, vector, chunk, namespace, kind FROM vectors JOIN records USING (number) "
            "WHERE number > ? ORDER BY number",
            (self._newest,),
        )
        while batch := rows.fetchmany(_BATCH):
            self._append(batch)

    def look(
        self,
        query: Float[np.ndarray, "D"],
        allows: Callable[[str, str], bool],
        top_chunks: int,
        also: Sequence[int],
    ) -> Looked:
        """Return all records of the `top_chunks` best chunks that are allowed, and those of `also`."""
        allowed = np.array([allows(*scope) for scope in self._scopes], dtype=bool)
        chunks = len(self._chunks)
        place = np.zeros(chunks, dtype=np.int64)
        allowed_chunks = allowed[self._scope_of_chunk[:chunks]] & (self._sizes[:chunks] > 0)
        cosines = self._sums.first_scores(query, chunks) / self._norms[:chunks]
        chosen = best_chunks(cosines, top_chunks, allowed_chunks)
        place[chosen] = np.arange(1, len(chosen) + 1)
        known = np.searchsorted(self._numbers[: self._count], also)
        known = known[known < self._count]
        known = known[np.isin(self._numbers[known], also)]
        looked = place > 0
        looked[self._chunk_of_row[known]] = True
        rows = np.flatnonzero(looked[self._chunk_of_row[: self._count]])
        rows = rows[np.argsort(self._chunk_of_row[rows], kind="stable")]
        chunk_of_row = self._chunk_of_row[rows]
        return Looked(
            self._numbers[rows], chunk_of_row, self._matrix.scores(query, rows), place[chunk_of_row]
        )

    def closest(
        self, query: Float[np.ndarray, "D"], count: int
    ) -> tuple[Int[np.ndarray, "K"], Float[np.ndarray, "K"]]:
        """Return numbers and cosines of the nearest records of any chunk, the best first."""
        norms, allowed = np.ones(self._count, dtype=np.float32), np.ones(self._count, dtype=bool)
        rows = self._matrix.nearest(query, count, norms, allowed)
        return self._numbers[rows], self._matrix.scores(query, rows)

    def __len__(self) -> int:
        return self._count

    def _clear(self) -> None:
        self._count, self._newest, self._deletions = 0, self._after, 0
        self._numbers = np.zeros(0, dtype=np.int64)
        self._matrix = self._empty()
        self._chunk_of_row = np.zeros(0, dtype=np.int64)
        self._chunks: dict[int, int] = {}
        self._sums = self._empty()
        self._norms = np.zeros(0, dtype=np.float32)
        self._sizes = np.zeros(0, dtype=np.int64)
        self._scope_of_chunk = np.zeros(0, dtype=np.int64)
        self._scopes: dict[tuple[str, str], int] = {}

    def _reserve(self, rows: int) -> None:
        # At once, as to grow by steps needs room for both, twice the whole; what is never filled takes no
        # memory.
        self._numbers = with_room(self._numbers, rows)
        self._matrix.reserve(rows)
        self._chunk_of_row = with_room(self._chunk_of_row, rows)

    def _append(self, batch: list[tuple[int, bytes, int, str, str]]) -> None:
        first, last = self._count, self._count + len(batch)
        rows = slice(first, last)
        numbers, blobs, chunks, namespaces, kinds = zip(*batch, strict=True)
        self._numbers[rows] = numbers
        vectors = unpacked(list(blobs), self._dimension)
        self._matrix[rows] = vectors
        self._chunk_of_row[rows] = [self._chunks.setdefault(chunk, len(self._chunks)) for chunk in chunks]
        self._sums.reserve(len(self._chunks))
        self._norms = with_room(self._norms, len(self._chunks))
        self._sizes = with_room(self._sizes, len(self._chunks))
        self._scope_of_chunk = with_room(self._scope_of_chunk, len(self._chunks))
        self._scope_of_chunk[self._chunk_of_row[rows]] = [
            self._scopes.setdefault(scope, len(self._scopes)) for scope in zip(namespaces, kinds, strict=True)
        ]
        self._summarise(self._chunk_of_row[rows], vectors)
        self._count, self._newest = last, numbers[-1]

    def _drop_missing(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute("SELECT number FROM vectors WHERE number > ?", (self._after,))
        there = np.array([number for (number,) in rows], dtype=np.int64)
        kept = np.flatnonzero(np.isin(self._numbers[: self._count], there))
        self._matrix.keep(kept)
        self._numbers, self._chunk_of_row = self._numbers[kept], self._chunk_of_row[kept]
        self._count = len(kept)
        self._sums, self._norms[:], self._sizes[:] = self._empty(), 1, 0
        self._sums.reserve(len(self._chunks))
        for first in range(0, self._count, _BATCH):
            rows = slice(first, first + _BATCH)
            self._summarise(self._chunk_of_row[rows], self._matrix[rows])

    def _summarise(self, chunks: np.ndarray, vectors: np.ndarray) -> None:
        """Add vectors to the sums of their chunks."""
        if not len(chunks):
            return
        order = np.argsort(chunks, kind="stable")
        touched, firsts = np.unique(chunks[order], return_index=True)
        sums = self._sums[touched] + np.add.reduceat(vectors[order], firsts)
        self._sums[touched] = sums
        self._sizes[touched] += np.diff([*firsts, len(chunks)])
        self._norms[touched] = np.maximum(np.linalg.norm(sums, axis=1), 1e-12)

    def _empty(self) -> Matrix:
        return (
            Matrix(self._dimension) if self._device is None else DeviceMatrix(self._dimension, self._device)
        )


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


def _with_neighbours(share: np.ndarray, chunks: np.ndarray) -> np.ndarray:
    """Return shares with what neighbours in the chunk lend; a chunk's records stand together, in order."""
    score, given = share.copy(), lent(share)
    for distance, portion in enumerate(PORTIONS, 1):
        together = np.where(chunks[distance:] == chunks[:-distance], portion, 0)
        score[distance:] += together * given[:-distance]
        score[:-distance] += together * given[distance:]
    return score
