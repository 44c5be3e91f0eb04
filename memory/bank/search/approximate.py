"""Dense search of a bank that exceeds memory: an approximate index in files, embeddings in SQLite.

Memory-mapped index segments return the nearest records (`memory/bank/search/segments.py`); records newer than
the last segment are scanned exactly. The embeddings of the results are read and scored exactly. A sample of a
few thousand records estimates the mean and standard deviation of cosines. If a filter accepts few records,
all of them are read and scored.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels.select import best
from scrubjay.memory.bank.file.damage import read_fact, unpack_vectors
from scrubjay.memory.bank.file.store import Store, read_vectors, select
from scrubjay.memory.bank.search.dense import ExactScan, Scan, ScopePredicate, VectorIndex
from scrubjay.memory.bank.search.segments import SEGMENT, Segments, require_usearch

_MAX_SAMPLE = 4096  # records that estimate the distribution of cosines, at most and at least half as many
_MIN_SAMPLE_MATCHES = 128  # if the filter accepts fewer records of the sample, all accepted ones are read
_MIN_PER_SEGMENT = 64  # results requested from each segment
_BATCH = 8192  # embeddings read at a time


class ApproximateIndex:
    """Approximate index in files beside the bank. It includes the records that other processes write.

    Raises ModuleNotFoundError without usearch.
    """

    def __init__(self, store: Store, dimension: int) -> None:
        require_usearch()
        self._store, self._dimension = store, dimension
        self._segments = Segments(store, dimension)
        self._graphs: list[Any] = []
        self._tail = VectorIndex(dimension)
        self._num_indexed = 0
        self._sample = _Sample(dimension)

    def catch_up(self) -> Iterator[tuple[int, int]]:
        """Build the missing segments of the index.

        Yield a pair after each segment: the last indexed record number and the highest record number. Call
        this method outside a transaction, since it takes half a millisecond of CPU time per record.
        """
        with self._store.reading() as connection:
            (highest,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM records").fetchone()
        graphs = []
        segment = -1
        while True:
            with self._store.reading() as connection:
                # Numbers of deleted records may fill any number of segments.
                (number,) = connection.execute(
                    "SELECT MIN(number) FROM records WHERE number > ?", ((segment + 1) * SEGMENT,)
                ).fetchone()
                if number is None or (segment := (number - 1) // SEGMENT) >= highest // SEGMENT:
                    break
                try:
                    graphs.append(self._segments.open(connection, segment))
                    continue
                except (ValueError, RuntimeError, OSError):
                    pass  # `build` retries and warns
            graphs.append(self._segments.build(segment))
            yield (segment + 1) * SEGMENT, highest
        num_indexed = highest // SEGMENT * SEGMENT
        with self._store.reading():  # waits until no other thread is searching
            self._graphs = [graph for graph in graphs if graph is not None]
            if self._num_indexed != num_indexed:
                self._num_indexed = num_indexed
                self._tail = VectorIndex(self._dimension, after=num_indexed)

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Read the embeddings that no index segment contains, and update the sample of embeddings."""
        self._connection = connection
        self._tail.refresh(connection)
        self._sample.refresh(connection)

    def scan(self, query: Float[np.ndarray, "D"], allows: ScopePredicate) -> Scan:
        """Return the similarities of records to a query vector of length 1."""
        sample, stride = self._sample.cosines(query, allows), self._sample.step
        if stride > 1 and len(sample) < _MIN_SAMPLE_MATCHES:
            return self.read_exact(query, allows)
        return _GraphScan(self, self._connection, query, allows, sample, len(sample) * stride)

    def nearest(self, query: Float[np.ndarray, "D"], each: int) -> tuple[Int[np.ndarray, "K"], bool]:
        """Return the numbers of the approximately nearest records, nearest first, and a flag.

        The flag is True if the numbers include every record of the index. `each` is the number of results to
        request from each segment, and from the records outside all segments.
        """
        tail = self._tail.scan(query, lambda *scope: True)
        newest_numbers = tail.nearest(each)
        results = [(newest_numbers, tail.cosines(newest_numbers))]
        for graph in self._graphs:
            matches = graph.search(query, each)
            results.append((matches.keys.astype(np.int64), 1 - matches.distances))
        numbers, cosines = (np.concatenate(parts) for parts in zip(*results, strict=True))
        return numbers[best(cosines, len(cosines))], len(numbers) == len(self._tail) + sum(
            map(len, self._graphs)
        )

    def count_per_segment(self, count: int) -> int:
        """Return the number of results to request from each segment for `count` results in total."""
        return min(max(_MIN_PER_SEGMENT, count // (len(self._graphs) + 1)), SEGMENT)

    def read_exact(self, query: Float[np.ndarray, "D"], allows: ScopePredicate) -> ExactScan:
        """Read all records that `allows` accepts, and return their exact cosines."""
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
                batch_numbers, vectors = zip(*batch, strict=True)
                numbers += batch_numbers
                cosines.append(unpack_vectors(list(vectors), self._dimension) @ query)
        order = np.argsort(numbers)
        return ExactScan(np.array(numbers, dtype=np.int64)[order], np.concatenate(cosines)[order])


class _GraphScan(Scan):
    """Approximate scan: nearest records from graphs, with exact cosines."""

    def __init__(
        self,
        index: ApproximateIndex,
        connection: sqlite3.Connection,
        query: Float[np.ndarray, "D"],
        allows: ScopePredicate,
        sample: Float[np.ndarray, "S"],
        count: int,
    ) -> None:
        super().__init__(sample, count)
        self._index, self._connection = index, connection
        self._query, self._allows = query, allows
        self._cosine_cache: dict[int, float] = {}

    def cosines(self, numbers: Int[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return the cosine of the query and each of these records, NaN for a record without an embedding."""
        number_list = numbers.tolist()
        missing = [number for number in number_list if number not in self._cosine_cache]
        read_numbers, vectors = read_vectors(self._connection, missing, len(self._query))
        self._cosine_cache |= zip(read_numbers, (vectors @ self._query).tolist(), strict=True)
        return np.array([self._cosine_cache.get(number, np.nan) for number in number_list])

    def nearest(self, count: int) -> Int[np.ndarray, "K"]:
        """Return the record numbers of roughly the `count` nearest records, sorted by exact cosine.

        Of two records with equal cosines, the newer one comes first.
        """
        each = self._index.count_per_segment(count)
        while True:
            candidates, all_of_them = self._index.nearest(self._query, each)
            scopes = select(self._connection, "number, namespace, kind", candidates.tolist())
            allowed_numbers = {number for number, *scope in scopes if self._allows(*scope)}
            if len(allowed_numbers) >= count or all_of_them:
                break
            if each >= SEGMENT:  # some records are unreachable in the graph
                return self._index.read_exact(self._query, self._allows).nearest(count)
            each *= 4
        numbers = np.array(sorted(allowed_numbers, reverse=True), dtype=np.int64)
        return numbers[best(np.nan_to_num(self.cosines(numbers), nan=-np.inf), count)]


class _Sample:
    """Sample of every n-th record, which estimates the distribution of cosines for a query."""

    def __init__(self, dimension: int) -> None:
        self.step = 1
        """Distance between the numbers of two sampled records."""
        self._dimension = dimension
        self._version: tuple[int, int, int | None] | None = None

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Read the sampled embeddings again if the sampled records may have changed since the last call."""
        (highest,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM vectors").fetchone()
        self.step = 1 << max(0, highest // _MAX_SAMPLE).bit_length()
        version = (self.step, highest // self.step, read_fact(connection, "deletions"))
        if version == self._version:
            return
        numbers = range(self.step, highest + 1, self.step)
        sampled_numbers, self._vectors = read_vectors(connection, numbers, self._dimension)
        scope_of = {
            number: scope for number, *scope in select(connection, "number, namespace, kind", sampled_numbers)
        }
        self._scopes = [scope_of[number] for number in sampled_numbers]
        self._version = version

    def cosines(self, query: Float[np.ndarray, "D"], allows: ScopePredicate) -> Float[np.ndarray, "S"]:
        """Return the cosines of the sampled records that `allows` accepts."""
        return (self._vectors @ query)[[allows(*scope) for scope in self._scopes]]
