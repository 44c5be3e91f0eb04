"""LangGraph checkpointer with an SQLite file: a graph resumes where it stopped, in any process.

The value of a channel is written once per version, not once per step. A message is written once per thread.
The file therefore grows only with new content. Threads can also be copied and pruned, and the checkpoints of
single runs can be deleted.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

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
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from scrubjay.agents.langchain.checkpoints import (
    COLUMNS,
    TABLES,
    SerializedValue,
    StoredCheckpoint,
    add_value,
    channel_numbers,
    delete_checkpoints,
    parse_channels,
    read_checkpoint,
)
from scrubjay.agents.langchain.serializer import StrictSerializer
from scrubjay.memory.bank.asynchronous import in_thread
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.record import check_count

_PAGE_SIZE = 64  # checkpoints per read of an asynchronous listing
_STRATEGIES = ("keep_latest", "delete")


class Checkpointer(BaseCheckpointSaver[str]):
    """Checkpointer on an SQLite file, which may also contain a memory bank.

    Several threads, event loops and processes may use the file at the same time.

    The `thread_id` alone finds a thread. If several users share a file, put the user into it, such as
    `f"{user}/{number}"`.

    Completed calls of `put` and `put_writes` survive a crash of the process (kill -9). A power failure may
    lose the data of the last calls but does not corrupt the file.

    Files may be untrusted. Only plain data, LangChain's messages and documents, and LangGraph's types are
    written and read.

    A type that is not allowed raises TypeError when it is written, and ValueError when it is read.

    Args:
        path: SQLite file.
        allow: Your own types that may be written and read.
        serde: Serializer that replaces the default one, including its check of types.
        foreign: The file is from someone else. The whole file is checked at opening, its values are limited
            to 16 MiB, links are refused, and the file is not mapped into memory, as in `MemoryBank`. All
            messages of the file, also those of users, are marked as untrusted text, so that an agent asks for
            approval. Other values of a state are not marked.

    Raises:
        ValueError: If `serde` is combined with `allow` or `foreign`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        allow: Iterable[type] = (),
        serde: SerializerProtocol | None = None,
        foreign: bool = False,
    ) -> None:
        allow = tuple(allow)
        if serde is not None and foreign:
            raise ValueError("foreign=True: a custom serializer (serde) sets no marks; pass allow= instead")
        if serde is not None and allow:
            raise ValueError(
                "allow and serde exclude each other: pass allow= or serde=; a custom serializer "
                "decides which types it accepts"
            )
        super().__init__(serde=serde or StrictSerializer(allow, foreign))
        self._store = Store(path, foreign)
        self._store.add_tables("checkpoints")

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Return a version that sorts after `current` and is unique among the branches of the thread."""
        count = 0 if current is None else int(str(current).partition(".")[0])
        return f"{count + 1:032}.{random.getrandbits(53):016}"

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint as a child of the checkpoint in `config`; return the new checkpoint's config."""
        thread, namespace, parent = _address(config)
        versions = checkpoint["channel_versions"]
        full_metadata = get_checkpoint_metadata(config, metadata)
        run = full_metadata.get("run_id")
        body = self.serde.dumps_typed({**checkpoint, "channel_values": {}})
        metadata_value = self.serde.dumps_typed(full_metadata)
        new_values = {
            name: self._serialize(value)
            for name, value in checkpoint["channel_values"].items()
            if name in new_versions
        }
        with self._store.writing() as connection:
            before = channel_numbers(connection, thread, namespace, parent)
            channels: dict[str, tuple[int, Any]] = {}
            for name, value in checkpoint["channel_values"].items():
                version, (number, old_version) = versions.get(name), before.get(name, (None, None))
                if number is None or name in new_values or version is None or version != old_version:
                    number = add_value(
                        connection, thread, new_values.get(name) or self._serialize(value), number
                    )
                channels[name] = (number, version)
            connection.execute(
                f"INSERT OR REPLACE INTO checkpoints ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    thread,
                    namespace,
                    checkpoint["id"],
                    parent,
                    None if run is None else str(run),
                    *body,
                    *metadata_value,
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
        """Store the writes of a task.

        A write that is stored already is ignored. A new error, interrupt or resume value replaces the stored
        one.
        """
        address = _address(config)
        if address[2] is None:
            raise ValueError("the config names no checkpoint; pass the config that `put` returned")
        rows = [
            (
                *address,
                str(task_id),
                WRITES_IDX_MAP.get(channel, index),
                str(task_path),
                channel,
                *self.serde.dumps_typed(value),
            )
            for index, (channel, value) in enumerate(writes)
        ]
        with self._store.writing() as connection:
            for row in rows:
                verb = "REPLACE" if row[4] < 0 else "IGNORE"
                connection.execute(f"INSERT OR {verb} INTO writes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that `config` names, or None.

        If `config` names no checkpoint, return the latest checkpoint of its thread and namespace.
        """
        thread, namespace, id = _address(config)
        condition, values = "thread = ? AND namespace = ?", [thread, namespace]
        if id:
            condition, values = condition + " AND id = ?", [*values, id]
        with self._store.reading() as connection:
            stored_checkpoint = read_checkpoint(connection, f"{condition} ORDER BY id DESC LIMIT 1", values)
        return None if stored_checkpoint is None else self._to_tuple(stored_checkpoint)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Yield the checkpoints whose metadata contains all items of `filter`, newest first."""
        if limit is not None:
            limit = check_count("limit", limit, 0)
        condition, values = _condition(config, before)
        max_rows = -1 if filter or limit is None else limit
        with self._store.reading() as connection:
            numbers = connection.execute(
                f"SELECT number FROM checkpoints WHERE {condition} ORDER BY id DESC, number DESC LIMIT ?",
                [*values, max_rows],
            ).fetchall()
        yield from islice((t for (n,) in numbers if (t := self._read_numbered(n, filter)) is not None), limit)

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread permanently."""
        with self._store.writing() as connection:
            for table in TABLES:
                connection.execute(f"DELETE FROM {table} WHERE thread = ?", (str(thread_id),))
        self._store.erase_traces()

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete all checkpoints and writes of the runs `run_ids`.

        A DeltaChannel loses its value if the value must be rebuilt from these checkpoints.
        """
        with self._store.writing() as connection:
            for run in run_ids:
                rows = connection.execute(
                    "SELECT number, thread FROM checkpoints WHERE run = ?", (str(run),)
                ).fetchall()
                delete_checkpoints(connection, [number for number, _ in rows], {thread for _, thread in rows})
        self._store.erase_traces()

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread to a new thread.

        Raises:
            ValueError: If the target thread already has checkpoints.
        """
        source, target = str(source_thread_id), str(target_thread_id)
        with self._store.writing() as connection:
            if connection.execute("SELECT 1 FROM checkpoints WHERE thread = ? LIMIT 1", (target,)).fetchone():
                raise ValueError(
                    f"target_thread_id={target!r} has checkpoints; delete that thread first, or copy to a "
                    "new thread"
                )
            for table, columns in TABLES.items():
                others = columns.partition(", ")[2]
                connection.execute(
                    f"INSERT OR REPLACE INTO {table} ({columns}) SELECT ?, {others} FROM {table} WHERE "
                    "thread = ?",
                    (target, source),
                )

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete old checkpoints of threads. With the strategy "delete", delete the threads completely.

        The strategy "keep_latest" leaves the latest checkpoint of each namespace. It also leaves the older
        checkpoints from which the delta channels of the latest checkpoint are rebuilt.

        Raises:
            ValueError: If the strategy is unknown.
        """
        if strategy not in _STRATEGIES:
            raise ValueError(f"strategy={strategy!r}: choose from {', '.join(_STRATEGIES)}")
        if strategy == "delete":
            for thread in thread_ids:
                self.delete_thread(thread)
            return
        with self._store.writing() as connection:
            for thread in map(str, thread_ids):
                retained_numbers = set()
                for (namespace,) in connection.execute(
                    "SELECT DISTINCT namespace FROM checkpoints WHERE thread = ?", (thread,)
                ).fetchall():
                    retained_numbers |= self._find_needed(connection, thread, namespace)
                numbers = connection.execute("SELECT number FROM checkpoints WHERE thread = ?", (thread,))
                delete_checkpoints(
                    connection, [n for (n,) in numbers.fetchall() if n not in retained_numbers], {thread}
                )
        self._store.erase_traces()

    aget_tuple = in_thread(get_tuple)
    aput = in_thread(put)
    aput_writes = in_thread(put_writes)
    adelete_thread = in_thread(delete_thread)
    adelete_for_runs = in_thread(delete_for_runs)
    acopy_thread = in_thread(copy_thread)
    aprune = in_thread(prune)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Run `list` in a worker thread, without blocking the event loop."""
        checkpoints = self.list(config, filter=filter, before=before, limit=limit)
        while page := await run_in_executor(None, lambda: [*islice(checkpoints, _PAGE_SIZE)]):
            for checkpoint in page:
                yield checkpoint

    def _read_numbered(self, number: int, filter: dict[str, Any] | None) -> CheckpointTuple | None:
        """Return a checkpoint by number; None if it was deleted or its metadata does not match the filter."""
        with self._store.reading() as connection:
            if filter:
                row = connection.execute(
                    "SELECT metadata_type, metadata FROM checkpoints WHERE number = ?", (number,)
                ).fetchone()
                if row is None:
                    return None
                metadata = self._load_dict(row)
                if any(name not in metadata or metadata[name] != value for name, value in filter.items()):
                    return None
            stored_checkpoint = read_checkpoint(connection, "number = ?", [number])
        return None if stored_checkpoint is None else self._to_tuple(stored_checkpoint)

    def _to_tuple(self, stored_checkpoint: StoredCheckpoint) -> CheckpointTuple:
        thread, namespace, id, parent, _, type, body, metadata_type, metadata, _ = stored_checkpoint.row
        checkpoint: Any = self._load_dict((type, body))
        checkpoint["channel_values"] = {
            name: [*map(self.serde.loads_typed, value)]
            if isinstance(value, list)
            else self.serde.loads_typed(value)
            for name, value in stored_checkpoint.channels.items()
        }
        return CheckpointTuple(
            _config(thread, namespace, id),
            checkpoint,
            cast("CheckpointMetadata", self._load_dict((metadata_type, metadata))),
            _config(thread, namespace, parent) if parent else None,
            [
                (task, channel, self.serde.loads_typed((type, value)))
                for task, channel, type, value in stored_checkpoint.writes
            ],
        )

    def _load_dict(self, data: SerializedValue) -> dict[str, Any]:
        value = self.serde.loads_typed(data)
        if isinstance(value, dict):
            return value
        raise ValueError(f"the checkpoint is damaged: a dictionary has the type {type(value).__name__}")

    def _serialize(self, value: Any) -> SerializedValue | list[SerializedValue]:
        """Serialize a value; a list of messages is serialized message by message."""
        if type(value) is list and value and all(isinstance(item, BaseMessage) for item in value):
            return [self.serde.dumps_typed(item) for item in value]
        return self.serde.dumps_typed(value)

    def _find_needed(self, connection: sqlite3.Connection, thread: str, namespace: str) -> set[int]:
        """Return the row numbers of the latest checkpoint and of ancestors that its delta channels need."""
        select = (
            "SELECT number, parent, channels, metadata_type, metadata FROM checkpoints "
            "WHERE thread = ? AND namespace = ?"
        )
        row = connection.execute(f"{select} ORDER BY id DESC LIMIT 1", (thread, namespace)).fetchone()
        missing = set(self._load_dict(row[3:]).get("counters_since_delta_snapshot", ()))
        numbers = set()
        while row is not None:
            number, parent, channels = row[:3]
            numbers.add(number)
            missing -= parse_channels(channels).keys()
            if not missing:
                break
            row = connection.execute(f"{select} AND id = ?", (thread, namespace, parent)).fetchone()
        return numbers


def _condition(config: RunnableConfig | None, before: RunnableConfig | None) -> tuple[str, list[Any]]:
    parts, values = ["1"], []
    if config is not None:
        configurable = config.get("configurable", {})
        for column, name in (
            ("thread", "thread_id"),
            ("namespace", "checkpoint_ns"),
            ("id", "checkpoint_id"),
        ):
            if configurable.get(name) is not None:
                parts.append(f"{column} = ?")
                values.append(str(configurable[name]))
    if before is not None and (id := get_checkpoint_id(before)):
        parts.append("id < ?")
        values.append(str(id))
    return " AND ".join(parts), values


def _address(config: RunnableConfig) -> tuple[str, str, str | None]:
    configurable = config.get("configurable", {})
    if "thread_id" not in configurable:
        raise ValueError('the config names no thread; pass {"configurable": {"thread_id": ...}} to the graph')
    id = configurable.get("checkpoint_id")
    return (
        str(configurable["thread_id"]),
        str(configurable.get("checkpoint_ns", "")),
        None if id is None else str(id),
    )


def _config(thread: str, namespace: str, id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": namespace, "checkpoint_id": id}}
