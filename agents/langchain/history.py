"""Chat history in a memory bank: full messages for the chat model, and their texts as searchable records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, message_to_dict, messages_from_dict
from langchain_core.runnables import RunnableConfig

from scrubjay.agents.language.namespaces import check_template, fill_template
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.provenance import (
    USER_NAMES,
    check_user_names,
    is_marked,
    is_untrusted,
    mark,
)
from scrubjay.agents.language.text import describe_content, truncate_for_storage
from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.record import Draft, join_namespace

_THREAD_CONDITION = "namespace = ? AND thread = ?"
_PROMPTS = load_prompts("en")
_ROLES = {"human": "user", "ai": "assistant", "tool": "tool", "function": "tool"}
_TRUST_OF_ROLE = {"user": "user", "assistant": "agent"}


class BankChatMessageHistory(BaseChatMessageHistory):
    """Messages of one thread, in order; several processes may write to the thread.

    Messages are stored completely, with tool calls, ids, usage and multi-part content. The texts of users,
    models and tools are also records of the bank (kind conversation, provenance `thread` and `role`). A note
    in such a record replaces an image or file. The records are never merged. Records of untrusted messages
    (`agents/language/provenance.py`), and of model messages after them, have `trust="tool"`. If the bank is
    foreign, all messages are marked as untrusted text. `add_messages` raises TypeError or ValueError if a
    message is not JSON-serializable, and then stores none of its messages.
    """

    def __init__(
        self,
        bank: MemoryBank,
        thread: str,
        namespace: Sequence[str] = (),
        config: RunnableConfig | None = None,
        user_names: Sequence[str] = USER_NAMES,
        trusted_answers: bool = False,
    ) -> None:
        """Open a thread.

        Args:
            bank: Memory bank that stores the messages.
            thread: Name of the thread.
            namespace: Owner of the thread. A template such as `("user", "{user_id}")` is filled once.
            config: Config whose "configurable" fills the template immediately. With None, the template is
                filled at the first read or write, from the config of the running runnable. Use None with
                RunnableWithMessageHistory, which builds a history before it runs.
            user_names: Values of `name` in messages of the user. A human message with another name is
                untrusted.
            trusted_answers: Answers without the mark of an agent count as written by the agent, because your
                chain reads no documents, tool results or memories. By default they are untrusted.
        """
        if not isinstance(bank, MemoryBank):
            raise TypeError(f'bank={bank!r}: pass a bank, such as MemoryBank("facts.db")')
        self._bank, self._thread, self._template = bank, str(thread), check_template(namespace)
        self._resolved_namespace = None if config is None else fill_template(self._template, config)
        self._user_names, self._trusted_answers = check_user_names(user_names), trusted_answers
        self._first_number, self._last_number = 0, 0
        self._cached_messages: list[BaseMessage] = []
        bank.store.add_tables("messages")

    @property
    def _namespace(self) -> tuple[str, ...]:
        if self._resolved_namespace is None:
            self._resolved_namespace = fill_template(self._template)
        return self._resolved_namespace

    @property
    def _thread_key(self) -> tuple[str, str]:
        return join_namespace(self._namespace), self._thread

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """All messages, oldest first; an access reads only new messages from the file."""
        with self._bank.store.reading() as connection:
            (first,) = connection.execute(
                f"SELECT MIN(number) FROM messages WHERE {_THREAD_CONDITION}", self._thread_key
            ).fetchone()
            if first != self._first_number:  # cleared meanwhile, here or elsewhere; numbers are never reused
                self._first_number, self._last_number, self._cached_messages = first, 0, []
            rows = connection.execute(
                f"SELECT number, message FROM messages WHERE {_THREAD_CONDITION} AND number > ? "
                "ORDER BY number",
                (*self._thread_key, self._last_number),
            ).fetchall()
            if rows:
                self._last_number = rows[-1][0]
                messages = [_decode_message(number, text) for number, text in rows]
                if self._bank.foreign:
                    messages = [mark(message, True) for message in messages]
                self._cached_messages = self._cached_messages + messages
        return list(self._cached_messages)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages atomically."""
        if self._trusted_answers:
            messages = [mark(one, is_marked(one)) if isinstance(one, AIMessage) else one for one in messages]
        encoded_messages = [_encode_message(message) for message in messages]
        drafts = iter(self._bank.embed_drafts(self._build_drafts(messages)))
        with self._bank.store.writing() as connection:
            for message, text in zip(messages, encoded_messages, strict=True):
                records = self._bank.write([next(drafts)]) if _has_text(message) else [None]
                connection.execute(
                    "INSERT INTO messages (namespace, thread, type, message, record) VALUES (?, ?, ?, ?, ?)",
                    (*self._thread_key, message.type, text, records[0]),
                )

    def clear(self) -> None:
        """Delete the thread and its records in the bank permanently."""
        with self._bank.store.writing() as connection:
            rows = connection.execute(
                f"SELECT record FROM messages WHERE {_THREAD_CONDITION} AND record IS NOT NULL",
                self._thread_key,
            ).fetchall()
            for (record,) in rows:
                if not isinstance(record, str):
                    raise UnreadableError("a message refers to a record without a valid id")
                self._bank.forget(record)
            connection.execute(f"DELETE FROM messages WHERE {_THREAD_CONDITION}", self._thread_key)
        self._bank.store.erase_traces()

    def _is_tainted(self) -> bool:
        """Return True if the thread contains untrusted text.

        The newest messages suffice: after such a text, each answer has a record with the trust of a tool.
        """
        if self._bank.foreign:
            return True
        with self._bank.store.reading() as connection:
            rows = connection.execute(
                "SELECT messages.number, trust, CASE WHEN trust IS NULL THEN message END FROM messages "
                "LEFT JOIN records ON records.id = messages.record "
                "WHERE messages.namespace = ? AND messages.thread = ? ORDER BY messages.number DESC",
                self._thread_key,
            )
            for number, trust, text in rows:
                if trust == "agent":
                    return False
                if trust not in (None, "user"):
                    return True
                if trust is None and self._is_untrusted(_decode_message(number, text)):
                    return True
        return False

    def _is_untrusted(self, message: BaseMessage) -> bool:
        return is_untrusted(message, lambda result: False, self._user_names)

    def _build_drafts(self, messages: Sequence[BaseMessage]) -> list[Draft]:
        is_tainted = self._is_tainted()
        drafts = []
        for message in messages:
            role = _role(message)
            untrusted = self._is_untrusted(message)
            is_tainted = is_tainted or untrusted
            if role and _has_text(message):
                trust = "tool" if untrusted or (is_tainted and role != "user") else _TRUST_OF_ROLE[role]
                draft = self._bank.draft(
                    truncate_for_storage(describe_content(message, _PROMPTS), _PROMPTS.say),
                    namespace=self._namespace,
                    trust=trust,
                    merge=False,
                    thread=self._thread,
                    role=role,
                )
                drafts.append(draft)
        return drafts


def _role(message: BaseMessage) -> str | None:
    """Return the speaker's role; None for system messages and other types outside the conversation."""
    return _ROLES.get(message.type.removesuffix("MessageChunk").lower())


def _has_text(message: BaseMessage) -> bool:
    return _role(message) is not None and bool(describe_content(message, _PROMPTS).strip())


def _decode_message(number: int, text: Any) -> BaseMessage:
    """Return a stored message. Raises UnreadableError if the column has another form."""
    try:
        (message,) = messages_from_dict([json.loads(text)])
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UnreadableError(f"message {number} of a thread is damaged") from error
    return message


def _encode_message(message: BaseMessage) -> str:
    try:
        return json.dumps(message_to_dict(message), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"cannot store a message of type {message.type!r}: all its fields must be "
            f"JSON-serializable ({error})"
        ) from None
