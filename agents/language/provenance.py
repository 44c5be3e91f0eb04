"""Provenance of messages and records: which texts count as the user's, the agent's, or untrusted text.

Only the process decides. An agent marks each of its answers; a message without a mark, a name, or a role that
is not known to be harmless is untrusted. Marks of LangChain and names of speakers can only lower the
trust of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

from scrubjay.memory.bank.record import TRUSTS, check_choice

TAINTED = "scrubjay_tainted"
"""Metadata key of a message: True if it was written after untrusted text was read, False if it was not."""

USER_NAMES = ("user", "human")
"""Names of human messages that count as the user's by default, besides no name."""

_Message = TypeVar("_Message", bound=BaseMessage)


class _HasTrust(Protocol):
    @property
    def trust(self) -> str: ...


def mark(message: _Message, is_tainted: bool) -> _Message:
    """Return a copy of a message with the mark that says whether untrusted text was read before it."""
    return message.model_copy(
        update={"response_metadata": {**message.response_metadata, TAINTED: is_tainted}}
    )


def mark_in_place(message: BaseMessage, is_tainted: bool) -> None:
    """Set the mark of a message that no one else refers to."""
    message.response_metadata[TAINTED] = is_tainted


def is_marked(message: BaseMessage) -> bool:
    """Return True if the message has the mark True."""
    return bool(message.response_metadata.get(TAINTED))


def is_added_by_langchain(message: BaseMessage) -> bool:
    """Return True if a middleware of LangChain wrote the message, such as a summary of earlier messages."""
    return "lc_source" in message.additional_kwargs


def check_user_names(names: Sequence[str]) -> frozenset[str]:
    """Return the argument `user_names` of an agent as a set. Raises TypeError if it is not one."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"user_names={names!r}: pass a list of names, such as ['Ada']")
    return frozenset(names)


def is_untrusted(
    message: BaseMessage,
    is_trusted_result: Callable[[ToolMessage], bool],
    user_names: Collection[str],
) -> bool:
    """Return True if someone other than the user, the owner and the agent may have written the text.

    | message | untrusted text |
    | --- | --- |
    | any message with the mark True, or added by a middleware of LangChain, such as a summary | yes |
    | system message | no |
    | user's message | if it has a name that is not in `user_names` |
    | answer or call of a model | unless it has the mark False |
    | tool's result | unless `is_trusted_result` returns True |
    | another message, such as a ChatMessage | yes |
    """
    if is_marked(message) or is_added_by_langchain(message):
        return True
    if isinstance(message, HumanMessage):
        return bool(message.name) and message.name not in user_names
    if isinstance(message, AIMessage):
        return message.response_metadata.get(TAINTED) is not False
    if isinstance(message, ToolMessage):
        return not is_trusted_result(message)
    return not isinstance(message, SystemMessage | RemoveMessage)


def is_untrusted_record(record: _HasTrust) -> bool:
    """Return True if a memory record is untrusted. Raises ValueError if its trust is unknown."""
    return check_choice("trust", record.trust, TRUSTS) == "tool"
