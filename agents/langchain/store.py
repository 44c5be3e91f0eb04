"""LangGraph's store over a memory bank: items by namespace and key, found by words and by meaning.

Not to be confused with langchain_core's BaseStore, a plain mapping of keys to values.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from langchain_core.runnables.config import run_in_executor
from langgraph.store.base import (
    BaseStore,
    GetOp,
    IndexConfig,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    SearchItem,
    SearchOp,
    TTLConfig,
    ensure_embeddings,
    get_text_at_path,
    validate_op_namespace,
)

from scrubjay.agents.langchain.filter import meets
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.text import storable
from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.file.record import check_count, join_namespace, split_namespace
from scrubjay.memory.bank.write import check_text

_MIGRATIONS = (
    (
        """CREATE TABLE items (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            namespace TEXT NOT NULL,
            key TEXT NOT NULL,
            value TEXT NOT NULL,
            created REAL NOT NULL,
            updated REAL NOT NULL,
            ttl REAL,
            expires REAL,
            records TEXT NOT NULL,
            UNIQUE (namespace, key))""",
        "CREATE INDEX items_by_expiry ON items (expires) WHERE expires IS NOT NULL",
    ),
)
_COLUMNS = "namespace, key, value, created, updated"
_ROOT = "store"
_DEPTH = 64


class BankStore(BaseStore):
    """Items kept in a bank's file; safe for threads, event loops and processes.

    `memory` is a bank, or the path of one to open. A search with a query ranks by the bank's recall, by
    words alone if it has no embeddings; items that it does not find come last, with no score.
    `index={"fields": [...]}` says which parts of a value are searchable, all by default; with a path, its
    `embed` becomes the bank's embeddings. What an item says is also in the bank, under namespace
    `("store", *namespace)`, of the longest texts the beginning. In one batch all reads come before all
    writes. What has expired is never seen, and goes with the next write or `sweep_ttl`. `clock` returns
    seconds since 1970. Raises ValueError on an `embed` for a bank that is open already.
    """

    supports_ttl = True
    __slots__ = ("_bank", "_clock", "_fields", "_owned", "ttl_config")

    def __init__(
        self,
        memory: MemoryBank | str | Path,
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._owned = not isinstance(memory, MemoryBank)
        if isinstance(memory, MemoryBank):
            if index and "embed" in index:
                raise ValueError(
                    "index has 'embed', but the bank is open already; pass the embeddings to MemoryBank"
                )
            self._bank = memory
        else:
            embed = index.get("embed") if index else None
            self._bank = MemoryBank(memory, None if embed is None else ensure_embeddings(embed))
        self._fields = (index or {}).get("fields") or ["$"]
        self._clock = clock
        self.ttl_config = ttl
        self._bank.store.add_tables("items", _MIGRATIONS)

    def close(self) -> None:
        """Close the file, unless it is that of a bank that was given."""
        if self._owned:
            self._bank.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batch(self, ops: Iterable[Op]) -> list[Any]:
        """Do all operations, reads first; return results in order. Raises TypeError on anything else."""
        ops = list(ops)
        for op in ops:
            _check(op)
        results = [None if isinstance(op, PutOp) else self._read(op) for op in ops]
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        if puts:
            self._write([*puts.values()])
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Any]:
        """Do as `batch` without blocking the event loop."""
        return await run_in_executor(None, self.batch, ops)

    def sweep_ttl(self) -> int:
        """Delete for good what has expired, and return how many items that were."""
        with self._bank.store.writing() as connection:
            count = self._sweep(connection)
        self._bank.store.erase_traces()
        return count

    def _read(self, op: GetOp | SearchOp | ListNamespacesOp) -> Any:
        if isinstance(op, ListNamespacesOp):
            return self._namespaces(op)
        found: list[Any] = self._search(op) if isinstance(op, SearchOp) else self._get(op)
        if op.refresh_ttl and found:
            self._refresh(found)
        return found if isinstance(op, SearchOp) else next(iter(found), None)

    def _get(self, op: Any) -> list[Item]:
        with self._bank.store.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM items WHERE namespace = ? AND key = ? AND {_ALIVE}",
                (join_namespace(op.namespace), op.key, self._clock()),
            ).fetchall()
        return [Item(**_fields(row)) for row in rows]

    def _search(self, op: SearchOp) -> list[SearchItem]:
        if op.query and op.query.strip():
            return self._ranked(op)
        whole = [] if op.filter else [op.limit, op.offset]
        condition, values = _within(op.namespace_prefix)
        with self._bank.store.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM items WHERE {condition} AND {_ALIVE} ORDER BY updated DESC, number "
                "DESC " + ("LIMIT ? OFFSET ?" if whole else ""),
                [*values, self._clock(), *whole],
            ).fetchall()
        found = [SearchItem(**_fields(row)) for row in rows]
        if not op.filter:
            return found
        return [item for item in found if meets(item.value, op.filter)][op.offset : op.offset + op.limit]

    def _ranked(self, op: SearchOp) -> list[SearchItem]:
        """Return what the bank finds, best first, then the rest, the newest first."""
        wanted, depth = op.offset + op.limit, _DEPTH
        found: dict[tuple[tuple[str, ...], str], SearchItem] = {}
        while len(found) < wanted:  # from the same depth for every page, so that pages fit together
            hits = self._bank.search(str(op.query), k=depth, namespace=(_ROOT, *op.namespace_prefix))
            for hit in hits:
                key = hit.provenance.get("key")
                if key is None:  # no item's: written to the bank beside the store
                    continue
                place = (hit.namespace[1:], key)
                for item in () if place in found else self._get(GetOp(*place)):
                    if meets(item.value, op.filter):
                        fields = {name: getattr(item, name) for name in Item.__slots__}
                        found[place] = SearchItem(**fields, score=hit.score)
            if len(hits) < depth:
                break
            depth *= 4
        ranked = [*found.values()]
        if len(ranked) < wanted:
            rest = self._search(op._replace(query=None, limit=wanted + len(found), offset=0))
            ranked += [item for item in rest if (item.namespace, item.key) not in found]
        return ranked[op.offset : wanted]

    def _namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        with self._bank.store.reading() as connection:
            rows = connection.execute(
                f"SELECT DISTINCT namespace FROM items WHERE {_ALIVE}", (self._clock(),)
            ).fetchall()
        spaces = [split_namespace(stored) for (stored,) in rows]
        matching = {
            space[: op.max_depth]
            for space in spaces
            if all(_matches(condition, space) for condition in op.match_conditions or ())
        }
        return sorted(matching)[op.offset : op.offset + op.limit]

    def _refresh(self, found: list[Any]) -> None:
        now = self._clock()
        places = [(now, join_namespace(item.namespace), item.key) for item in found]
        condition = "namespace = ? AND key = ? AND ttl IS NOT NULL"
        with self._bank.store.reading() as connection:
            lasting = [
                place
                for place in places
                if connection.execute(f"SELECT 1 FROM items WHERE {condition}", place[1:]).fetchone()
            ]
        if lasting:
            with self._bank.store.writing() as connection:
                connection.executemany(f"UPDATE items SET expires = ? + 60 * ttl WHERE {condition}", lasting)

    def _write(self, puts: list[PutOp]) -> None:
        drafts, values = [], []
        for place, op in enumerate(puts):
            value = _encoded(op)
            values.append((op, value, texts := self._texts(op, value)))
            # An item is a chunk of its own: what stands beside it has nothing to do with it.
            drafts += [
                self._bank.draft(
                    text, "knowledge", (_ROOT, *op.namespace), trust="agent", merge=False, key=op.key
                )._replace(section=place)
                for text in texts
            ]
        remaining = iter(self._bank.embedded(drafts))
        with self._bank.store.writing() as connection:
            deleted = self._sweep(connection) > 0
            for op, value, texts in values:
                self._drop_records(connection, op)
                if value is None:
                    deleted |= _delete(connection, op)
                else:
                    records = self._bank.write([next(remaining) for _ in texts])
                    self._upsert(connection, op, value, records)
        if deleted:
            self._bank.store.erase_traces()

    def _texts(self, op: PutOp, value: str | None) -> list[str]:
        if value is None or op.index is False:
            return []
        fields = self._fields if op.index is None else op.index
        kept, say = json.loads(value), load_prompts("en").say
        texts = (text for field in fields for text in get_text_at_path(kept, field))
        return list(dict.fromkeys(storable(text, say) for text in texts if text.strip()))

    def _upsert(self, connection: sqlite3.Connection, op: PutOp, value: str, records: list[str]) -> None:
        now = self._clock()
        expires = None if op.ttl is None else now + 60 * op.ttl
        connection.execute(
            "INSERT INTO items (namespace, key, value, created, updated, ttl, expires, records) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, key) DO UPDATE SET value = "
            "excluded.value, updated = excluded.updated, ttl = excluded.ttl, expires = excluded.expires, "
            "records = excluded.records",
            (join_namespace(op.namespace), op.key, value, now, now, op.ttl, expires, json.dumps(records)),
        )

    def _drop_records(self, connection: sqlite3.Connection, op: PutOp) -> None:
        row = connection.execute(
            "SELECT records FROM items WHERE namespace = ? AND key = ?",
            (join_namespace(op.namespace), op.key),
        ).fetchone()
        for record in json.loads(row[0]) if row else ():
            self._bank.forget(record)

    def _sweep(self, connection: sqlite3.Connection) -> int:
        rows = connection.execute(
            "SELECT namespace, key FROM items WHERE expires <= ?", (self._clock(),)
        ).fetchall()
        for stored, key in rows:
            op = PutOp(split_namespace(stored), key, None)
            self._drop_records(connection, op)
            _delete(connection, op)
        return len(rows)


_ALIVE = "(expires IS NULL OR expires > ?)"


def _check(op: Any) -> None:
    if not isinstance(op, GetOp | PutOp | SearchOp | ListNamespacesOp):
        raise TypeError(f"{op!r} is no operation of a store; pass GetOp, PutOp, SearchOp or ListNamespacesOp")
    validate_op_namespace(op)
    for name in ("limit", "offset"):
        check_count(name, getattr(op, name, 0), 0)
    labels = getattr(op, "namespace", ()) or getattr(op, "namespace_prefix", ())
    if any("\x1f" in label for label in labels):
        raise InvalidNamespaceError(f"namespace {labels!r}: its labels must not contain U+001F")


def _encoded(op: PutOp) -> str | None:
    if op.value is None:
        return None
    what = f"the value of {op.key!r} in {op.namespace!r}"
    try:
        value = json.dumps(dict(op.value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what} must be JSON: {error}") from None
    check_text(what, value)
    return value


def _delete(connection: sqlite3.Connection, op: PutOp) -> bool:
    place = (join_namespace(op.namespace), op.key)
    return connection.execute("DELETE FROM items WHERE namespace = ? AND key = ?", place).rowcount > 0


def _within(prefix: tuple[str, ...]) -> tuple[str, list[str]]:
    stored = join_namespace(prefix)
    return ("namespace >= ? AND namespace < ?", [stored, stored[:-1] + "\x20"]) if stored else ("1", [])


def _fields(row: tuple) -> dict[str, Any]:
    namespace, key, value, created, updated = row
    return {
        "namespace": split_namespace(namespace),
        "key": key,
        "value": json.loads(value),
        "created_at": datetime.fromtimestamp(created, UTC),
        "updated_at": datetime.fromtimestamp(updated, UTC),
    }


def _matches(condition: MatchCondition, namespace: tuple[str, ...]) -> bool:
    path = condition.path
    if len(path) > len(namespace):
        return False
    if condition.match_type == "prefix":
        part = namespace[: len(path)]
    elif condition.match_type == "suffix":
        part = namespace[len(namespace) - len(path) :]
    else:
        raise ValueError(f"match_type={condition.match_type!r}; choose from prefix, suffix")
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))
