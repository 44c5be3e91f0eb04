"""The tables of checkpoints: what is the same is kept once, and what nobody holds is gone."""

from __future__ import annotations

import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.langchain.checkpoints import (
    COLUMNS,
    MIGRATIONS,
    TABLES,
    add_value,
    channel_numbers,
    delete,
    read,
)

VALUES = st.tuples(st.sampled_from(["msgpack", "json"]), st.binary(max_size=4))
LISTS = st.lists(VALUES, max_size=6)


def opened() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for migration in MIGRATIONS:
        for statement in migration:
            connection.execute(statement)
    return connection


def put(connection: sqlite3.Connection, name: str, channels: dict, thread: str = "t") -> int:
    """Keep a checkpoint with numbers of values; return its own number."""
    row = (thread, "", name, None, None, "json", b"{}", "json", b"{}", json.dumps(channels))
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO checkpoints ({COLUMNS}) VALUES ({marks})", row)
    return connection.execute("SELECT MAX(number) FROM checkpoints").fetchone()[0]


def value_of(connection: sqlite3.Connection, name: str, channel: str = "c"):
    found = read(connection, "id = ?", [name])
    assert found is not None
    return found.channels[channel]


def count(connection: sqlite3.Connection, table: str) -> int:
    return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]


@given(st.lists(VALUES | LISTS, min_size=1, max_size=6))
def test_what_was_kept_is_read_again(values):
    connection, before = opened(), None
    for index, value in enumerate(values):
        before = add_value(connection, "t", value, before)
        put(connection, str(index), {"c": [before, 1]})
    for index, value in enumerate(values):
        assert value_of(connection, str(index)) == value


@given(st.lists(VALUES, min_size=1, max_size=8, unique=True))
def test_a_growing_list_keeps_each_item_once(items):
    connection, before = opened(), None
    for length in range(len(items) + 1):
        before = add_value(connection, "t", items[:length], before)
    assert count(connection, "list_items") == len(items)
    # A list that did not grow from that one shares nothing.
    add_value(connection, "t", items, None)
    assert count(connection, "list_items") == 2 * len(items)


@given(LISTS, LISTS)
def test_deleting_one_of_two_leaves_what_the_other_holds(first, second):
    connection = opened()
    one = add_value(connection, "t", first, None)
    other = add_value(connection, "t", second, one)
    number = put(connection, "first", {"c": [one, 1]})
    last = put(connection, "second", {"c": [other, 2]})
    delete(connection, [number], {"t"})
    assert read(connection, "id = ?", ["first"]) is None
    assert value_of(connection, "second") == second
    assert count(connection, "list_items") == len(set(second))
    delete(connection, [last], {"t"})
    assert [count(connection, table) for table in TABLES] == [0, 0, 0, 0]


def test_threads_share_nothing():
    connection = opened()
    numbers = [add_value(connection, thread, ("json", thread.encode()), None) for thread in ("t", "u")]
    kept = [put(connection, thread, {"c": [n, 1]}, thread) for thread, n in zip("tu", numbers, strict=True)]
    assert numbers == [1, 1]
    delete(connection, kept[:1], {"t"})
    assert value_of(connection, "u") == ("json", b"u")


def test_writes_go_with_their_checkpoint_in_the_order_of_their_tasks():
    connection = opened()
    number = put(connection, "a", {})
    for task, place, path in (("two", 0, "b"), ("one", 1, "a"), ("one", 0, "a")):
        row = ("t", "", "a", task, place, path, "c", "json", f"{task}{place}".encode())
        connection.execute(f"INSERT INTO writes VALUES ({', '.join('?' * len(row))})", row)
    found = read(connection, "id = ?", ["a"])
    assert found is not None
    assert [value for *_, value in found.writes] == [b"one0", b"one1", b"two0"]
    delete(connection, [number], {"t"})
    assert count(connection, "writes") == 0


def test_channels_of_a_checkpoint_that_is_not_there_are_none():
    connection = opened()
    put(connection, "a", {"c": [4, "v2"]})
    assert channel_numbers(connection, "t", "", "a") == {"c": [4, "v2"]}
    assert channel_numbers(connection, "t", "", "b") == channel_numbers(connection, "u", "", "a") == {}


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_the_columns_that_are_copied(table):
    described = opened().execute(f"PRAGMA table_info({table})").fetchall()
    columns = [name for _, name, *_ in described if (table, name) != ("checkpoints", "number")]
    assert TABLES[table] == ", ".join(columns)
