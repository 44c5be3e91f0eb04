"""LangGraph's checkpoints in an SQLite file: a graph goes on where it stopped, in whatever process.

A channel's value is written once per version, not once per step, and a message once per thread, so a
conversation's file grows with what is new in it. Beyond what a graph itself needs, threads are copied, pruned
and cleared of runs.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import run_in_executor
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    PendingWrite,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from scrubjay.agents.langchain.checkpoints import (
    COLUMNS,
    MIGRATIONS,
    TABLES,
    Found,
    Typed,
    add_value,
    channel_numbers,
    delete,
    read,
)
from scrubjay.agents.langchain.serializer import StrictSerializer
from scrubjay.memory.bank.file.record import check_count
from scrubjay.memory.bank.file.store import Store

_T = TypeVar("_T")
_PAGE = 64  # checkpoints that an async listing reads at a time
_STRATEGIES = ("keep_latest", "delete")


class Checkpointer(BaseCheckpointSaver[str]):
    """Checkpoints in a file, a bank's or their own; safe for threads, event loops and processes.

    What `put` and `put_writes` have acknowledged survives the death of the process (kill -9); a power cut may
    take the last of them, never the file.

    A file may come from a stranger. So only plain data, messages and documents of LangChain, and types of
    LangGraph are written and read. `allow` admits types of your own. `serde` replaces this serializer and
    its check.

    Raises TypeError on writing, and ValueError on reading, a type that is not admitted.
    """

    def __init__(
        self, path: str | Path, *, allow: Iterable[type] = (), serde: SerializerProtocol | None = None
    ) -> None:
        allow = tuple(allow)
        if serde is not None and allow:
            raise ValueError("pass allow= or serde=: a serializer of your own decides what it admits")
        super().__init__(serde=serde or StrictSerializer(allow))
        self._store = Store(path)
        self._store.add_tables("checkpoints", MIGRATIONS)

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return a version that sorts after `current` and that no other branch of the thread has."""
        count = 0 if current is None else int(str(current).partition(".")[0])
        return f"{count + 1:032}.{random.getrandbits(53):016}"

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Keep a checkpoint after the one that `config` names, and return the config that names it."""
        thread, namespace, parent = _address(config)
        versions = checkpoint["channel_versions"]
        known = get_checkpoint_metadata(config, metadata)
        run = known.get("run_id")
        body = self.serde.dumps_typed({**checkpoint, "channel_values": {}})
        described = self.serde.dumps_typed(known)
        dumped = {
            name: self._typed(value)
            for name, value in checkpoint["channel_values"].items()
            if name in new_versions
        }
        with self._store.writing() as connection:
            before = channel_numbers(connection, thread, namespace, parent)
            channels: dict[str, tuple[int, Any]] = {}
            for name, value in checkpoint["channel_values"].items():
                version = versions.get(name)
                held = before.get(name)
                if name not in dumped and version is not None and held and held[1] == version:
                    channels[name] = (held[0], version)
                else:
                    typed = dumped.get(name) or self._typed(value)
                    channels[name] = (add_value(connection, thread, typed, held and held[0]), version)
            connection.execute(
                f"INSERT OR REPLACE INTO checkpoints ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    thread,
                    namespace,
                    checkpoint["id"],
                    parent,
                    None if run is None else str(run),
                    *body,
                    *described,
                    json.dumps(channels, separators=(",", ":")),
                ),
            )
        return _config(thread, namespace, checkpoint["id"])

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Keep what a task wrote, once; an error, an interrupt or a resumption is replaced by the latest."""
        address = _address(config)
        if address[2] is None:
            raise ValueError("the config names no checkpoint; pass what `put` returned")
        rows = [
            (
                *address,
                task_id,
                WRITES_IDX_MAP.get(channel, place),
                task_path,
                channel,
                *self.serde.dumps_typed(value),
            )
            for place, (channel, value) in enumerate(writes)
        ]
        with self._store.writing() as connection:
            for row in rows:
                verb = "REPLACE" if row[4] < 0 else "IGNORE"
                connection.execute(f"INSERT OR {verb} INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that `config` names, or its thread's and namespace's latest; None if none."""
        thread, namespace, id = _address(config)
        condition, values = "thread = ? AND namespace = ?", [thread, namespace]
        if id:
            condition, values = condition + " AND id = ?", [*values, id]
        with self._store.reading() as connection:
            found = read(connection, f"{condition} ORDER BY id DESC LIMIT 1", values)
        return None if found is None else self._loaded(found)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield checkpoints, newest first; `filter` is what their metadata must equal."""
        if limit is not None:
            check_count("limit", limit, 0)
        condition, values = _condition(config, before)
        most = -1 if filter or limit is None else limit
        with self._store.reading() as connection:
            numbers = connection.execute(
                f"SELECT number FROM checkpoints WHERE {condition} ORDER BY id DESC, number DESC LIMIT ?",
                [*values, most],
            ).fetchall()
        yield from islice((t for (n,) in numbers if (t := self._numbered(n, filter)) is not None), limit)

    def delete_thread(self, thread_id: str) -> None:
        """Delete all of a thread for good."""
        with self._store.writing() as connection:
            for table in TABLES:
                connection.execute(f"DELETE FROM {table} WHERE thread = ?", (str(thread_id),))
        self._store.erase_traces()

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete some runs' checkpoints with their writes; a DeltaChannel may not outlive its ancestors."""
        with self._store.writing() as connection:
            for run in run_ids:
                numbered = connection.execute(
                    "SELECT number, thread FROM checkpoints WHERE run = ?", (str(run),)
                ).fetchall()
                delete(connection, [number for number, _ in numbered], {thread for _, thread in numbered})
        self._store.erase_traces()

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all of a thread to a new one. Raises ValueError if the target has checkpoints already."""
        source, target = str(source_thread_id), str(target_thread_id)
        with self._store.writing() as connection:
            if connection.execute("SELECT 1 FROM checkpoints WHERE thread = ? LIMIT 1", (target,)).fetchone():
                raise ValueError(
                    f"target_thread_id={target!r} has checkpoints; delete that thread first, or copy to a "
                    "new one"
                )
            for table, columns in TABLES.items():
                others = columns.partition(", ")[2]
                connection.execute(
                    f"INSERT OR REPLACE INTO {table} ({columns}) SELECT ?, {others} FROM {table} WHERE "
                    "thread = ?",
                    (target, source),
                )

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete all but the latest checkpoint of each namespace of some threads, or with "delete" all.

        What the latest one's delta channels are rebuilt from stays. Raises ValueError on another strategy.
        """
        if strategy not in _STRATEGIES:
            raise ValueError(f"strategy={strategy!r}; choose from {', '.join(_STRATEGIES)}")
        if strategy == "delete":
            for thread in thread_ids:
                self.delete_thread(thread)
            return
        with self._store.writing() as connection:
            for thread in map(str, thread_ids):
                kept = set()
                for (namespace,) in connection.execute(
                    "SELECT DISTINCT namespace FROM checkpoints WHERE thread = ?", (thread,)
                ).fetchall():
                    kept |= self._needed(connection, thread, namespace)
                numbers = connection.execute("SELECT number FROM checkpoints WHERE thread = ?", (thread,))
                delete(connection, [n for (n,) in numbers.fetchall() if n not in kept], {thread})
        self._store.erase_traces()

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Do as `get_tuple` without blocking the event loop."""
        return await _aside(self.get_tuple, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Do as `list` without blocking the event loop."""
        found = self.list(config, filter=filter, before=before, limit=limit)
        while page := await _aside(lambda: [*islice(found, _PAGE)]):
            for checkpoint in page:
                yield checkpoint

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Do as `put` without blocking the event loop."""
        return await _aside(self.put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Do as `put_writes` without blocking the event loop."""
        await _aside(self.put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        """Do as `delete_thread` without blocking the event loop."""
        await _aside(self.delete_thread, thread_id)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Do as `delete_for_runs` without blocking the event loop."""
        await _aside(self.delete_for_runs, run_ids)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Do as `copy_thread` without blocking the event loop."""
        await _aside(self.copy_thread, source_thread_id, target_thread_id)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Do as `prune` without blocking the event loop."""
        await _aside(lambda: self.prune(thread_ids, strategy=strategy))

    def _numbered(self, number: int, filter: dict[str, Any] | None) -> CheckpointTuple | None:
        """Return a checkpoint unless it is gone or its metadata says otherwise."""
        with self._store.reading() as connection:
            if filter:
                row = connection.execute(
                    "SELECT metadata_type, metadata FROM checkpoints WHERE number = ?", (number,)
                ).fetchone()
                if row is None:
                    return None
                metadata = self.serde.loads_typed(row)
                if any(name not in metadata or metadata[name] != value for name, value in filter.items()):
                    return None
            found = read(connection, "number = ?", [number])
        return None if found is None else self._loaded(found)

    def _loaded(self, found: Found) -> CheckpointTuple:
        thread, namespace, id, parent, _, type, body, metadata_type, metadata, _ = found.row
        checkpoint = self.serde.loads_typed((type, body))
        checkpoint["channel_values"] = {
            name: [*map(self.serde.loads_typed, value)]
            if isinstance(value, list)
            else self.serde.loads_typed(value)
            for name, value in found.channels.items()
        }
        return CheckpointTuple(
            _config(thread, namespace, id),
            checkpoint,
            cast("CheckpointMetadata", self.serde.loads_typed((metadata_type, metadata))),
            _config(thread, namespace, parent) if parent else None,
            [self._write(*row) for row in found.writes],
        )

    def _typed(self, value: Any) -> Typed | list[Typed]:
        """Return a value as bytes, a list of messages as bytes of each."""
        if type(value) is list and value and all(isinstance(item, BaseMessage) for item in value):
            return [self.serde.dumps_typed(item) for item in value]
        return self.serde.dumps_typed(value)

    def _write(self, task: str, channel: str, type: str, value: bytes) -> PendingWrite:
        return task, channel, self.serde.loads_typed((type, value))

    def _needed(self, connection: sqlite3.Connection, thread: str, namespace: str) -> set[int]:
        """Return the latest checkpoint's number and those of the ancestors that its delta channels lie in."""
        select = (
            "SELECT number, parent, channels, metadata_type, metadata FROM checkpoints "
            "WHERE thread = ? AND namespace = ?"
        )
        row = connection.execute(f"{select} ORDER BY id DESC LIMIT 1", (thread, namespace)).fetchone()
        missing = set(self.serde.loads_typed(row[3:]).get("counters_since_delta_snapshot", ()))
        needed = set()
        while row is not None:
            number, parent, channels = row[:3]
            needed.add(number)
            missing -= json.loads(channels).keys()
            if not missing:
                break
            row = connection.execute(f"{select} AND id = ?", (thread, namespace, parent)).fetchone()
        return needed


def _condition(config: RunnableConfig | None, before: RunnableConfig | None) -> tuple[str, list[Any]]:
    parts, values = ["1"], []
    if config is not None:
        wanted = config.get("configurable", {})
        for column, name in (
            ("thread", "thread_id"),
            ("namespace", "checkpoint_ns"),
            ("id", "checkpoint_id"),
        ):
            if wanted.get(name) is not None:
                parts.append(f"{column} = ?")
                values.append(str(wanted[name]))
    if before is not None and (id := get_checkpoint_id(before)):
        parts.append("id < ?")
        values.append(id)
    return " AND ".join(parts), values


def _address(config: RunnableConfig) -> tuple[str, str, str | None]:
    configurable = config.get("configurable", {})
    if "thread_id" not in configurable:
        raise ValueError('the config names no thread; pass {"configurable": {"thread_id": ...}} to the graph')
    return (
        str(configurable["thread_id"]),
        configurable.get("checkpoint_ns", ""),
        configurable.get("checkpoint_id"),
    )


def _config(thread: str, namespace: str, id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": id}}


async def _aside(function: Callable[..., _T], *arguments: Any) -> _T:
    return await run_in_executor(None, function, *arguments)
