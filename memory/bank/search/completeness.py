"""Completeness of a bank's indexes: a sample of the records is looked up, and an incomplete index is rebuilt.

An index is incomplete after damage, or after a change by another program. A search would then miss records
without an error.
"""

from __future__ import annotations

import functools
import sqlite3
import struct
import warnings
from collections.abc import Callable
from datetime import tzinfo
from typing import Any, NamedTuple

from scrubjay.memory.bank.file.damage import UnreadableError, read_fact
from scrubjay.memory.bank.file.schema import CREATE_WORDS, empty_words
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.file.words import day_words, index_text
from scrubjay.memory.bank.search.candidates import scope_words

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


def complete_words(store: Store, zone: tzinfo) -> None:
    """Rebuild the index of words if it lacks records, and warn.

    `zone` is the time zone of the dates in the index. Call this function outside a transaction.
    """
    _complete(store, "words", _has_words, functools.partial(_rebuild_words, zone=zone))


def complete_marks(store: Store) -> None:
    """Rebuild the index of duplicates if it lacks records, and warn. Call it outside a transaction."""
    _complete(store, "duplicates", _has_marks, _rebuild_marks)


def _complete(
    store: Store,
    name: str,
    is_complete: Callable[[sqlite3.Connection], bool],
    rebuild: Callable[[sqlite3.Connection], None],
) -> None:
    with store.reading() as connection:
        if is_complete(connection):
            return
    with store.writing() as connection:
        if not is_complete(connection):  # again: another process may have rebuilt the index
            warnings.warn(
                f"the index of {name} in {store.path!r} lacks records, by damage or by another program; "
                "rebuilding it",
                stacklevel=5,
            )
            rebuild(connection)


def find_lost_vectors(connection: sqlite3.Connection) -> list[tuple[int, str]]:
    """Return number and text of the records that were written with an embedding and lack it.

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
    return connection.execute(f"SELECT number, text FROM records WHERE {condition}").fetchall()


def _sample(connection: sqlite3.Connection) -> list[_SampledRecord]:
    """Return the oldest record, the newest, and one between them."""
    records = [_SampledRecord(*row) for row in connection.execute(_SELECT_SAMPLE)]
    for record in records:
        if not isinstance(record.text, str | None):
            raise UnreadableError(f"record {record.number} has no valid text")
    return records


def _has_words(connection: sqlite3.Connection) -> bool:
    """Return True if the index of words has as many entries as there are records, and those of a sample."""
    averages, last = connection.execute(
        "SELECT (SELECT block FROM words_data WHERE id = 1), "
        "(SELECT seq FROM sqlite_sequence WHERE name = 'records')"
    ).fetchone()
    # Record numbers are never reused, and counting rows takes linear time.
    expected = (last if isinstance(last, int) else 0) - (read_fact(connection, "deletions") or 0)
    if _read_count(averages) != expected:
        entries, records = connection.execute(
            "SELECT (SELECT COUNT(*) FROM words_docsize), (SELECT COUNT(*) FROM records)"
        ).fetchone()
        if entries != records:
            return False
    try:
        return all(_has_entry(connection, record) for record in _sample(connection))
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_CORRUPT_VTAB:
            raise
        return False


def _read_count(averages: Any) -> int | None:
    """Return the number of entries of an FTS5 index from its record of averages.

    The record starts with the number as a variable-length integer: 7 bits a byte, the highest first.
    """
    count = 0
    for byte in averages if isinstance(averages, bytes) else b"":
        count = count << 7 | byte & 0x7F
        if byte < 0x80:
            return count
    return None


def _has_entry(connection: sqlite3.Connection, record: _SampledRecord) -> bool:
    scope = " AND ".join(scope_words(record.namespace, record.kind).split())
    row = connection.execute(
        "SELECT body FROM words WHERE words MATCH ? AND rowid = ? "
        "AND EXISTS (SELECT 1 FROM words_docsize WHERE id = words.rowid)",
        (f"scope : ({scope})", record.number),
    ).fetchone()
    return row is not None and (record.text is None or str(row[0]).startswith(index_text(record.text)))


def _rebuild_words(connection: sqlite3.Connection, zone: tzinfo) -> None:
    for table, content in empty_words().items():  # SQLite cannot drop an index that it cannot read
        connection.execute(f"DELETE FROM {table}")
        connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", content)
    connection.execute("DROP TABLE words")
    for statement in CREATE_WORDS:
        connection.execute(statement)
    rows = connection.execute("SELECT number, namespace, kind, text, observed FROM records ORDER BY number")
    while batch := rows.fetchmany(_BATCH):
        connection.executemany(
            "INSERT INTO words (rowid, scope, body) VALUES (?, ?, ?)",
            [
                (
                    number,
                    scope_words(namespace, kind),
                    f"{index_text(text)} {day_words(text, observed, zone)}",
                )
                for number, namespace, kind, text, observed in batch
            ],
        )


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
