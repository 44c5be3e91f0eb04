"""Everything of one owner in a bank's file: records, items of a store, chat messages and decisions.

`MemoryBank.export` and `forget` concern records alone. The items of `BankStore` and the messages of
`BankChatMessageHistory` have further copies of texts, which these methods include. Checkpoints name threads
and no owners; `BankCheckpointer.delete_thread` deletes them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from scrubjay.memory.bank.asynchronous import in_thread, iterate_in_thread
from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.file.store import has_tables
from scrubjay.memory.bank.index import forget
from scrubjay.memory.bank.life_cycle import LifeCycle
from scrubjay.memory.bank.record import check_namespace, join_namespace, read_json, split_namespace
from scrubjay.memory.bank.serialization import BATCH

_OWNED = "namespace >= ? AND namespace < ?"
_ROWS = {
    "items": ("namespace", "key", "value", "created", "updated", "ttl", "expires"),
    "messages": ("namespace", "thread", "type", "message"),
}
"""Exported columns of the tables beside the records."""
_JSON = {"value", "message"}


class Owner(LifeCycle):
    """Methods of `MemoryBank` that export or erase everything of one owner."""

    def export_owner(self, namespace: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield everything of an owner and of the namespaces below it as JSON-serializable dicts.

        The field `table` is "records", "items" or "messages". `restore` reads the records. The records of an
        item repeat its value and are left out.

        Raises ValueError if the namespace is empty.
        """
        owner = _check_owner(namespace)
        yield from ({"table": "records"} | row for row in self.export(namespace))
        for table in _ROWS:
            after = 0
            while True:
                with self._store.reading() as connection:
                    after, rows = _read_table(connection, table, owner, after)
                if not rows:
                    break
                yield from rows

    def erase_owner(self, namespace: Sequence[str]) -> dict[str, int]:
        """Delete everything of an owner and of the namespaces below it; return the number of rows by table.

        The bytes are overwritten in the file. An interrupted call has deleted a part; call it again.

        Raises ValueError if the namespace is empty.
        """
        owner, counts = _check_owner(namespace), dict.fromkeys(("records", *_ROWS, "decisions"), 0)
        done = False
        while not done:
            with self._store.writing() as connection:
                batch = _erase_batch(connection, owner, self._store.path)
            done = not any(batch.values())
            counts = {table: count + batch[table] for table, count in counts.items()}
        self._store.erase_traces()
        return counts

    aexport_owner = iterate_in_thread(BATCH)(export_owner)
    aerase_owner = in_thread(erase_owner)


def _check_owner(namespace: Sequence[str]) -> str:
    owner = join_namespace(check_namespace(namespace))
    if not owner:
        raise ValueError('namespace=(): name an owner, such as ("user", "ada")')
    return owner


def _read_table(
    connection: sqlite3.Connection, table: str, owner: str, after: int
) -> tuple[int, list[dict[str, Any]]]:
    """Return the number of the last row that was read, and up to `BATCH` rows behind `after` as JSON."""
    columns, rows = _ROWS[table], []
    for number, *values in _select(connection, table, f"number, {', '.join(columns)}", owner, after):
        row: dict[str, Any] = {"table": table, **dict(zip(columns, values, strict=True))}
        row["namespace"] = list(split_namespace(row["namespace"]))
        for name in _JSON & row.keys():
            row[name] = read_json(row[name], label=f"a {name} of the table {table}")
        rows.append(row)
        after = number
    return after, rows


def _select(
    connection: sqlite3.Connection, table: str, columns: str, owner: str, after: int = 0
) -> list[tuple[Any, ...]]:
    """Return up to `BATCH` rows of an owner with numbers above `after`; none if the table is missing."""
    if table != "records" and not has_tables(connection, table):
        return []
    return connection.execute(
        f"SELECT {columns} FROM {table} WHERE {_OWNED} AND number > ? ORDER BY number LIMIT ?",
        (owner, owner[:-1] + "\x20", after, BATCH),
    ).fetchall()


def _erase_batch(connection: sqlite3.Connection, owner: str, path: str) -> dict[str, int]:
    """Delete up to `BATCH` rows of each table; return the number of deleted rows by table."""
    ids = [id for (id,) in _select(connection, "records", "id", owner)]
    items = _select(connection, "items", "number, records", owner)
    for _, text in items:
        ids += read_json(text, list, "the list of records of an item")
    if not all(isinstance(id, str) for id in ids):
        raise UnreadableError("an item refers to a record without a valid id")
    messages = _select(connection, "messages", "number", owner)
    for table, rows in (("items", items), ("messages", messages)):
        if not rows:  # the file may lack the table
            continue
        connection.executemany(f"DELETE FROM {table} WHERE number = ?", [(number,) for number, *_ in rows])
    return {
        "records": sum(forget(connection, id, path) for id in ids),
        "items": len(items),
        "messages": len(messages),
        "decisions": _erase_decisions(connection, ids),
    }


def _erase_decisions(connection: sqlite3.Connection, ids: Sequence[str]) -> int:
    """Delete the decisions that concern one of the records; return their number."""
    if not ids or not has_tables(connection, "consolidation"):
        return 0
    numbers = connection.execute(
        "SELECT DISTINCT decisions.number FROM decisions, "
        "json_tree(json_array(json(considered), json(steps))) AS part "
        "WHERE part.atom IN (SELECT value FROM json_each(?))",
        (json.dumps(ids),),
    ).fetchall()
    connection.executemany("DELETE FROM decisions WHERE number = ?", numbers)
    return len(numbers)
