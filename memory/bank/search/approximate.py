"""The dense arm of a bank too large to hold: an approximate index in files, embeddings in SQLite.

The nearest records are found in segments mapped into memory (`memory/bank/search/segments.py`), those too new
for a segment by an exact scan; the embeddings of those found are read and scored exactly. What records are on
average is told by a few thousand of them. Where few of all may be found, they are read.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels.select import best
from scrubjay.memory.bank.file.damage import fact, unpacked
from scrubjay.memory.bank.file.store import Store, select
from scrubjay.memory.bank.search.dense import Allows, DenseIndex, ExactScan, Scan, VectorIndex
from scrubjay.memory.bank.search.segments import SEGMENT, Segments, last_record, require_usearch

_SAMPLE = 4096  # records at most, and more than half as many, that tell what all are on average
_FEW = 128  # of the sample: so few of all may be found that they are read
_LEAST = 64  # asked of each segment, however many there are
_BATCH = 8192  # embeddings read at a time


class ApproximateIndex(DenseIndex):
    """An index in files beside the bank, kept up with it, whoever writes it.

    Raises ModuleNotFoundError without usearch.
    """

    def __init__(self, store: Store, dimension: int) -> None:
        require_usearch()
        self._store, self._dimension = store, dimension
        self._segments = Segments(store, dimension)
        self._graphs: list[Any] = []
        self._tail = VectorIndex(dimension)
        self._covered = 0
        self._sample = _Sample(dimension)

    def catch_up(self) -> Iterator[tuple[int, int]]:
        """Build the segments that are missing, and yield how many records' numbers are indexed, of how many.

        Outside a transaction, as it takes half a millisecond of the processor a record.
        """
        with self._store.reading() as connection:
            (highest,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM records").fetchone()
        graphs = []
        for place in range(highest // SEGMENT):
            with self._store.reading() as connection:
                if last_record(connection, place) is None:  # all its records were forgotten
                    continue
                try:
                    graphs.append(self._segments.opened(connection, place))
                    continue
                except (ValueError, RuntimeError, OSError):
                    pass  # told where it is tried again
            graphs.append(self._segments.built(place))
            yield (place + 1) * SEGMENT, highest
        covered = highest // SEGMENT * SEGMENT
        with self._store.reading():  # no other thread is in the middle of a search
            self._graphs = [graph for graph in graphs if graph is not None]
            if self._covered != covered:
                self._covered = covered
                self._tail = VectorIndex(self._dimension, after=covered)

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Read what no segment holds."""
        self._connection = connection
        self._tail.refresh(connection)
        self._sample.refresh(connection)

    def scan(self, query: Float[np.ndarray, "D"], allows: Allows) -> Scan:
        """Return how near records are to a query of length 1."""
        sample, every = self._sample.cosines(query, allows), self._sample.step
        if every > 1 and len(sample) < _FEW:
            return self.read(query, allows)
        return _GraphScan(self, self._connection, query, allows, sample, len(sample) * every)

    def nearest(self, query: Float[np.ndarray, "D"], each: int) -> tuple[Int[np.ndarray, "K"], bool]:
        """Return about the nearest records, best first, so many of each segment and of what none holds.

        And whether these are all.
        """
        tail = self._tail.scan(query, lambda *scope: True)
        newest = tail.nearest(each)
        found = [(newest, tail.cosines(newest))]
        for graph in self._graphs:
            matches = graph.search(query, each)
            found.append((matches.keys.astype(np.int64), 1 - matches.distances))
        numbers, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return numbers[best(cosines, len(cosines))], len(numbers) == len(self._tail) + sum(
            map(len, self._graphs)
        )

    def asked_of_each(self, count: int) -> int:
        """Return how many to ask each segment for, if so many are wanted in all."""
        return max(_LEAST, count // (len(self._graphs) + 1))

    def read(self, query: Float[np.ndarray, "D"], allows: Allows) -> ExactScan:
        """Read all that may be found."""
        scopes = self._connection.execute("SELECT DISTINCT namespace, kind FROM records").fetchall()
        numbers: list[int] = []
        cosines = [np.zeros(0, dtype=np.float32)]
        for scope in itertools.compress(scopes, itertools.starmap(allows, scopes)):
            rows = self._connection.execute(
                "SELECT number, vector FROM records JOIN vectors USING (number) "
                "WHERE namespace = ? AND kind = ?",
                scope,
            )
            while batch := rows.fetchmany(_BATCH):
                some, vectors = zip(*batch, strict=True)
                numbers += some
                cosines.append(unpacked(list(vectors), self._dimension) @ query)
        order = np.argsort(numbers)
        return ExactScan(np.array(numbers, dtype=np.int64)[order], np.concatenate(cosines)[order])


class _GraphScan(Scan):
    """The nearest by graphs, and exact cosines of what was found."""

    def __init__(
        self,
        index: ApproximateIndex,
        connection: sqlite3.Connection,
        query: Float[np.ndarray, "D"],
        allows: Allows,
        sample: Float[np.ndarray, "S"],
        count: int,
    ) -> None:
        super().__init__(sample, count)
        self._index, self._connection = index, connection
        self._query, self._allows = query, allows
        self._known: dict[int, float] = {}

    def cosines(self, numbers: Int[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return the cosines of records that may be found, NaN for one without an embedding."""
        asked = numbers.tolist()
        missing = [number for number in asked if number not in self._known]
        there, vectors = read_vectors(self._connection, missing, len(self._query))
        self._known |= zip(there, (vectors @ self._query).tolist(), strict=True)
        return np.array([self._known.get(number, np.nan) for number in asked])

    def nearest(self, count: int) -> Int[np.ndarray, "K"]:
        """Return the numbers of about the nearest `count` records, in exact order, of equals the newest."""
        each = self._index.asked_of_each(count)
        while True:
            found, all_of_them = self._index.nearest(self._query, each)
            scopes = select(self._connection, "number, namespace, kind", found.tolist())
            allowed = {number for number, *scope in scopes if self._allows(*scope)}
            if len(allowed) >= count or all_of_them:
                break
            if each >= SEGMENT:  # some are linked to by none
                return self._index.read(self._query, self._allows).nearest(count)
            each *= 4
        numbers = np.array(sorted(allowed, reverse=True), dtype=np.int64)
        return numbers[best(np.nan_to_num(self.cosines(numbers), nan=-np.inf), count)]


class _Sample:
    """Every so many-th record: what is far from most queries, as most records are."""

    def __init__(self, dimension: int) -> None:
        self.step = 1
        """Of how many records each stands for."""
        self._dimension = dimension
        self._read: tuple[int, int, int | None] | None = None

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Read the sample if the file has another one than was read."""
        (highest,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM vectors").fetchone()
        self.step = 1 << max(0, highest // _SAMPLE).bit_length()
        now = (self.step, highest // self.step, fact(connection, "deletions"))
        if now == self._read:
            return
        numbers = range(self.step, highest + 1, self.step)
        there, self._vectors = read_vectors(connection, numbers, self._dimension)
        scope_of = {number: scope for number, *scope in select(connection, "number, namespace, kind", there)}
        self._scopes = [scope_of[number] for number in there]
        self._read = now

    def cosines(self, query: Float[np.ndarray, "D"], allows: Allows) -> Float[np.ndarray, "S"]:
        """Return the cosines of those that may be found."""
        return (self._vectors @ query)[[allows(*scope) for scope in self._scopes]]


def read_vectors(
    connection: sqlite3.Connection, numbers: Sequence[int], dimension: int
) -> tuple[list[int], Float[np.ndarray, "R D"]]:
    """Return the numbers of the records that have embeddings, and these."""
    vector = "(SELECT vector FROM vectors WHERE vectors.number = records.number)"
    rows = [row for row in select(connection, f"number, {vector}", numbers) if row[1] is not None]
    there, blobs = zip(*rows, strict=True) if rows else ((), ())
    return list(there), unpacked(list(blobs), dimension)
