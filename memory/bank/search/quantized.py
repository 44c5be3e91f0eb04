"""Exact dense search with one byte per number: a scan of quantized embeddings finds candidates.

    v = scale * code + rest,  code in -127..127,  scale = max |v| / 127
    |q v - scale * (q code)| <= |q| |rest| = radius

The table `quantized` has a row for each block of 512 record numbers. A search reads a quarter of the
embeddings' bytes, and the number of bytes determines its time. A record can be among the `count` nearest
only if its upper bound reaches the `count`-th largest lower bound. The embeddings of these few records are
read, and their products decide. So a search returns the same records as a scan of all embeddings. Mean and
deviation of the cosines come from the quantized embeddings.

Only complete blocks have a row. Triggers delete the row of a block when one of its embeddings changes. The
next search writes it again. The embeddings of newer records are in memory. A bank with less than 8,192
record numbers has no quantized embeddings.
"""

from __future__ import annotations

import json
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from scrubjay.kernels.select import best
from scrubjay.memory.bank.file.damage import UnreadableError, read_fact, unpack_vectors
from scrubjay.memory.bank.file.store import LOCK_TIMEOUT, Store, read_vectors
from scrubjay.memory.bank.search.dense import Scan, ScopePredicate, VectorIndex

BLOCK = 512
"""Record numbers per block. The triggers of the table `quantized` have this number, too."""
_MIN_BLOCKS = 16
_BATCH = 16  # blocks per transaction
_GROUP = 8  # blocks per product
_LEVELS = 127
_ROW = np.dtype([("offset", "<u2"), ("scope", "<u2"), ("scale", "<f4"), ("radius", "<f4")])
_MAX_SCALE = 1.1 / _LEVELS  # of a unit vector, with the rounding of half precision
_MAX_STAMP = 1 << 62
_NOT_WRITABLE = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)

Scope = tuple[str, str]
"""Stored namespace and kind of a record."""


class Block(NamedTuple):
    """Quantized embeddings of up to 512 records."""

    offsets: Int[np.ndarray, "R"]
    """Record numbers less the first number of the block, ascending."""
    scopes: Int[np.ndarray, "R"]
    """Index of each record's scope in `names`."""
    names: list[Scope]
    """Scopes of the block's records."""
    scales: Float[np.ndarray, "R"]
    radii: Float[np.ndarray, "R"]
    """Bound of the difference between a quantized cosine and the exact one, for a query of length 1."""
    codes: Int8[np.ndarray, "R D"]

    @classmethod
    def quantize(
        cls, offsets: Sequence[int], scopes: Sequence[Scope], vectors: Float[np.ndarray, "R D"]
    ) -> Self:
        """Quantize embeddings of length 1 or less."""
        index: dict[Scope, int] = {}
        scope_of_row = [index.setdefault(scope, len(index)) for scope in scopes]
        scales = np.abs(vectors).max(axis=1, initial=0.0) / np.float32(_LEVELS)
        codes = np.rint(vectors / np.maximum(scales, np.finfo(np.float32).tiny)[:, None])
        rest = vectors.astype(np.float64) - scales[:, None].astype(np.float64) * codes
        # Rounding of both products, each of D terms in single precision.
        rounding = 3 * vectors.shape[1] * 2.0**-24
        radii = np.nextafter((np.linalg.norm(rest, axis=1) + rounding).astype(np.float32), np.float32(np.inf))
        return cls(
            np.array(offsets), np.array(scope_of_row), list(index), scales, radii, codes.astype(np.int8)
        )

    @classmethod
    def unpack(cls, names: object, data: object, dimension: int) -> Self:
        """Return the block of a row in the file. Raises UnreadableError if the row is invalid."""
        if not isinstance(names, str) or not isinstance(data, bytes):
            raise UnreadableError("the table `quantized` has a value of a wrong type")
        count, rest = divmod(len(data), _ROW.itemsize + dimension)
        if rest or not 0 < count <= BLOCK:
            raise UnreadableError(f"a row of the table `quantized` has {len(data)} bytes")
        rows = np.frombuffer(data, _ROW, count)
        codes = np.frombuffer(data, np.int8, count * dimension, count * _ROW.itemsize)
        try:
            scope_names = [(namespace, kind) for namespace, kind in json.loads(names)]
        except (ValueError, TypeError, RecursionError) as error:
            raise UnreadableError(f"a row of the table `quantized` has invalid scopes: {error}") from error
        offsets, scopes = rows["offset"].astype(np.int64), rows["scope"].astype(np.int64)
        is_valid = (
            all(isinstance(name, str) for scope in scope_names for name in scope)
            and int(scopes.max()) < len(scope_names)
            and int(offsets[-1]) < BLOCK
            and bool((np.diff(offsets) > 0).all())
            and bool(((rows["scale"] >= 0) & (rows["scale"] <= _MAX_SCALE)).all())
            and bool(((rows["radius"] >= 0) & (rows["radius"] <= 1)).all())
        )
        if not is_valid:
            raise UnreadableError("a row of the table `quantized` has an invalid value")
        scales, radii = rows["scale"].copy(), rows["radius"].copy()
        return cls(offsets, scopes, scope_names, scales, radii, codes.reshape(count, dimension))

    def pack(self) -> tuple[str, bytes]:
        """Return the scopes and the data of a row in the file."""
        rows = np.empty(len(self.offsets), _ROW)
        rows["offset"], rows["scope"] = self.offsets, self.scopes
        rows["scale"], rows["radius"] = self.scales, self.radii
        return json.dumps(self.names), rows.tobytes() + self.codes.tobytes()


def quantize_complete_block(connection: sqlite3.Connection, number: int, dimension: int) -> None:
    """Write the row of a block if record `number`, the newest one, completes it.

    The first search then does not need to quantize a large bank. The first blocks remain for the search.
    """
    block, offset = divmod(number, BLOCK)
    if offset == BLOCK - 1 and block >= _MIN_BLOCKS:
        _write_block(connection, block, dimension)


class QuantizedIndex:
    """Exact index of all records of a file. It includes records that other processes write."""

    def __init__(self, store: Store, dimension: int) -> None:
        self._store, self._dimension = store, dimension
        self._blocks: dict[int, tuple[int | None, Block]] = {}
        self._version: tuple[int, int] | None = None
        self._checked_version: tuple[int, int] | None = None
        self._damaged_blocks: set[int] = set()
        self._end = 0
        self._tail = VectorIndex(dimension)
        self._join()

    def catch_up(self, must_write: bool = True) -> Iterator[tuple[int, int]]:
        """Write the missing rows of complete blocks, sixteen in each transaction.

        Yield a pair after each transaction: the last record number of a written block, and the highest record
        number. Call this method outside a transaction. If `must_write` is False, it neither waits for other
        writers nor fails if the file cannot be written. `refresh` then computes the blocks in memory.
        """
        try:
            yield from self._write_missing(LOCK_TIMEOUT if must_write else 0.0)
        except sqlite3.OperationalError as error:
            if must_write or error.sqlite_errorcode & 0xFF not in _NOT_WRITABLE:
                raise

    def _write_missing(self, timeout: float) -> Iterator[tuple[int, int]]:
        if self._damaged_blocks:
            with self._store.writing(timeout) as connection:
                rows = [(block,) for block in sorted(self._damaged_blocks)]
                connection.executemany("DELETE FROM quantized WHERE block = ?", rows)
            self._damaged_blocks.clear()
            self._checked_version = None
        with self._store.reading() as connection:
            version = _read_version(connection)
            missing = [] if version == self._checked_version else list(_find_missing(connection, version[1]))
        for first in range(0, len(missing), _BATCH):
            with self._store.writing(timeout) as connection:
                for number in missing[first : first + _BATCH]:
                    _write_block(connection, number, self._dimension)
            yield (missing[min(first + _BATCH, len(missing)) - 1] + 1) * BLOCK - 1, version[1] * BLOCK
        self._checked_version = version

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Read new records and blocks, and drop those that were deleted."""
        self._connection = connection
        version = _read_version(connection)
        if version != self._version:
            self._refresh_blocks(connection, version[1])
            if version[1] != self._end:
                self._end = version[1]
                self._tail = VectorIndex(self._dimension, after=max(self._end * BLOCK - 1, 0))
            self._version = version
        self._tail.refresh(connection)

    def scan(self, query: Float[np.ndarray, "D"], allows: ScopePredicate) -> Scan:
        """Return the similarities of records to a query vector of length 1."""
        tail = self._tail.scan(query, allows)
        if not self._blocks:
            return tail
        cosines = np.empty(len(self._numbers), dtype=np.float32)
        rows = np.empty((_GROUP * BLOCK, self._dimension), dtype=np.float32)
        codes, first = [block.codes for _, block in self._blocks.values()], 0
        for group in range(0, len(codes), _GROUP):
            count = 0
            for part in codes[group : group + _GROUP]:
                np.copyto(rows[count : count + len(part)], part)
                count += len(part)
            np.dot(rows[:count], query, out=cosines[first : first + count])
            first += count
        cosines *= self._scales
        is_allowed = [allows(*scope) for scope in self._scopes]
        mask = None if all(is_allowed) else np.array(is_allowed)[self._scope_of_row]
        return _QuantizedScan(self._connection, query, self._numbers, cosines, self._radii, mask, tail)

    def _refresh_blocks(self, connection: sqlite3.Connection, end: int) -> None:
        """Read the blocks whose row is new, and drop those whose row is no longer there."""
        rows = connection.execute("SELECT block, stamp FROM quantized WHERE block < ? ORDER BY block", (end,))
        stamps = dict(rows.fetchall())
        blocks: dict[int, tuple[int | None, Block]] = {}
        for number, stamp in stamps.items():
            if number in self._blocks and self._blocks[number][0] == stamp:
                blocks[number] = self._blocks[number]
                continue
            names, data = connection.execute(
                "SELECT scopes, data FROM quantized WHERE block = ?", (number,)
            ).fetchone()
            try:
                blocks[number] = stamp, Block.unpack(names, data, self._dimension)
            except UnreadableError as error:
                warnings.warn(
                    f"{error} in {self._store.path!r}, by damage or by another program; computing it again",
                    stacklevel=6,
                )
                self._damaged_blocks.add(number)
        # Another process may have deleted a row since `catch_up`.
        for number in sorted([*_find_missing(connection, end), *self._damaged_blocks]):
            block = _read_block(connection, number, self._dimension)
            if block is not None:
                blocks[number] = None, block
        self._blocks = dict(sorted(blocks.items()))
        self._join()

    def _join(self) -> None:
        """Join the rows of all blocks, except for the codes."""
        index: dict[Scope, int] = {}
        numbers, scopes, scales, radii = [], [], [], []
        for number, (_, block) in self._blocks.items():
            places = np.array([index.setdefault(name, len(index)) for name in block.names])
            numbers.append(number * BLOCK + block.offsets)
            scopes.append(places[block.scopes])
            scales.append(block.scales)
            radii.append(block.radii)
        self._numbers = np.concatenate([np.zeros(0, dtype=np.int64), *numbers])
        self._scope_of_row = np.concatenate([np.zeros(0, dtype=np.int64), *scopes])
        self._scales = np.concatenate([np.zeros(0, dtype=np.float32), *scales])
        self._radii = np.concatenate([np.zeros(0, dtype=np.float32), *radii])
        self._scopes = list(index)


class _QuantizedScan(Scan):
    """Scan of quantized embeddings. The cosines that it returns are exact."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        query: Float[np.ndarray, "D"],
        numbers: Int[np.ndarray, "R"],
        cosines: Float[np.ndarray, "R"],
        radii: Float[np.ndarray, "R"],
        mask: Bool[np.ndarray, "R"] | None,
        tail: Scan,
    ) -> None:
        self._connection, self._query, self._tail = connection, query, tail
        if mask is not None:
            numbers, cosines, radii = numbers[mask], cosines[mask], radii[mask]
        self._numbers, self._cosines = numbers, cosines
        self._radii = radii * np.linalg.norm(query).astype(np.float32)
        self._exact: dict[int, float] = {}
        newest = tail.nearest(tail.count)
        super().__init__(np.concatenate([cosines, tail.cosines(newest)]), len(cosines) + tail.count)

    def cosines(self, numbers: Int[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return the cosine of the query and each of these records, NaN for a record without an embedding."""
        cosines = self._tail.cosines(numbers)
        places = np.flatnonzero(np.isnan(cosines))
        missing = [number for number in numbers[places].tolist() if number not in self._exact]
        read_numbers, vectors = read_vectors(self._connection, missing, len(self._query))
        # Double precision: equal embeddings have equal cosines, so that ties are ties.
        products = (vectors.astype(np.float64) * self._query).sum(axis=1).astype(np.float32)
        self._exact |= zip(read_numbers, products.tolist(), strict=True)
        cosines[places] = [self._exact.get(number, np.nan) for number in numbers[places].tolist()]
        return cosines

    def nearest(self, count: int) -> Int[np.ndarray, "K"]:
        """Return the record numbers of up to `count` nearest records, best first; ties: newest first."""
        lower = self._cosines - self._radii
        places = np.arange(len(lower))
        if 0 < count < len(lower):
            # The largest bounds of `count` groups or more are a first threshold, which needs no sort of all.
            groups = np.maximum.reduceat(lower, np.arange(0, len(lower), max(1, len(lower) // (8 * count))))
            least = np.partition(groups, -count)[-count] if len(groups) >= count else -np.inf
            places = np.flatnonzero(self._cosines + self._radii >= least)
            least = np.partition(lower[places], -count)[-count]
            places = places[(self._cosines + self._radii)[places] >= least]
        candidates = np.concatenate([self._numbers[places], self._tail.nearest(count)])
        cosines = self.cosines(candidates)
        candidates, cosines = candidates[~np.isnan(cosines)], cosines[~np.isnan(cosines)]
        newest_first = np.argsort(-candidates)
        return candidates[newest_first[best(cosines[newest_first], count)]]


def _read_version(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the number of deletions, and the number of complete blocks; 0 blocks in a small bank."""
    (highest,) = connection.execute("SELECT MAX(number) FROM vectors").fetchone()
    blocks = ((highest or 0) + 1) // BLOCK
    return read_fact(connection, "deletions") or 0, blocks if blocks >= _MIN_BLOCKS else 0


def _find_missing(connection: sqlite3.Connection, end: int) -> Iterator[int]:
    """Yield the blocks below `end` that have embeddings and no row."""
    rows = connection.execute("SELECT block FROM quantized WHERE block < ? ORDER BY block", (end,))
    start = 0
    for gap_end in [*(block for (block,) in rows.fetchall()), end]:
        while start < gap_end:
            (number,) = connection.execute(
                "SELECT MIN(number) FROM vectors WHERE number >= ? AND number < ?",
                (start * BLOCK, gap_end * BLOCK),
            ).fetchone()
            if number is None:
                break
            yield number // BLOCK
            start = number // BLOCK + 1
        start = gap_end + 1


def _write_block(connection: sqlite3.Connection, number: int, dimension: int) -> None:
    """Write the row of a block, unless it has one or has no embeddings."""
    block = _read_block(connection, number, dimension)
    if block is not None:
        connection.execute(
            "INSERT OR IGNORE INTO quantized VALUES (?, random() & ?, ?, ?)",
            (number, _MAX_STAMP - 1, *block.pack()),
        )


def _read_block(connection: sqlite3.Connection, block: int, dimension: int) -> Block | None:
    """Quantize the embeddings of a block; None if it has none."""
    rows = connection.execute(
        "SELECT number, vector, namespace, kind FROM vectors JOIN records USING (number) "
        "WHERE number >= ? AND number < ? ORDER BY number",
        (block * BLOCK, (block + 1) * BLOCK),
    ).fetchall()
    if not rows:
        return None
    numbers, blobs, namespaces, kinds = zip(*rows, strict=True)
    scopes = list(zip(namespaces, kinds, strict=True))
    offsets = [number - block * BLOCK for number in numbers]
    return Block.quantize(offsets, scopes, unpack_vectors(list(blobs), dimension))
