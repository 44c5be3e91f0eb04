"""LangGraph store over a memory bank: items by namespace and key, searched by keywords and embeddings.

The store implements BaseStore of LangGraph. BaseStore of langchain_core is another interface, which only maps
keys to values.
"""

from __future__ import annotations

import json
import math
import operator
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
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

from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.text import is_tainted, truncate_for_storage
from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.record import (
    MAX_COUNT,
    check_count,
    check_text,
    join_namespace,
    read_json,
    split_namespace,
)

_COLUMNS = "namespace, key, value, created, updated"
_ROOT = "store"
_DEPTH = 64


_ALIVE = "(expires IS NULL OR expires > ?)"


_ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}
_OPERATORS = {"$eq": operator.eq, "$ne": operator.ne} | _ORDER


class BankStore(BaseStore):
    """Store of items in a bank's file; safe for threads, event loops and processes.

    A search with a query ranks items like a search in the bank, which uses only keywords if the bank has no
    embeddings. Items without a match come last, with score None.

    Item texts are also records of the bank, in namespace `("store", *namespace)`. Very long texts are
    truncated in these records. A record has `trust="agent"` if a tool of an agent wrote the item before the
    agent had read untrusted text, and else `trust="tool"`.

    Within a batch, all reads run before all writes. Expired items are never returned. The next write or
    `sweep_ttl` deletes expired items.

    Args:
        memory: Open bank, or path of a bank.
        index: `{"fields": [...]}` lists the searchable parts of a value; by default all of them. If `memory`
            is a path, `embed` is the bank's embedding model.
        ttl: LangGraph's settings of the time after which items expire.
        clock: Function that returns seconds since 1970.

    Raises:
        ValueError: If `index` has `embed` and `memory` is an open bank.
    """

    supports_ttl = True
    __slots__ = ("_bank", "_clock", "_fields", "_owns_bank", "ttl_config")

    def __init__(
        self,
        memory: MemoryBank | str | Path,
        *,
        index: IndexConfig | None = None,
        ttl: TTLConfig | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._owns_bank = not isinstance(memory, MemoryBank)
        if isinstance(memory, MemoryBank):
            if index and "embed" in index:
                raise ValueError(
                    "index has 'embed', but the bank is open already; pass the embedding model to MemoryBank"
                )
            self._bank = memory
        else:
            embed = index.get("embed") if index else None
            self._bank = MemoryBank(memory, None if embed is None else ensure_embeddings(embed))
        self._fields = (index or {}).get("fields") or ["$"]
        self._clock = clock
        self.ttl_config = ttl
        self._bank.store.add_tables("items")

    def close(self) -> None:
        """Close the bank if the store opened it; a bank that was passed open stays open."""
        if self._owns_bank:
            self._bank.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batch(self, ops: Iterable[Op]) -> list[Any]:
        """Run store operations and return their results in the order of `ops`.

        All read operations run before all write operations. If several operations write the same key of one
        namespace, only the last of them is run.

        Raises:
            TypeError: If an object is not a store operation.
        """
        ops = list(ops)
        for op in ops:
            _check_operation(op)
        results = [None if isinstance(op, PutOp) else self._read(op) for op in ops]
        puts = {(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        if puts:
            self._write([*puts.values()])
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Any]:
        """Run `batch` in a worker thread, without blocking the event loop."""
        return await run_in_executor(None, self.batch, ops)

    def sweep_ttl(self) -> int:
        """Delete expired items permanently; return their number."""
        with self._bank.store.writing() as connection:
            count = self._sweep(connection)
        self._bank.store.erase_traces()
        return count

    def _read(self, op: GetOp | SearchOp | ListNamespacesOp) -> Any:
        if isinstance(op, ListNamespacesOp):
            return self._list_namespaces(op)
        items: list[Any] = self._search(op) if isinstance(op, SearchOp) else self._get(op)
        if op.refresh_ttl and items:
            self._refresh(items)
        return items if isinstance(op, SearchOp) else next(iter(items), None)

    def _get(self, op: Any) -> list[Item]:
        with self._bank.store.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM items WHERE namespace = ? AND key = ? AND {_ALIVE}",
                (*_key(op), self._clock()),
            ).fetchall()
            return [Item(**_fields(row)) for row in rows]

    def _search(self, op: SearchOp) -> list[SearchItem]:
        if op.query and op.query.strip():
            return self._search_by_query(op)
        page = [] if op.filter else [op.limit, op.offset]
        condition, values = _prefix_condition(op.namespace_prefix)
        with self._bank.store.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM items WHERE {condition} AND {_ALIVE} ORDER BY updated DESC, number "
                "DESC " + ("LIMIT ? OFFSET ?" if page else ""),
                [*values, self._clock(), *page],
            ).fetchall()
            items = [SearchItem(**_fields(row)) for row in rows]
        if not op.filter:
            return items
        return [item for item in items if matches_filter(item.value, op.filter)][
            op.offset : op.offset + op.limit
        ]

    def _search_by_query(self, op: SearchOp) -> list[SearchItem]:
        """Return the matches of the bank's search, best first, then the remaining items, newest first."""
        end, depth = op.offset + op.limit, _DEPTH
        matches: dict[tuple[tuple[str, ...], str], SearchItem] = {}
        while len(matches) < end:  # the same initial depth for every page, so that pages are consistent
            hits = self._bank.search(
                str(op.query), k=depth, namespace=(_ROOT, *op.namespace_prefix), changes=False
            )
            for hit in hits:
                key = hit.provenance.get("key")
                if key is None:  # not an item: written to the bank directly
                    continue
                item_key = (hit.namespace[1:], key)
                for item in () if item_key in matches else self._get(GetOp(*item_key)):
                    if matches_filter(item.value, op.filter):
                        fields = {name: getattr(item, name) for name in Item.__slots__}
                        matches[item_key] = SearchItem(**fields, score=hit.score)
            if len(hits) < depth:
                break
            depth *= 4
        results = [*matches.values()]
        if len(results) < end:
            rest = self._search(op._replace(query=None, limit=min(end + len(matches), MAX_COUNT), offset=0))
            results += [item for item in rest if (item.namespace, item.key) not in matches]
        return results[op.offset : end]

    def _list_namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        with self._bank.store.reading() as connection:
            rows = connection.execute(
                f"SELECT DISTINCT namespace FROM items WHERE {_ALIVE}", (self._clock(),)
            ).fetchall()
            spaces = [_labels(joined_namespace) for (joined_namespace,) in rows]
        matching = {
            space[: op.max_depth]
            for space in spaces
            if all(_matches_condition(condition, space) for condition in op.match_conditions or ())
        }
        return sorted(matching)[op.offset : op.offset + op.limit]

    def _refresh(self, items: list[Any]) -> None:
        now = self._clock()
        condition = "namespace = ? AND key = ? AND ttl IS NOT NULL"
        with self._bank.store.reading() as connection:
            expiring = [
                (now, *key)
                for key in map(_key, items)
                if connection.execute(f"SELECT 1 FROM items WHERE {condition}", key).fetchone()
            ]
        if expiring:
            with self._bank.store.writing() as connection:
                connection.executemany(f"UPDATE items SET expires = ? + 60 * ttl WHERE {condition}", expiring)

    def _write(self, puts: list[PutOp]) -> None:
        drafts, values, trust = [], [], "tool" if is_tainted() else "agent"
        for index, op in enumerate(puts):
            value = _encode_value(op)
            values.append((op, value, texts := self._texts(op, value)))
            # Each item is its own chunk, since neighbouring items are unrelated.
            drafts += [
                self._bank.draft(
                    text, "knowledge", (_ROOT, *op.namespace), trust=trust, merge=False, key=op.key
                )._replace(section=index)
                for text in texts
            ]
        remaining = iter(self._bank.embed_drafts(drafts))
        with self._bank.store.writing() as connection:
            has_deletions = self._sweep(connection) > 0
            for op, value, texts in values:
                self._drop_records(connection, op)
                if value is None:
                    has_deletions |= _delete(connection, op)
                else:
                    records = self._bank.write([next(remaining) for _ in texts])
                    now = self._clock()
                    ttl = None if op.ttl is None else float(op.ttl)
                    expires = None if ttl is None else now + 60 * ttl
                    connection.execute(
                        "INSERT INTO items (namespace, key, value, created, updated, ttl, expires, records) "
                        "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (namespace, key) DO UPDATE SET value = "
                        "excluded.value, updated = excluded.updated, ttl = excluded.ttl, expires = "
                        "excluded.expires, records = excluded.records",
                        (*_key(op), value, now, now, ttl, expires, json.dumps(records)),
                    )
        if has_deletions:
            self._bank.store.erase_traces()

    def _texts(self, op: PutOp, value: str | None) -> list[str]:
        if value is None or op.index is False:
            return []
        fields = self._fields if op.index is None else op.index
        parsed_value, say = json.loads(value), load_prompts("en").say
        texts = (text for field in fields for text in get_text_at_path(parsed_value, field))
        return list(dict.fromkeys(truncate_for_storage(text, say) for text in texts if text.strip()))

    def _drop_records(self, connection: sqlite3.Connection, op: PutOp) -> None:
        row = connection.execute(
            "SELECT records FROM items WHERE namespace = ? AND key = ?", _key(op)
        ).fetchone()
        for record in read_json(row[0], list, "the list of records of an item") if row else ():
            if not isinstance(record, str):
                raise UnreadableError(f"the item {op.key!r:.80} refers to a record without a valid id")
            self._bank.forget(record)

    def _sweep(self, connection: sqlite3.Connection) -> int:
        rows = connection.execute(
            "SELECT namespace, key FROM items WHERE expires <= ?", (self._clock(),)
        ).fetchall()
        for joined_namespace, key in rows:
            op = PutOp(_labels(joined_namespace), key, None)
            self._drop_records(connection, op)
            _delete(connection, op)
        return len(rows)


def _check_operation(op: Any) -> None:
    if not isinstance(op, GetOp | PutOp | SearchOp | ListNamespacesOp):
        raise TypeError(f"{op!r}: not a store operation; pass GetOp, PutOp, SearchOp or ListNamespacesOp")
    validate_op_namespace(op)
    for name in ("limit", "offset"):
        check_count(name, getattr(op, name, 0), 0)
    if isinstance(op, PutOp) and op.ttl is not None:
        _check_ttl(op.ttl)
    labels = getattr(op, "namespace", ()) or getattr(op, "namespace_prefix", ())
    if any("\x1f" in label for label in labels):
        raise InvalidNamespaceError(f"namespace={labels!r}: labels must not contain the character U+001F")


def _check_ttl(ttl: float) -> None:
    try:
        if not math.isnan(ttl):
            return
    except (TypeError, OverflowError):
        pass
    raise ValueError(f"ttl={ttl!r:.40}: pass a number of minutes, or None for no expiry")


def _encode_value(op: PutOp) -> str | None:
    if op.value is None:
        return None
    label = f"the value of {op.key!r} in {op.namespace!r}"
    try:
        value = json.dumps(dict(op.value), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label} must be JSON-serializable: {error}") from None
    check_text(label, value)
    return value


def _delete(connection: sqlite3.Connection, op: PutOp) -> bool:
    return connection.execute("DELETE FROM items WHERE namespace = ? AND key = ?", _key(op)).rowcount > 0


def _key(one: GetOp | PutOp | Item) -> tuple[str, str]:
    return join_namespace(one.namespace), one.key


def _prefix_condition(prefix: tuple[str, ...]) -> tuple[str, list[str]]:
    joined_namespace = join_namespace(prefix)
    return (
        ("namespace >= ? AND namespace < ?", [joined_namespace, joined_namespace[:-1] + "\x20"])
        if joined_namespace
        else ("1", [])
    )


def _fields(row: tuple) -> dict[str, Any]:
    namespace, key, value, created_at, updated_at = row
    return {
        "namespace": _labels(namespace),
        "key": key,
        "value": read_json(value, label="the value of an item"),
        "created_at": _parse_time(created_at),
        "updated_at": _parse_time(updated_at),
    }


def _labels(joined_namespace: Any) -> tuple[str, ...]:
    if not isinstance(joined_namespace, str):
        raise UnreadableError("an item has no valid namespace")
    return split_namespace(joined_namespace)


def _parse_time(seconds: Any) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OSError, OverflowError, TypeError, ValueError) as error:
        raise UnreadableError(f"the time of an item is damaged: {seconds!r:.40}") from error


def _matches_condition(condition: MatchCondition, namespace: tuple[str, ...]) -> bool:
    path = condition.path
    if len(path) > len(namespace):
        return False
    if condition.match_type == "prefix":
        part = namespace[: len(path)]
    elif condition.match_type == "suffix":
        part = namespace[len(namespace) - len(path) :]
    else:
        raise ValueError(f"match_type={condition.match_type!r}: choose from prefix, suffix")
    return all(pattern in ("*", label) for pattern, label in zip(path, part, strict=True))


def matches_filter(value: Any, filter: Mapping[str, Any] | None) -> bool:
    """Return True if a value matches a filter; a missing key counts as None.

    The operators `$gt $gte $lt $lte` compare a number with a number, or a string with a string. For other
    types the result is False. Raises ValueError if an operator is unknown.
    """
    return all(_matches(value.get(key), expected) for key, expected in (filter or {}).items())


def _matches(value: Any, expected: Any) -> bool:
    if isinstance(expected, Mapping):
        if any(str(key).startswith("$") for key in expected):
            return all(_compare(value, name, bound) for name, bound in expected.items())
        return isinstance(value, Mapping) and matches_filter(value, expected)
    if isinstance(expected, list | tuple):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(expected)
            and all(map(_matches, value, expected))
        )
    return value == expected


def _compare(value: Any, name: str, bound: Any) -> bool:
    if name not in _OPERATORS:
        raise ValueError(f"unknown operator {name!r} in a filter; choose from {', '.join(_OPERATORS)}")
    return (name not in _ORDER or _comparable(value, bound)) and _OPERATORS[name](value, bound)


def _comparable(value: Any, bound: Any) -> bool:
    both = (value, bound)
    return all(isinstance(one, int | float) for one in both) or all(isinstance(one, str) for one in both)
