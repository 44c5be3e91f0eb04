"""Index of words: the records that contain a word, by field, in the bank's file.

The index consists of postings. A posting says how often a record contains a word in a field, and how many
words the field has. The record numbers are divided into blocks. The table `postings` has a row for each word
of a field of a block: an array of postings. A new record therefore appends a few bytes to some rows of the
last block, and a search reads one array per word and block. The table `blocks` lists the indexed records of
each block with the number of their postings.
"""

from __future__ import annotations

import collections
import enum
import hashlib
import itertools
import json
import math
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, tzinfo
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.file.words import Term, day_words, index_words

BLOCK = 2048
"""Record numbers per block."""
ENTRY_SIZE = 4
"""Bytes of a record in the column `records` of the table `blocks`."""
_POSTING = struct.Struct("<HBB")
_ENTRY = struct.Struct("<HH")
_POSTING_TYPE = np.dtype([("offset", "<u2"), ("count", "u1"), ("length", "u1")])
_ENTRY_TYPE = np.dtype([("offset", "<u2"), ("postings", "<u2")])
_MAX_COUNT = 255
_MAX_POSTINGS = (1 << 16) - 1
_EXACT_LENGTHS = 128  # lengths below it are stored exactly, longer ones as logarithms
_LENGTHS_PER_DOUBLING = 9
_MAX_SIZE = 1 << 31  # positions; a search holds two numbers for each
_MAX_WORDS = 500  # words per statement; older SQLite versions accept at most 999 values
_DAY = 86400.0
TITLES = ("title", "section")
"""Fields of the provenance that name what a record is about, the most specific one first."""
_SPEAKER = "speaker"


class Field(enum.IntEnum):
    """Field of a record in the index of words."""

    SCOPE = 0
    """Kind, and every level of the namespace."""
    TEXT = 1
    DATE = 2
    """Day, month and year of the observation."""
    TITLE = 3
    """Provenance fields `title` and `section`."""
    SPEAKER = 4
    """Provenance field `speaker`."""


IndexEntry = dict[Field, collections.Counter[str]]
"""Words of a record's fields, with their counts."""


class Postings(NamedTuple):
    """Postings of a word in a field."""

    positions: Int[np.ndarray, "P"]
    """Positions of the records in the index: numbers without the gaps between blocks."""
    counts: UInt8[np.ndarray, "P"]
    """Number of times that the word occurs, at most 255."""
    lengths: UInt8[np.ndarray, "P"]
    """Codes of the number of words in the field; `LENGTHS` has the numbers."""
    are_distinct: bool
    """True if no position occurs twice."""


def _code_length(length: int) -> int:
    if length < _EXACT_LENGTHS:
        return length
    return min(_MAX_COUNT, _EXACT_LENGTHS + round(_LENGTHS_PER_DOUBLING * math.log2(length / _EXACT_LENGTHS)))


LENGTHS: Float[np.ndarray, "256"] = np.array(
    [
        code
        if code < _EXACT_LENGTHS
        else _EXACT_LENGTHS * 2 ** ((code - _EXACT_LENGTHS) / _LENGTHS_PER_DOUBLING)
        for code in range(256)
    ]
)
"""Number of words for each code of a length: exact below 128, within 4 % above."""


def index_entry(
    text: str, kind: str, namespace: str, observed: float, zone: tzinfo, provenance: str
) -> IndexEntry:
    """Return the words of a record's fields.

    Args:
        text: Text of the record.
        kind: Kind of the record.
        namespace: Namespace of the record, a string from `join_namespace`.
        observed: Time of the observation in seconds since 1970.
        zone: Time zone of the date in the index.
        provenance: Metadata of the record as JSON. Invalid JSON, of a damaged file, has no words.
    """
    metadata = parse_metadata(provenance)
    titles = [value for name in TITLES if isinstance(value := metadata.get(name), str)]
    speaker = metadata.get(_SPEAKER)
    words_of_field = {
        Field.SCOPE: scope_words(namespace, kind),
        Field.TEXT: index_words(text),
        Field.DATE: list(dict.fromkeys(index_words(day_words(text, observed, zone)))),
        Field.TITLE: index_words("\n".join(titles)),
        Field.SPEAKER: index_words(speaker) if isinstance(speaker, str) else [],
    }
    return {field: collections.Counter(words) for field, words in words_of_field.items() if words}


def parse_metadata(provenance: str) -> dict[str, Any]:
    """Return the metadata of a record from its JSON; invalid JSON, of a damaged file, has no fields."""
    try:
        metadata = json.loads(provenance)
    except (TypeError, ValueError, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def entry_words(text: str, kind: str, namespace: str, observed: float, provenance: str) -> set[str]:
    """Return the index words of a record in any time zone."""
    days = [observed + step * _DAY for step in (-1, 0, 1)]
    entry = index_entry(text, kind, namespace, observed, UTC, provenance)
    dates = (word for day in days for word in index_words(day_words(text, day)))
    return {word for counts in entry.values() for word in counts}.union(dates)


def scope_words(namespace: str, kind: str) -> list[str]:
    """Return the index words for a record's kind and for every level of its namespace."""
    ends = [i + 1 for i, letter in enumerate(namespace) if letter == "\x1f"]
    return list(dict.fromkeys([scope_word(kind), *(scope_word(namespace[:end]) for end in ends)]))


def scope_word(name: str) -> str:
    """Return the index word of a kind, or of a string from `join_namespace`."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def insert_entries(connection: sqlite3.Connection, entries: Iterable[tuple[int, IndexEntry]]) -> None:
    """Insert the index entries of records. None of the records may have an entry."""
    postings: dict[tuple[int, str, int], bytearray] = {}
    records: dict[int, bytearray] = {}
    lengths: collections.Counter[int] = collections.Counter()
    for number, entry in entries:
        block, offset = divmod(number, BLOCK)
        total = 0
        for field, counts in entry.items():
            length = counts.total()
            code = _code_length(length)
            if field is Field.TEXT:
                lengths[block] += length
            total += len(counts)
            for word, count in counts.items():
                posting = _POSTING.pack(offset, min(count, _MAX_COUNT), code)
                postings.setdefault((block, word, field), bytearray()).extend(posting)
        records.setdefault(block, bytearray()).extend(_ENTRY.pack(offset, min(total, _MAX_POSTINGS)))
    # `||` concatenates bytes; the result is a text until the cast.
    connection.executemany(
        "INSERT INTO postings VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET data = CAST(data || excluded.data AS BLOB)",
        [(*key, bytes(data)) for key, data in postings.items()],
    )
    connection.executemany(
        "INSERT INTO blocks VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET "
        "records = CAST(records || excluded.records AS BLOB), length = length + excluded.length",
        [(block, bytes(data), lengths[block]) for block, data in records.items()],
    )


def delete_entry(connection: sqlite3.Connection, number: int, words: set[str], length: int) -> None:
    """Delete the index entry of a record; do nothing if the record has none.

    `words` has the index words of the record, and may have others. If some postings have other words, as
    those of another version of the tokenizer, the whole block is searched for them. `length` is the number of
    words of the record's text.
    """
    block, offset = divmod(number, BLOCK)
    row = connection.execute("SELECT records, length FROM blocks WHERE block = ?", (block,)).fetchone()
    records = _unpack(row[0] if row else b"", _ENTRY_TYPE)
    is_entry = records["offset"] == offset
    if not is_entry.any():
        return
    expected = int(records["postings"][is_entry].sum())
    rows = _read_rows(connection, block, words)
    if _delete_postings(connection, block, offset, rows) != expected or expected == _MAX_POSTINGS:
        every = connection.execute("SELECT word, field, data FROM postings WHERE block = ?", (block,))
        _delete_postings(connection, block, offset, every.fetchall())
    rest = records[~is_entry].tobytes()
    if not rest:
        connection.execute("DELETE FROM blocks WHERE block = ?", (block,))
        return
    connection.execute(
        "UPDATE blocks SET records = ?, length = MAX(length - ?, 0) WHERE block = ?", (rest, length, block)
    )


def has_postings(connection: sqlite3.Connection, number: int, words: set[str]) -> bool:
    """Return True if the index contains a record and all these words of it."""
    block, offset = divmod(number, BLOCK)
    row = connection.execute("SELECT records FROM blocks WHERE block = ?", (block,)).fetchone()
    if not (_unpack(row[0] if row else b"", _ENTRY_TYPE)["offset"] == offset).any():
        return False
    rows = _read_rows(connection, block, words)
    result = {word for word, _, data in rows if (_unpack(data, _POSTING_TYPE)["offset"] == offset).any()}
    return result == words


def _read_rows(connection: sqlite3.Connection, block: int, words: set[str]) -> list[tuple[str, int, bytes]]:
    """Return word, field and postings of words in a block."""
    sorted_words, rows = sorted(words), []
    for first in range(0, len(sorted_words), _MAX_WORDS):
        some = sorted_words[first : first + _MAX_WORDS]
        rows += connection.execute(
            f"SELECT word, field, data FROM postings WHERE block = ? AND word IN ({_marks(some)})",
            (block, *some),
        )
    return rows


def _delete_postings(
    connection: sqlite3.Connection, block: int, offset: int, rows: list[tuple[str, int, bytes]]
) -> int:
    """Delete the postings of a record from rows of the table `postings`; return their number."""
    count = 0
    for word, field, data in rows:
        postings = _unpack(data, _POSTING_TYPE)
        rest = postings[postings["offset"] != offset]
        if len(rest) == len(postings):
            continue
        count += len(postings) - len(rest)
        key = (block, word, field)
        if len(rest):
            connection.execute(
                "UPDATE postings SET data = ? WHERE block = ? AND word = ? AND field = ?",
                (rest.tobytes(), *key),
            )
        else:
            connection.execute("DELETE FROM postings WHERE block = ? AND word = ? AND field = ?", key)
    return count


class WordIndex:
    """Postings in a bank's file, as one transaction sees them.

    Raises UnreadableError if the file has invalid postings.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        rows = connection.execute(
            "SELECT block, length(records), length FROM blocks ORDER BY block"
        ).fetchall()
        if not all(isinstance(value, int) for row in rows for value in row):
            raise UnreadableError("the table `blocks` has a value of a wrong type")
        self._blocks = np.array([block for block, _, _ in rows], dtype=np.int64)
        self.records = sum(size for _, size, _ in rows) // _ENTRY.size
        """Number of records."""
        self.mean_length = max(sum(length for _, _, length in rows) / max(self.records, 1), 1.0)
        """Mean number of words of a text."""
        self.size = len(rows) * BLOCK
        if self.size > _MAX_SIZE:
            raise UnreadableError(f"the index of words has {len(rows):,} blocks")
        """Number of positions. Some belong to no record."""

    def read(self, term: Term) -> dict[Field, Postings]:
        """Return the postings of a term by field. A record with several of its words has several postings."""
        condition, words = f"word IN ({_marks(term.words)})", term.words
        if term.is_prefix:
            condition, words = "word >= ? AND word < ?", (term.words[0], f"{term.words[0]}\U0010ffff")
        rows = self._connection.execute(
            "SELECT field, postings.block, data FROM blocks CROSS JOIN postings "
            f"ON postings.block = blocks.block AND {condition}",
            words,
        )
        rows_of_field: dict[int, list[tuple[int, bytes]]] = {}
        for field, block, data in rows:
            rows_of_field.setdefault(field, []).append((block, data))
        return {field: self._decode(rows_of_field[field], term) for field in Field if field in rows_of_field}

    def numbers(self, positions: Int[np.ndarray, "P"]) -> Int[np.ndarray, "P"]:
        """Return the record numbers at positions."""
        return self._blocks[positions // BLOCK] * BLOCK + positions % BLOCK

    def _decode(self, rows: list[tuple[int, bytes]], term: Term) -> Postings:
        blocks, blobs = zip(*rows, strict=True)
        if not all(isinstance(blob, bytes) and len(blob) % _POSTING.size == 0 for blob in blobs):
            raise UnreadableError("the table `postings` has invalid data")
        postings = _unpack(b"".join(blobs), _POSTING_TYPE)
        places = np.searchsorted(self._blocks, np.array(blocks, dtype=np.int64)) * BLOCK
        positions = np.repeat(places, [len(blob) // _POSTING.size for blob in blobs]) + postings["offset"]
        if len(positions) and int(postings["offset"].max()) >= BLOCK:
            raise UnreadableError("the table `postings` has an offset outside its block")
        are_distinct = len(term.words) == 1 and not term.is_prefix
        return Postings(positions, postings["count"], postings["length"], are_distinct)


def unindexed_numbers(connection: sqlite3.Connection, count: int) -> list[int]:
    """Return up to `count` numbers of records that have no index entry, ascending."""
    missing = (number for block in _read_blocks(connection) for number in block)
    return list(itertools.islice(missing, count))


def _read_blocks(connection: sqlite3.Connection) -> Iterator[list[int]]:
    """Yield the numbers of the records of each block that have no index entry."""
    block = -1
    while True:
        (first,) = connection.execute(
            "SELECT MIN(number) FROM records WHERE number >= ?", ((block + 1) * BLOCK,)
        ).fetchone()
        if first is None:
            return
        block = first // BLOCK
        bounds = (block * BLOCK, (block + 1) * BLOCK)
        rows = connection.execute("SELECT number FROM records WHERE number >= ? AND number < ?", bounds)
        numbers = np.fromiter((number for (number,) in rows), dtype=np.int64)
        row = connection.execute("SELECT records FROM blocks WHERE block = ?", (block,)).fetchone()
        known_numbers = bounds[0] + _unpack(row[0] if row else b"", _ENTRY_TYPE)["offset"].astype(np.int64)
        yield numbers[~np.isin(numbers, known_numbers)].tolist()


def _unpack(data: Any, type: np.dtype) -> np.ndarray:
    if not isinstance(data, bytes) or len(data) % type.itemsize:
        raise UnreadableError("the index of words has invalid data")
    return np.frombuffer(data, dtype=type)


def _marks(words: Sequence[str]) -> str:
    """Return one placeholder per word."""
    return ", ".join("?" * len(words))
