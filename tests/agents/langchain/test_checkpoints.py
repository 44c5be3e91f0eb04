"""Tables of checkpoints: equal values are stored once, and unused values are deleted."""

from __future__ import annotations

import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.langchain.checkpoints import (
    COLUMNS,
    TABLES,
    add_value,
    channel_numbers,
    delete_checkpoints,
    read_checkpoint,
)
from scrubjay.memory.bank.file.schema import LAYOUTS

VALUES = st.tuples(st.sampled_from(["msgpack", "json"]), st.binary(max_size=4))
LISTS = st.lists(VALUES, max_size=6)


def open_connection() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for migration in LAYOUTS["checkpoints"]:
        for statement in migration:
            connection.execute(statement)
    return connection


def put(connection: sqlite3.Connection, name: str, channels: dict, thread: str = "t") -> int:
    """Insert a checkpoint with value numbers; return the checkpoint's number."""
    row = (thread, "", name, None, None, "json", b"{}", "json", b"{}", json.dumps(channels))
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO checkpoints ({COLUMNS}) VALUES ({marks})", row)
    return connection.execute("SELECT MAX(number) FROM checkpoints").fetchone()[0]


def read_value(connection: sqlite3.Connection, name: str, channel: str = "c"):
    checkpoint = read_checkpoint(connection, "id = ?", [name])
    assert checkpoint is not None
    return checkpoint.channels[channel]


def count(connection: sqlite3.Connection, table: str) -> int:
    return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]


@given(st.lists(VALUES | LISTS, min_size=1, max_size=6))
def test_what_was_kept_is_read_again(values):
    connection, before = open_connection(), None
    for index, value in enumerate(values):
        before = add_value(connection, "t", value, before)
        put(connection, str(index), {"c": [before, 1]})
    for index, value in enumerate(values):
        assert read_value(connection, str(index)) == value


@given(st.lists(VALUES, min_size=1, max_size=8, unique=True))
def test_a_growing_list_keeps_each_item_once(items):
    connection, before = open_connection(), None
    for length in range(len(items) + 1):
        before = add_value(connection, "t", items[:length], before)
    assert count(connection, "list_items") == len(items)
    # A list that did not grow from the previous one shares no items with it.
    add_value(connection, "t", items, None)
    assert count(connection, "list_items") == 2 * len(items)


@given(LISTS, LISTS)
def test_deleting_one_of_two_leaves_what_the_other_holds(first, second):
    connection = open_connection()
    one = add_value(connection, "t", first, None)
    other = add_value(connection, "t", second, one)
    number = put(connection, "first", {"c": [one, 1]})
    last = put(connection, "second", {"c": [other, 2]})
    delete_checkpoints(connection, [number], {"t"})
    assert read_checkpoint(connection, "id = ?", ["first"]) is None
    assert read_value(connection, "second") == second
    assert count(connection, "list_items") == len(set(second))
    delete_checkpoints(connection, [last], {"t"})
    assert [count(connection, table) for table in TABLES] == [0, 0, 0, 0]


def test_threads_share_nothing():
    connection = open_connection()
    numbers = [add_value(connection, thread, ("json", thread.encode()), None) for thread in ("t", "u")]
    checkpoint_numbers = [
        put(connection, thread, {"c": [n, 1]}, thread) for thread, n in zip("tu", numbers, strict=True)
    ]
    assert numbers == [1, 1]
    delete_checkpoints(connection, checkpoint_numbers[:1], {"t"})
    assert read_value(connection, "u") == ("json", b"u")


def test_writes_go_with_their_checkpoint_in_the_order_of_their_tasks():
    connection = open_connection()
    number = put(connection, "a", {})
    for task, place, path in (("two", 0, "b"), ("one", 1, "a"), ("one", 0, "a")):
        row = ("t", "", "a", task, place, path, "c", "json", f"{task}{place}".encode())
        connection.execute(f"INSERT INTO writes VALUES ({', '.join('?' * len(row))})", row)
    checkpoint = read_checkpoint(connection, "id = ?", ["a"])
    assert checkpoint is not None
    assert [value for *_, value in checkpoint.writes] == [b"one0", b"one1", b"two0"]
    delete_checkpoints(connection, [number], {"t"})
    assert count(connection, "writes") == 0


def test_channels_of_a_checkpoint_that_is_not_there_are_none():
    connection = open_connection()
    put(connection, "a", {"c": [4, "v2"]})
    assert channel_numbers(connection, "t", "", "a") == {"c": [4, "v2"]}
    assert channel_numbers(connection, "t", "", "b") == channel_numbers(connection, "u", "", "a") == {}


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_the_columns_that_are_copied(table):
    table_columns = open_connection().execute(f"PRAGMA table_info({table})").fetchall()
    columns = [name for _, name, *_ in table_columns if (table, name) != ("checkpoints", "number")]
    assert TABLES[table] == ", ".join(columns)
