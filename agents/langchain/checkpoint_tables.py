"""The tables of checkpoints: what a graph's steps left, values of channels shared by the steps they did not change in."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple

MIGRATIONS = (
    (
        """CREATE TABLE checkpoints (
            number INTEGER PRIMARY KEY,
            thread TEXT NOT NULL,
            namespace TEXT NOT NULL,
            id TEXT NOT NULL,
            parent TEXT,
            run TEXT,
            type TEXT NOT NULL,
            checkpoint BLOB NOT NULL,
            metadata_type TEXT NOT NULL,
            metadata BLOB NOT NULL,
            channels TEXT NOT NULL,
            UNIQUE (thread, namespace, id))""",
        "CREATE INDEX checkpoints_by_run ON checkpoints (run) WHERE run IS NOT NULL",
        """CREATE TABLE channel_values (
            thread TEXT NOT NULL,
            number INTEGER NOT NULL,
            type TEXT NOT NULL,
            value BLOB NOT NULL,
            UNIQUE (thread, number))""",
        """CREATE TABLE writes (
            thread TEXT NOT NULL,
            namespace TEXT NOT NULL,
            checkpoint TEXT NOT NULL,
            task TEXT NOT NULL,
            place INTEGER NOT NULL,
            path TEXT NOT NULL,
            channel TEXT NOT NULL,
            type TEXT NOT NULL,
            value BLOB NOT NULL,
            UNIQUE (thread, namespace, checkpoint, task, place))""",
    ),
)
COLUMNS = "thread, namespace, id, parent, run, type, checkpoint, metadata_type, metadata, channels"


class Found(NamedTuple):
    """A checkpoint as stored."""

    row: tuple
    channels: dict[str, tuple[str, bytes]]
    writes: list[tuple[str, str, str, bytes]]


def read(connection: sqlite3.Connection, condition: str, values: list[Any]) -> Found | None:
    """Return the first checkpoint that meets a condition, with its values and writes; None if none does."""
    row = connection.execute(f"SELECT {COLUMNS} FROM checkpoints WHERE {condition}", values).fetchone()
    if row is None:
        return None
    channels = {}
    for name, (number, _) in json.loads(row[-1]).items():
        channels[name] = connection.execute(
            "SELECT type, value FROM channel_values WHERE thread = ? AND number = ?", (row[0], number)
        ).fetchone()
    writes = connection.execute(
        "SELECT task, channel, type, value FROM writes WHERE thread = ? AND namespace = ? AND checkpoint = ? "
        "ORDER BY path, task, place",
        row[:3],
    ).fetchall()
    return Found(row, channels, writes)


def channel_numbers(
    connection: sqlite3.Connection, thread: str, namespace: str, id: str | None
) -> dict[str, tuple[int, Any]]:
    """Return for each channel of a checkpoint the number of its value, and its version."""
    row = connection.execute(
        "SELECT channels FROM checkpoints WHERE thread = ? AND namespace = ? AND id = ?",
        (thread, namespace, id),
    ).fetchone()
    return json.loads(row[0]) if row else {}


def add_value(connection: sqlite3.Connection, thread: str, type: str, value: bytes) -> int:
    """Return the number of a new value, unique in its thread."""
    (number,) = connection.execute(
        "INSERT INTO channel_values SELECT ?1, COALESCE(MAX(number), 0) + 1, ?2, ?3 FROM channel_values "
        "WHERE thread = ?1 RETURNING number",
        (thread, type, value),
    ).fetchone()
    return number


def delete(connection: sqlite3.Connection, numbers: Sequence[int], threads: set[str]) -> None:
    """Delete checkpoints, their writes, and the values that no checkpoint of these threads holds any more."""
    for number in numbers:
        connection.execute(
            "DELETE FROM writes WHERE (thread, namespace, checkpoint) = "
            "(SELECT thread, namespace, id FROM checkpoints WHERE number = ?)",
            (number,),
        )
        connection.execute("DELETE FROM checkpoints WHERE number = ?", (number,))
    for thread in threads:
        held = {
            number
            for (channels,) in connection.execute(
                "SELECT channels FROM checkpoints WHERE thread = ?", (thread,)
            )
            for number, _ in json.loads(channels).values()
        }
        there = connection.execute("SELECT number FROM channel_values WHERE thread = ?", (thread,)).fetchall()
        connection.executemany(
            "DELETE FROM channel_values WHERE thread = ? AND number = ?",
            [(thread, number) for (number,) in there if number not in held],
        )
