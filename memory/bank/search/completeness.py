"""Completeness of a bank's indexes: a sample of the records is looked up, and an incomplete index is rebuilt.

An index is incomplete after damage, or after a change by another program. A search would then miss records
without an error. The index of words of a file of an older version is built at the first search.
"""

from __future__ import annotations

import sqlite3
import struct
import warnings
from collections.abc import Iterator, Sequence
from datetime import tzinfo
from typing import NamedTuple

from scrubjay.memory.bank.file.damage import UnreadableError, read_fact
from scrubjay.memory.bank.file.postings import (
    ENTRY_SIZE,
    IndexEntry,
    has_postings,
    index_entry,
    insert_entries,
    scope_words,
    unindexed_numbers,
)
from scrubjay.memory.bank.file.store import Store, select
from scrubjay.memory.bank.file.words import index_words

_MAX_COMPARED = 2000  # characters of a text that is compared with its entry
_OLDEST, _NEWEST = (f"(SELECT {function}(number) FROM records)" for function in ("MIN", "MAX"))
_SELECT_SAMPLE = f"""SELECT number, namespace, kind, CASE WHEN length(text) <= {_MAX_COMPARED} THEN text END
    FROM records WHERE number IN ({_OLDEST}, {_NEWEST},
    (SELECT MIN(number) FROM records WHERE number >= {_OLDEST} / 2 + {_NEWEST} / 2))"""
_BATCH = 500  # records per batch of a rebuild
_WORD_MARKS = 6  # marks of a record without an embedding, at most
_MARK_SIZE = 8  # bytes of a mark in the column `marks` of a record


class _SampledRecord(NamedTuple):
    """Record of the sample; `text` is None if it is long."""

    number: int
    namespace: str
    kind: str
    text: str | None


def complete_words(store: Store, zone: tzinfo, is_verified: bool) -> None:
    """Index the words of the records that have no index entry; rebuild a damaged index, and warn.

    The records of a file of an older version have no entries. An interrupted call continues where it stopped.
    Call this function outside a transaction.

    Args:
        store: File of the bank.
        zone: Time zone of the dates in the index.
        is_verified: A sample of the records was looked up before.
    """
    with store.reading() as connection:
        last = read_fact(connection, "unindexed")
        if not last and (is_verified or _has_words(connection)):
            return
    if not last:
        with store.writing() as connection:
            if not read_fact(connection, "unindexed") and not _has_words(connection):
                _warn(store, "words")
                _discard_words(connection)
    while True:
        with store.writing() as connection:
            numbers = unindexed_numbers(connection, _BATCH)
            if not numbers:
                connection.execute("UPDATE facts SET value = 0 WHERE name = 'unindexed'")
                return
            insert_entries(connection, read_entries(connection, numbers, zone))


def complete_marks(store: Store) -> None:
    """Rebuild the index of duplicates if it lacks records, and warn. Call it outside a transaction."""
    with store.reading() as connection:
        if _has_marks(connection):
            return
    with store.writing() as connection:
        if not _has_marks(connection):  # again: another process may have rebuilt the index
            _warn(store, "duplicates")
            _rebuild_marks(connection)


def _warn(store: Store, name: str) -> None:
    warnings.warn(
        f"the index of {name} in {store.path!r} lacks records, by damage or by another program; "
        "rebuilding it",
        stacklevel=5,
    )


def find_lost_vectors(connection: sqlite3.Connection) -> list[tuple[int, str, str]]:
    """Return number, text and provenance of the records that were written with an embedding and lack it.

    The records are read only if one of a sample lacks its embedding.
    """
    condition = (
        f"length(marks) > {_WORD_MARKS * _MARK_SIZE} "
        "AND NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.number = records.number)"
    )
    numbers = [record.number for record in _sample(connection)]
    marks = ", ".join("?" * len(numbers))
    if not connection.execute(
        f"SELECT 1 FROM records WHERE number IN ({marks}) AND {condition} LIMIT 1", numbers
    ).fetchone():
        return []
    return connection.execute(f"SELECT number, text, provenance FROM records WHERE {condition}").fetchall()


def _sample(connection: sqlite3.Connection) -> list[_SampledRecord]:
    """Return the oldest record, the newest, and one between them."""
    records = [_SampledRecord(*row) for row in connection.execute(_SELECT_SAMPLE)]
    for record in records:
        if not isinstance(record.text, str | None):
            raise UnreadableError(f"record {record.number} has no valid text")
    return records


def _has_words(connection: sqlite3.Connection) -> bool:
    """Return True if the index of words has as many entries as there are records, and those of a sample."""
    entries, last = connection.execute(
        "SELECT (SELECT SUM(length(records)) FROM blocks), "
        "(SELECT seq FROM sqlite_sequence WHERE name = 'records')"
    ).fetchone()
    entries = (entries or 0) // ENTRY_SIZE
    # Record numbers are never reused, and counting rows takes linear time.
    expected = (last if isinstance(last, int) else 0) - (read_fact(connection, "deletions") or 0)
    if entries != expected:
        (records,) = connection.execute("SELECT COUNT(*) FROM records").fetchone()
        if entries != records:
            return False
    try:
        return all(_has_entry(connection, record) for record in _sample(connection))
    except UnreadableError:
        return False


def _has_entry(connection: sqlite3.Connection, record: _SampledRecord) -> bool:
    """Return True if the index has the text, the namespace and the kind of a record."""
    words = [*scope_words(record.namespace, record.kind), *index_words(record.text or "")]
    return has_postings(connection, record.number, set(words))


def _discard_words(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM postings")
    connection.execute("DELETE FROM blocks")
    connection.execute(
        "UPDATE facts SET value = (SELECT COALESCE(MAX(number), 0) FROM records) WHERE name = 'unindexed'"
    )


def read_entries(
    connection: sqlite3.Connection, numbers: Sequence[int], zone: tzinfo
) -> Iterator[tuple[int, IndexEntry]]:
    """Yield the number and the index entry of records."""
    columns = "number, text, kind, namespace, observed, provenance"
    rows = select(connection, columns, numbers)
    for number, text, kind, namespace, observed, provenance in rows:
        yield number, index_entry(text, kind, namespace, observed, zone, provenance)


def _has_marks(connection: sqlite3.Connection) -> bool:
    """Return True if the oldest and the newest record have their first mark in the index of duplicates."""
    rows = connection.execute(f"SELECT marks, number FROM records WHERE number IN ({_OLDEST}, {_NEWEST})")
    for marks, number in rows.fetchall():
        if not isinstance(marks, bytes):
            raise UnreadableError(f"record {number} has no valid marks")
        mark = int.from_bytes(marks[:_MARK_SIZE], "little", signed=True)
        entry = connection.execute("SELECT 1 FROM marks WHERE mark = ? AND number = ?", (mark, number))
        if marks and not entry.fetchone():
            return False
    return True


def _rebuild_marks(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM marks")
    rows = connection.execute("SELECT number, marks FROM records ORDER BY number")
    while batch := rows.fetchmany(_BATCH):
        connection.executemany(
            "INSERT OR IGNORE INTO marks VALUES (?, ?)",
            [(mark, number) for number, marks in batch for (mark,) in struct.iter_unpack("<q", marks)],
        )
