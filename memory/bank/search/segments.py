"""Segment files of an approximate index beside a bank, one per range of record numbers (extra `ann`).

The folder `bank.db-ann/` contains HNSW graphs (Malkov and Yashunin 2016, arXiv 1603.09320) of half-precision
embeddings. usearch writes the files, and a search maps them into memory. A segment is built once all its
record numbers are in use. Afterwards only `forget` changes the segment.

Segments are built and saved one by one. An interrupted build therefore resumes at the first segment that is
missing. No transaction is open while a graph is built. Transactions of other threads and processes wait at
most while the build reads or saves one segment.

SQLite is authoritative. A segment file stores a hash of the id of its last record. The file is rebuilt if the
bank has another last record in the range, or if the checksum of the file is wrong. The checksum is verified
before the file is mapped. It protects against disk damage, but an attacker can forge it. Therefore delete the
index of an untrusted bank.

Files are moved into place, and records are deleted, under SQLite's write lock. `forget` overwrites the
embedding of the deleted record in the segment file. If the embedding occurs twice or not at all in the file,
the file is deleted. A rolled-back transaction may leave a file with a higher deletion count than the bank.
This file is deleted before the bank reaches that count again.
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

from scrubjay.memory.bank.file.damage import DamagedBankError, read_fact
from scrubjay.memory.bank.file.store import Store

SEGMENT = 65_536
"""Size of a segment in record numbers, including those of deleted records."""
_MAGIC = b"scrubjay-ann-2\0\0"
_TRAILER = struct.Struct("<16sqqq32s32s")
_NUM_ROOTS = 256  # records of a graph that are added sequentially
_PART_NAME = "part"  # name of the file being written; one at a time


class _Trailer(NamedTuple):
    """Metadata at the end of a segment file of the approximate index."""

    mark: bytes
    length: int
    """Size of the graph before the trailer, in bytes."""
    dimension: int
    deletions: int
    """Deletion count of the bank when the file was last written."""
    last: bytes
    """Hash of the id of the last record in the segment, from `hash_last_record`."""
    checksum: bytes = bytes(32)
    """Checksum of the graph and of all other fields of this trailer."""

    def sign(self, graph: Iterable[bytes]) -> _Trailer:
        """Return the trailer with its checksum; `graph` yields the bytes of the graph in pieces."""
        digest = hashlib.blake2b(_TRAILER.pack(*self._replace(checksum=bytes(32))), digest_size=32)
        for piece in graph:
            digest.update(piece)
        return self._replace(checksum=digest.digest())


class Segments:
    """Segment files of a bank's approximate index."""

    def __init__(self, store: Store, dimension: int) -> None:
        self._store, self._dimension = store, dimension
        self._open_graphs: dict[int, tuple[tuple[int, int], Any]] = {}

    def open(self, connection: sqlite3.Connection, segment: int) -> Any:
        """Return the graph of a segment; map the file again if it has changed.

        Raises FileNotFoundError if the file does not exist. Raises ValueError, RuntimeError or OSError if the
        file is unusable.
        """
        path = _segment_path(self._store.path, segment)
        try:
            stamp = _file_stamp(path)
            trailer = _read_trailer(path)
            if trailer.dimension != self._dimension:
                raise ValueError(
                    f"{path} has embeddings of dimension {trailer.dimension}, "
                    f"but the bank has embeddings of dimension {self._dimension}"
                )
            # More deletions than the bank: one was rolled back in the bank after the file had been changed.
            ahead = trailer.deletions > count_deletions(connection)
            if ahead or trailer.last != hash_last_record(connection, segment):
                raise ValueError(f"{path} was built from records that the bank does not have")
            if segment not in self._open_graphs or self._open_graphs[segment][0] != stamp:
                # Mapping a damaged file would crash the process.
                if trailer.sign(_read_pieces(path, trailer.length)) != trailer:
                    raise ValueError(f"{path} is damaged: wrong checksum")
                graph = _empty_graph(self._dimension)
                graph.view(str(path))
                self._open_graphs[segment] = stamp, graph
        except (ValueError, RuntimeError, OSError):
            self._open_graphs.pop(segment, None)
            raise
        return self._open_graphs[segment][1]

    def build(self, segment: int) -> Any:
        """Build a segment's graph anew, because the saved graph could not be opened; save and return it.

        Other processes can read and write the bank meanwhile. Returns None if all records of the segment were
        deleted.
        """
        path = _segment_path(self._store.path, segment)
        with self._store.writing() as connection:
            try:
                return self.open(connection, segment)  # under the write lock, no change is in progress
            except FileNotFoundError:
                pass
            except (ValueError, RuntimeError, OSError) as error:
                warnings.warn(f"rebuilding segment {segment} of the search index: {error}", stacklevel=2)
        while True:
            with self._store.reading() as connection:
                deletions = count_deletions(connection)
                rows = connection.execute(
                    "SELECT number, vector FROM vectors WHERE number > ? AND number <= ?",
                    _segment_bounds(segment),
                ).fetchall()
            graph = _empty_graph(self._dimension)
            if rows:
                numbers, vectors = zip(*rows, strict=True)
                add_vectors(graph, np.array(numbers), np.stack([_to_half(vector) for vector in vectors]))
            with self._store.writing() as connection:
                last = hash_last_record(connection, segment)
                if last is None:
                    return None
                # Repeat if a record was deleted meanwhile, since it may belong to this segment.
                if deletions == count_deletions(connection):
                    _save_segment(graph, path, self._dimension, deletions, last)
                    return self.open(connection, segment)


def forget_in_segment(connection: sqlite3.Connection, bank: str, number: int, vector: bytes | None) -> None:
    """Overwrite a record's embedding in the index files. The caller has deleted the record in
    `connection`."""
    segment = (number - 1) // SEGMENT
    path = _segment_path(bank, segment)
    (path.parent / _PART_NAME).unlink(missing_ok=True)  # left by a process that crashed
    deletions_before = count_deletions(connection) - 1
    for file in path.parent.glob("*.usearch"):
        with contextlib.suppress(ValueError):  # `build` warns when it opens the file
            if _read_trailer(file).deletions > deletions_before:
                file.unlink()
    if not path.exists():
        return
    last = hash_last_record(connection, segment)
    try:
        trailer, data = _read_trailer(path), path.read_bytes()
    except ValueError:
        trailer, data = None, b""
    embedding = b"" if vector is None else _to_half(vector).tobytes()
    is_intact = trailer is not None and trailer.sign([data[: trailer.length]]) == trailer
    is_linked = path.is_symlink() or path.stat().st_nlink > 1  # a change would reach its other names
    if (
        trailer is None
        or not is_intact
        or is_linked
        or last is None
        or (embedding and data.count(embedding) != 1)
    ):
        path.unlink(missing_ok=True)  # rebuilt from the remaining records when needed
        return
    start = data.find(embedding)
    graph = b"".join([data[:start], bytes(len(embedding)), data[start + len(embedding) : trailer.length]])
    trailer = trailer._replace(deletions=count_deletions(connection), last=last).sign([graph])
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(bytes(len(embedding)))
        file.seek(trailer.length)
        file.write(_TRAILER.pack(*trailer))
        file.flush()
        os.fsync(file.fileno())


def _segment_bounds(segment: int) -> tuple[int, int]:
    """Return the last record number before a segment, and the last record number in the segment."""
    return segment * SEGMENT, (segment + 1) * SEGMENT


def hash_last_record(connection: sqlite3.Connection, segment: int) -> bytes | None:
    """Return a hash of the id of a segment's last record, None if all its records were deleted."""
    row = connection.execute(
        "SELECT id FROM records WHERE number > ? AND number <= ? ORDER BY number DESC LIMIT 1",
        _segment_bounds(segment),
    ).fetchone()
    return hashlib.blake2b(row[0].encode(), digest_size=32).digest() if row else None


def add_vectors(graph: Any, numbers: Int[np.ndarray, "R"], vectors: Float[np.ndarray, "R D"]) -> None:
    """Add records to an empty graph on all cores. Add unreachable records again.

    A record is unreachable if a search for all records does not return it. Raises KeyboardInterrupt on
    Ctrl-C, where usearch itself raises RuntimeError.
    """
    # Records that are added concurrently do not link to each other, and some become unreachable. The first
    # records are therefore added sequentially, and unreachable ones are added again at the end. Among many
    # near-duplicates some stay unreachable, since near-duplicates fill each other's links.
    try:
        graph.add(numbers[:_NUM_ROOTS], vectors[:_NUM_ROOTS], threads=1)
        graph.add(numbers[_NUM_ROOTS:], vectors[_NUM_ROOTS:])
        limit = len(numbers)
        while True:
            matches = graph.search(vectors[0], len(numbers))
            unreachable = ~np.isin(numbers, matches.keys.astype(numbers.dtype))
            # A record that was added again can be unreachable again. Repeat while this halves their number.
            if not 0 < unreachable.sum() <= limit:
                break
            limit = unreachable.sum() // 2
            graph.remove(numbers[unreachable])
            graph.add(numbers[unreachable], vectors[unreachable], threads=1)
    except RuntimeError as error:
        if "terminated" in str(error):
            raise KeyboardInterrupt from error
        raise


def require_usearch() -> None:
    """Raise ModuleNotFoundError, with the install command, if usearch is missing."""
    _empty_graph(1)


def _empty_graph(dimension: int) -> Any:
    try:
        from usearch.index import Index
    except ModuleNotFoundError as error:
        message = "approximate=True needs usearch: pip install 'scrubjay[ann]'"
        raise ModuleNotFoundError(message, name="usearch") from error
    return Index(ndim=dimension, metric="ip", dtype="f16")


def _to_half(vector: bytes) -> np.ndarray:
    return np.frombuffer(vector, dtype=np.float32).astype(np.float16)


def _save_segment(graph: Any, path: Path, dimension: int, deletions: int, last: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    part = path.parent / _PART_NAME
    part.unlink(missing_ok=True)  # left by a process that crashed, or a link to another file
    graph.save(str(part))
    length = part.stat().st_size
    trailer = _Trailer(_MAGIC, length, dimension, deletions, last).sign(_read_pieces(part, length))
    with open(part, "ab") as file:
        file.write(_TRAILER.pack(*trailer))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _read_trailer(path: Path) -> _Trailer:
    """Return the trailer of a file. Raises ValueError if the file is incomplete or not a segment."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - _TRAILER.size))
        end = file.read()
    if len(end) == _TRAILER.size:
        trailer = _Trailer(*_TRAILER.unpack(end))
        if trailer.mark == _MAGIC and trailer.length == size - _TRAILER.size:
            return trailer
    raise ValueError(f"{path} is not a complete index segment")


def _read_pieces(path: Path, length: int) -> Iterator[bytes]:
    """Yield the first `length` bytes of a file in pieces."""
    with open(path, "rb") as file:
        while piece := file.read(min(1 << 20, length)):
            length -= len(piece)
            yield piece


def _file_stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def _segment_path(bank: str, segment: int) -> Path:
    folder = Path(f"{bank}-ann")
    if folder.is_symlink():  # files of another folder would be overwritten
        raise DamagedBankError(f"{str(folder)!r} is a symbolic link; remove it, and the index is built again")
    return folder / f"{segment:06}.usearch"


def count_deletions(connection: sqlite3.Connection) -> int:
    """Return the number of records ever deleted from the bank."""
    return read_fact(connection, "deletions") or 0
