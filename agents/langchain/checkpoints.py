"""SQL tables of checkpoints.

The value of a channel is stored once for all checkpoints between two changes of the channel. When a list
grows, the new version of the list refers to the stored items of the old version.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from scrubjay.memory.bank.file.damage import MAX_NUMBER, UnreadableError

COLUMNS = "thread, namespace, id, parent, run, type, checkpoint, metadata_type, metadata, channels"

TABLES = {
    "checkpoints": COLUMNS,
    "channel_values": "thread, number, type, value",
    "list_items": "thread, number, type, value",
    "writes": "thread, namespace, checkpoint, task, place, path, channel, type, value",
}
"""Tables with data of a thread, and their columns, the thread first."""

SerializedValue = tuple[str, bytes]
"""Serialized value: its format and its bytes."""

_LIST = ""  # type of a value that is stored in `list_items`; no serializer uses it
_ITEM = struct.Struct("<q16s")  # number, digest


class StoredCheckpoint(NamedTuple):
    """Serialized checkpoint, as read from the tables."""

    row: tuple
    channels: dict[str, SerializedValue | list[SerializedValue]]
    writes: list[tuple[str, str, str, bytes]]


def read_checkpoint(
    connection: sqlite3.Connection, condition: str, values: list[Any]
) -> StoredCheckpoint | None:
    """Return the first checkpoint that meets an SQL condition, with its values and writes, or None."""
    row = connection.execute(f"SELECT {COLUMNS} FROM checkpoints WHERE {condition}", values).fetchone()
    if row is None:
        return None
    channels = {
        name: _read_value(connection, row[0], number) for name, (number, _) in parse_channels(row[-1]).items()
    }
    writes = connection.execute(
        "SELECT task, channel, type, value FROM writes WHERE thread = ? AND namespace = ? AND checkpoint = ? "
        "ORDER BY path, task, place",
        row[:3],
    ).fetchall()
    return StoredCheckpoint(row, channels, writes)


def channel_numbers(
    connection: sqlite3.Connection, thread: str, namespace: str, id: str | None
) -> dict[str, tuple[int, Any]]:
    """Return, for each channel of a checkpoint, the row number and the version of the channel's value."""
    row = connection.execute(
        "SELECT channels FROM checkpoints WHERE thread = ? AND namespace = ? AND id = ?",
        (thread, namespace, id),
    ).fetchone()
    return parse_channels(row[0]) if row else {}


def parse_channels(text: str) -> dict[str, tuple[int, Any]]:
    """Return the row number and the version of the value of each channel, from a checkpoint's column.

    Raises UnreadableError if the column has another form.
    """
    try:
        channels = json.loads(text)
        numbers = {name: number for name, (number, _) in channels.items()}
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise UnreadableError(f"the channels of a checkpoint are damaged: {error}") from error
    for name, number in numbers.items():
        if type(number) is not int or abs(number) > MAX_NUMBER:
            raise UnreadableError(
                f"the channel {name!r:.80} of a checkpoint has the row number {number!r:.40}"
            )
    return channels


def add_value(
    connection: sqlite3.Connection,
    thread: str,
    value: SerializedValue | list[SerializedValue],
    before: int | None,
) -> int:
    """Insert a value and return its row number, which is unique in the thread.

    `before` is the row number of the previous value. If both values are lists, stored items are reused.
    """
    if isinstance(value, list):
        number_of_digest = {} if before is None else {d: n for n, d in _items(connection, thread, before)}
        value = (
            _LIST,
            b"".join(_ITEM.pack(*_add_item(connection, thread, item, number_of_digest)) for item in value),
        )
    return _insert(connection, "channel_values", thread, value)


def delete_checkpoints(connection: sqlite3.Connection, numbers: Sequence[int], threads: set[str]) -> None:
    """Delete checkpoints, their writes, and values that no remaining checkpoint of `threads` uses."""
    for number in numbers:
        connection.execute(
            "DELETE FROM writes WHERE (thread, namespace, checkpoint) = "
            "(SELECT thread, namespace, id FROM checkpoints WHERE number = ?)",
            (number,),
        )
        connection.execute("DELETE FROM checkpoints WHERE number = ?", (number,))
    for thread in threads:
        used_numbers = {
            number
            for (channels,) in connection.execute(
                "SELECT channels FROM checkpoints WHERE thread = ?", (thread,)
            )
            for number, _ in json.loads(channels).values()
        }
        _delete_unused(connection, "channel_values", thread, used_numbers)
        _delete_unused(
            connection,
            "list_items",
            thread,
            {i for n in used_numbers for i, _ in _items(connection, thread, n)},
        )


def _read_value(
    connection: sqlite3.Connection, thread: str, number: int
) -> SerializedValue | list[SerializedValue]:
    type, value = _select_value(connection, "channel_values", thread, number)
    if type != _LIST:
        return type, value
    return [_select_value(connection, "list_items", thread, item) for item, _ in _unpack_items(value)]


def _items(connection: sqlite3.Connection, thread: str, number: int) -> list[tuple[int, bytes]]:
    """Return row number and digest of each item of a list value; [] if the value is not a list."""
    type, value = _select_value(connection, "channel_values", thread, number)
    return _unpack_items(value) if type == _LIST else []


def _unpack_items(value: bytes) -> list[tuple[int, bytes]]:
    try:
        return [*_ITEM.iter_unpack(value)]
    except struct.error as error:
        raise UnreadableError(f"a list of a checkpoint is damaged: {error}") from error


def _add_item(
    connection: sqlite3.Connection, thread: str, item: SerializedValue, number_of_digest: dict[bytes, int]
) -> tuple[int, bytes]:
    digest = hashlib.blake2b(f"{item[0]}\0".encode() + item[1], digest_size=16).digest()
    if digest not in number_of_digest:
        number_of_digest[digest] = _insert(connection, "list_items", thread, item)
    return number_of_digest[digest], digest


def _select_value(connection: sqlite3.Connection, table: str, thread: str, number: int) -> SerializedValue:
    row = connection.execute(
        f"SELECT type, value FROM {table} WHERE thread = ? AND number = ?", (thread, number)
    ).fetchone()
    if row is None or not (isinstance(row[0], str) and isinstance(row[1], bytes)):
        problem = "is missing" if row is None else "has another type"
        raise UnreadableError(f"the value {number} of a checkpoint {problem} in the table {table}")
    return row


def _insert(connection: sqlite3.Connection, table: str, thread: str, value: SerializedValue) -> int:
    (number,) = connection.execute(
        f"INSERT INTO {table} SELECT ?1, COALESCE(MAX(number), 0) + 1, ?2, ?3 FROM {table} "
        "WHERE thread = ?1 RETURNING number",
        (thread, *value),
    ).fetchone()
    return number


def _delete_unused(connection: sqlite3.Connection, table: str, thread: str, numbers: set[int]) -> None:
    rows = connection.execute(f"SELECT number FROM {table} WHERE thread = ?", (thread,)).fetchall()
    connection.executemany(
        f"DELETE FROM {table} WHERE thread = ? AND number = ?",
        [(thread, number) for (number,) in rows if number not in numbers],
    )
