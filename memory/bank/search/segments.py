"""The files of an approximate index beside a bank: one for so many record numbers in a row (extra `ann`).

`bank.db-ann/` holds graphs of embeddings in half precision, HNSW (Malkov and Yashunin 2016, arXiv
1603.09320) by usearch, which are mapped into memory, not read. A segment is built once all its numbers are
given, and only `forget` changes it after. So a build that was broken off goes on at the next segment, and
whoever writes or reads, in however many processes, never waits for more than one. SQLite stays the truth: a
file tells the last record it was built of, by a hash of its id, and is built anew if the bank has another in
its place, or if it is damaged: its checksum is looked at before it is mapped. That is a guard against a disk,
not against an enemy, who can write a checksum, too: delete the index that came with a stranger's bank.

What is forgotten: files are put in place, and records deleted, by the one writer that SQLite lets in. It
overwrites the embedding of the record in the file; where it is there twice, or not at all, the file goes. A
file is ahead if it counts more deletions than the bank: one was rolled back there. It goes, too, before the
bank counts as many again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import struct
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scrubjay.memory.bank.file.damage import fact
from scrubjay.memory.bank.file.store import Store

SEGMENT = 65_536
"""Record numbers of a segment."""
_MARK = b"scrubjay-ann-2\0\0"
_TRAILER = struct.Struct("<16sqqq32s32s")
_ROOTS = 256  # records of a graph that are added one by one
_PART = "part"  # the file being written, one at a time


class _Trailer(NamedTuple):
    """What ends a file."""

    mark: bytes
    length: int
    """Of the graph before it, in bytes."""
    dimension: int
    deletions: int
    """How many the bank had counted when the file was last written."""
    last: bytes
    """What `last_record` gave."""
    checksum: bytes = bytes(32)
    """Of the graph and of what is above."""

    def signed(self, graph: Iterable[bytes]) -> _Trailer:
        """Return it with the checksum of a graph, given in pieces."""
        digest = hashlib.blake2b(_TRAILER.pack(*self._replace(checksum=bytes(32))), digest_size=32)
        for piece in graph:
            digest.update(piece)
        return self._replace(checksum=digest.digest())


class Segments:
    """The segments of a bank's file."""

    def __init__(self, store: Store, dimension: int) -> None:
        self._store, self._dimension = store, dimension
        self._opened: dict[int, tuple[tuple[int, int], Any]] = {}

    def opened(self, connection: sqlite3.Connection, place: int) -> Any:
        """Return the graph of a segment, mapped anew if its file changed.

        Raises FileNotFoundError if there is none, ValueError, RuntimeError or OSError if it is of no use.
        """
        path = _path(self._store.path, place)
        try:
            stamp = _stamp(path)
            trailer = _trailer(path)
            if trailer.dimension != self._dimension:
                raise ValueError(
                    f"it holds embeddings of {trailer.dimension} numbers, the bank's have {self._dimension}"
                )
            # More deletions: one of them was rolled back in the bank after it was done here.
            ahead = trailer.deletions > count_deletions(connection)
            if ahead or trailer.last != last_record(connection, place):
                raise ValueError("it was built of records that the bank does not have")
            if place not in self._opened or self._opened[place][0] != stamp:
                # What is damaged and mapped all the same ends the process.
                if trailer.signed(_pieces(path, trailer.length)) != trailer:
                    raise ValueError("it is damaged: its checksum is another")
                graph = _empty_graph(self._dimension)
                graph.view(str(path))
                self._opened[place] = stamp, graph
        except (ValueError, RuntimeError, OSError):
            self._opened.pop(place, None)
            raise
        return self._opened[place][1]

    def built(self, place: int) -> Any:
        """Return the graph of a segment that could not be opened: built now, and put in place.

        Others may read and write the bank meanwhile. None if all its records were forgotten.
        """
        path = _path(self._store.path, place)
        with self._store.writing() as connection:
            try:
                return self.opened(connection, place)  # nobody is in the middle of a change now
            except FileNotFoundError:
                pass
            except (ValueError, RuntimeError, OSError) as error:
                warnings.warn(f"{path} is built anew: {error}", stacklevel=2)
        while True:
            with self._store.reading() as connection:
                deletions = count_deletions(connection)
                rows = connection.execute(
                    "SELECT number, vector FROM vectors WHERE number > ? AND number <= ?", _bounds(place)
                ).fetchall()
            graph = _empty_graph(self._dimension)
            if rows:
                numbers, vectors = zip(*rows, strict=True)
                add(graph, np.array(numbers), np.stack([_half(vector) for vector in vectors]))
            with self._store.writing() as connection:
                last = last_record(connection, place)
                if last is None:
                    return None
                # Again, if meanwhile something was forgotten, which may be of this segment.
                if deletions == count_deletions(connection):
                    _save(graph, path, self._dimension, deletions, last)
                    return self.opened(connection, place)


def forget_in_segment(connection: sqlite3.Connection, bank: str, number: int, vector: bytes | None) -> None:
    """Overwrite the embedding of a record that `connection` has just deleted, in its segment."""
    place = (number - 1) // SEGMENT
    path = _path(bank, place)
    (path.parent / _PART).unlink(missing_ok=True)  # of a process that died
    before = count_deletions(connection) - 1
    for file in path.parent.glob("*.usearch"):
        with contextlib.suppress(ValueError):  # told where it is opened
            if _trailer(file).deletions > before:
                file.unlink()
    if not path.exists():
        return
    last = last_record(connection, place)
    try:
        trailer, data = _trailer(path), path.read_bytes()
    except ValueError:
        trailer, data = None, b""
    held = b"" if vector is None else _half(vector).tobytes()
    whole = trailer is not None and trailer.signed([data[: trailer.length]]) == trailer
    if trailer is None or not whole or last is None or (held and data.count(held) != 1):
        path.unlink(missing_ok=True)  # what is left of it is built anew when it is needed
        return
    start = data.find(held)
    graph = b"".join([data[:start], bytes(len(held)), data[start + len(held) : trailer.length]])
    trailer = trailer._replace(deletions=count_deletions(connection), last=last).signed([graph])
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(bytes(len(held)))
        file.seek(trailer.length)
        file.write(_TRAILER.pack(*trailer))
        file.flush()
        os.fsync(file.fileno())


def _bounds(place: int) -> tuple[int, int]:
    """Return the number before a segment's first and its last."""
    return place * SEGMENT, (place + 1) * SEGMENT


def last_record(connection: sqlite3.Connection, place: int) -> bytes | None:
    """Return what tells the last record of a segment from every other, None if all are forgotten."""
    row = connection.execute(
        "SELECT id FROM records WHERE number > ? AND number <= ? ORDER BY number DESC LIMIT 1", _bounds(place)
    ).fetchone()
    return hashlib.blake2b(row[0].encode(), digest_size=32).digest() if row else None


def add(graph: Any, numbers: Int[np.ndarray, "R"], vectors: Float[np.ndarray, "R D"]) -> None:
    """Add records to an empty graph, on all cores, and once more those that a search for all does not find.

    Raises KeyboardInterrupt on Ctrl-C, which usearch calls otherwise.
    """
    # Records that are added at the same time do not see each other, and some end up linked to by none. So the
    # first are added one by one, and those that are lost among the rest once more, when all others stand. Of
    # many that are nearly the same some stay lost: they fill each other's links.
    try:
        graph.add(numbers[:_ROOTS], vectors[:_ROOTS], threads=1)
        graph.add(numbers[_ROOTS:], vectors[_ROOTS:])
        found = graph.search(vectors[0], len(numbers)).keys
        lost = ~np.isin(numbers, found.astype(numbers.dtype))
        if lost.any():
            graph.remove(numbers[lost])
            graph.add(numbers[lost], vectors[lost], threads=1)
    except RuntimeError as error:
        if "terminated" in str(error):
            raise KeyboardInterrupt from error
        raise


def require_usearch() -> None:
    """Raise ModuleNotFoundError, with what to install, where usearch is missing."""
    _empty_graph(1)


def _empty_graph(dimension: int) -> Any:
    try:
        from usearch.index import Index
    except ModuleNotFoundError as error:
        message = "approximate=True needs usearch: pip install 'scrubjay[ann]'"
        raise ModuleNotFoundError(message, name="usearch") from error
    return Index(ndim=dimension, metric="ip", dtype="f16")


def _half(vector: bytes) -> np.ndarray:
    return np.frombuffer(vector, dtype=np.float32).astype(np.float16)


def _save(graph: Any, path: Path, dimension: int, deletions: int, last: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.parent / _PART
    graph.save(str(part))
    length = part.stat().st_size
    trailer = _Trailer(_MARK, length, dimension, deletions, last).signed(_pieces(part, length))
    with open(part, "ab") as file:
        file.write(_TRAILER.pack(*trailer))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _trailer(path: Path) -> _Trailer:
    """Return how a file ends. Raises ValueError on one that is not whole or not a segment."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - _TRAILER.size))
        end = file.read()
    if len(end) == _TRAILER.size:
        trailer = _Trailer(*_TRAILER.unpack(end))
        if trailer.mark == _MARK and trailer.length == size - _TRAILER.size:
            return trailer
    raise ValueError("it is no whole segment of an index")


def _pieces(path: Path, length: int) -> Iterator[bytes]:
    """Yield the first `length` bytes of a file, some at a time."""
    with open(path, "rb") as file:
        while piece := file.read(min(1 << 20, length)):
            length -= len(piece)
            yield piece


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def _path(bank: str, place: int) -> Path:
    return Path(f"{bank}-ann") / f"{place:06}.usearch"


def count_deletions(connection: sqlite3.Connection) -> int:
    """Return how many records were ever forgotten."""
    return fact(connection, "deletions") or 0
