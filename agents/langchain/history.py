"""A conversation's messages in a memory bank: whole for the chat model, and their words for recall."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict
from langchain_core.runnables import RunnableConfig

from scrubjay.agents.language.namespaces import check_template, fill
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.text import clean, storable
from scrubjay.agents.language.untrusted import TAINTED
from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.file.record import join_namespace
from scrubjay.memory.bank.write import Draft

_MIGRATIONS = (
    (
        """CREATE TABLE messages (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            namespace TEXT NOT NULL,
            thread TEXT NOT NULL,
            type TEXT NOT NULL,
            message TEXT NOT NULL,
            record TEXT)""",
        "CREATE INDEX messages_by_thread ON messages (namespace, thread, number)",
    ),
)
_OF_THREAD = "namespace = ? AND thread = ?"
_ROLES = {"human": "user", "ai": "assistant", "tool": "tool", "function": "tool"}


class BankChatMessageHistory(BaseChatMessageHistory):
    """The messages of one thread, in order; several processes may write it.

    A message comes back as it was: tool calls, ids, usage, content of several parts, whatever JSON can hold.
    The words of users, models and tools are also records of the bank (kind conversation, provenance `thread`
    and `role`), never merged; what a tool said, and what a model says after it, has `trust="tool"`. Raises
    TypeError or ValueError on a message that JSON cannot hold, and then keeps none of those given with it.
    """

    def __init__(
        self,
        bank: MemoryBank,
        thread: str,
        namespace: Sequence[str] = (),
        config: RunnableConfig | None = None,
    ) -> None:
        """Open a thread.

        Args:
            bank: Keeps the messages.
            thread: Its name.
            namespace: Whose thread it is. `("user", "{user_id}")` is filled once.
            config: Fills it with its "configurable" now. Without it, the runnable in which the history is
                first read or written does; RunnableWithMessageHistory makes histories before it runs.
        """
        if not isinstance(bank, MemoryBank):
            raise TypeError(f'bank={bank!r}: pass a bank, such as MemoryBank("facts.db")')
        self._bank, self._thread, self._template = bank, str(thread), check_template(namespace)
        self._filled = None if config is None else fill(self._template, config)
        self._first, self._last = 0, 0
        self._known: list[BaseMessage] = []
        bank.store.add_tables("messages", _MIGRATIONS)

    @property
    def _namespace(self) -> tuple[str, ...]:
        if self._filled is None:
            self._filled = fill(self._template)
        return self._filled

    @property
    def _where(self) -> tuple[str, str]:
        return join_namespace(self._namespace), self._thread

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """All messages, the oldest first; only what is new since the last time is read."""
        with self._bank.store.reading() as connection:
            (first,) = connection.execute(
                f"SELECT MIN(number) FROM messages WHERE {_OF_THREAD}", self._where
            ).fetchone()
            if first != self._first:  # cleared since, here or elsewhere: no number comes twice
                self._first, self._last, self._known = first, 0, []
            rows = connection.execute(
                f"SELECT number, message FROM messages WHERE {_OF_THREAD} AND number > ? ORDER BY number",
                (*self._where, self._last),
            ).fetchall()
            if rows:
                self._last = rows[-1][0]
                self._known = self._known + messages_from_dict([json.loads(text) for _, text in rows])
        return list(self._known)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Keep messages after those that are there, all or none."""
        written = [_encoded(message) for message in messages]
        drafts = iter(self._bank.embedded(self._drafts(messages)))
        with self._bank.store.writing() as connection:
            for message, text in zip(messages, written, strict=True):
                records = self._bank.write([next(drafts)]) if _is_said(message) else [None]
                connection.execute(
                    "INSERT INTO messages (namespace, thread, type, message, record) VALUES (?, ?, ?, ?, ?)",
                    (*self._where, message.type, text, records[0]),
                )

    def clear(self) -> None:
        """Delete the thread for good, its records in the bank with it."""
        with self._bank.store.writing() as connection:
            rows = connection.execute(
                f"SELECT record FROM messages WHERE {_OF_THREAD} AND record IS NOT NULL", self._where
            ).fetchall()
            for (record,) in rows:
                self._bank.forget(record)
            connection.execute(f"DELETE FROM messages WHERE {_OF_THREAD}", self._where)
        self._bank.store.erase_traces()

    def _drafts(self, messages: Sequence[BaseMessage]) -> list[Draft]:
        with self._bank.store.reading() as connection:
            tainted = self._has_read_a_tool(connection)
        drafts = []
        for message in messages:
            role = _role(message)
            tainted = tainted or role == "tool" or bool(message.response_metadata.get(TAINTED))
            if _is_said(message):
                trust = "user" if role == "user" else "tool" if tainted else "agent"
                provenance: dict[str, Any] = {"thread": self._thread, "role": role}
                text = storable(clean(message.text), load_prompts("en").say)
                drafts.append(
                    self._bank.draft(text, namespace=self._namespace, trust=trust, merge=False, **provenance)
                )
        return drafts

    def _has_read_a_tool(self, connection: sqlite3.Connection) -> bool:
        (found,) = connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM messages WHERE {_OF_THREAD} AND type LIKE 'tool%' OR {_OF_THREAD} "
            "AND type LIKE 'function%')",
            (*self._where, *self._where),
        ).fetchone()
        return bool(found)


def _role(message: BaseMessage) -> str | None:
    """Return who speaks; None for a system message and others that are no part of the talk."""
    return _ROLES.get(message.type.removesuffix("MessageChunk").lower())


def _is_said(message: BaseMessage) -> bool:
    return _role(message) is not None and bool(clean(message.text).strip())


def _encoded(message: BaseMessage) -> str:
    try:
        return json.dumps(message_to_dict(message), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"a message of type {message.type!r} must be JSON to be kept: {error}") from None
