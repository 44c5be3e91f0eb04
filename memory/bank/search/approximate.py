"""The dense arm of a bank too large to hold: an approximate index in files, embeddings in SQLite.

The nearest records are found in segments mapped into memory (`memory/bank/search/segments.py`), those too new
for a segment by an exact scan. Their chunks are the chosen ones; inside, every record's own embedding is read
and scored exactly, as ever.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels.select import best
from scrubjay.memory.bank.file.damage import unpacked
from scrubjay.memory.bank.file.store import Store, select
from scrubjay.memory.bank.search.dense import DenseIndex, Looked, VectorIndex
from scrubjay.memory.bank.search.segments import SEGMENT, Segments, last_record, require_usearch

_NEAREST = 128  # records whose chunks are chosen
_LEAST = 64  # asked of each segment, however many there are
_ENOUGH = 32  # that a search must be allowed to see
_DEEPEST = 16  # times as many are asked for in search of those


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

    def look(
        self,
        query: Float[np.ndarray, "D"],
        allows: Callable[[str, str], bool],
        top_chunks: int,
        also: Sequence[int],
    ) -> Looked:
        """Return all records in the chunks of the nearest that are allowed, and in those of `also`."""
        chosen = self._chunks_of_nearest(query, allows)[:top_chunks]
        place = {chunk: rank for rank, chunk in enumerate(chosen, 1)}
        for (chunk,) in select(self._connection, "chunk", also):
            place.setdefault(chunk, 0)
        rows = select(
            self._connection,
            "chunk, number, (SELECT vector FROM vectors WHERE vectors.number = records.number)",
            place,
            key="chunk",
        )
        rows = sorted((row for row in rows if row[2] is not None), key=lambda row: row[:2])
        chunks, numbers, vectors = zip(*rows, strict=True) if rows else ((), (), ())
        return Looked(
            np.array(numbers, dtype=np.int64),
            np.array(chunks, dtype=np.int64),
            self._unpacked(vectors) @ query,
            np.array([place[chunk] for chunk in chunks], dtype=np.int64),
        )

    def _chunks_of_nearest(
        self, query: Float[np.ndarray, "D"], allows: Callable[[str, str], bool]
    ) -> list[int]:
        """Return the chunks of the nearest records that are allowed, that of the nearest first."""
        each, depth = max(_LEAST, _NEAREST // (len(self._graphs) + 1)), 1
        while True:
            nearest = self._nearest(query, each * depth)
            rows = select(self._connection, "number, chunk, namespace, kind", nearest.tolist())
            chunk_of = {number: chunk for number, chunk, *scope in rows if allows(*scope)}
            if len(chunk_of) >= _ENOUGH or len(nearest) == len(self._tail) + sum(map(len, self._graphs)):
                break
            if depth == _DEEPEST:
                # Those allowed are few among all: read them.
                chunk_of, nearest = self._scan(query, allows)
                break
            depth *= 4
        ordered = [chunk_of[number] for number in nearest.tolist() if number in chunk_of]
        return list(dict.fromkeys(ordered[:_NEAREST]))

    def _nearest(self, query: Float[np.ndarray, "D"], each: int) -> Int[np.ndarray, "K"]:
        """Return about the nearest records, best first, so many of each segment and of what none holds."""
        found = [self._tail.closest(query, each)]
        for graph in self._graphs:
            matches = graph.search(query, each)
            found.append((matches.keys.astype(np.int64), 1 - matches.distances))
        numbers, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return numbers[best(cosines, len(cosines))]

    def _scan(
        self, query: Float[np.ndarray, "D"], allows: Callable[[str, str], bool]
    ) -> tuple[dict[int, int], Int[np.ndarray, "K"]]:
        """Return the chunks by number, and the numbers, of the nearest of all that are allowed."""
        scopes = self._connection.execute("SELECT DISTINCT namespace, kind FROM records").fetchall()
        numbers, chunks, cosines = [], [], [np.zeros(0, dtype=np.float32)]
        for scope in itertools.compress(scopes, itertools.starmap(allows, scopes)):
            rows = self._connection.execute(
                "SELECT number, chunk, vector FROM records JOIN vectors USING (number) "
                "WHERE namespace = ? AND kind = ?",
                scope,
            )
            while batch := rows.fetchmany(8192):
                some, of, vectors = zip(*batch, strict=True)
                numbers += some
                chunks += of
                cosines.append(self._unpacked(vectors) @ query)
        nearest = best(np.concatenate(cosines), _NEAREST)
        return dict(zip(numbers, chunks, strict=True)), np.array(numbers, dtype=np.int64)[nearest]

    def _unpacked(self, vectors: Sequence[bytes]) -> Float[np.ndarray, "R D"]:
        return unpacked(list(vectors), self._dimension)
