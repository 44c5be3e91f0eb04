"""Checkpoint serializer for untrusted files, which constructs only objects of allowed types.

LangGraph's serializer imports and calls any name that a msgpack extension contains. If a name is not allowed,
its strict mode only logs a warning and returns the arguments in place of the object. The serializer of this
module checks all names first and raises an error.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, cast

import ormsgpack
from langchain_core import agents, prompt_values
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde._msgpack import SAFE_MSGPACK_METHODS, SAFE_MSGPACK_TYPES
from langgraph.checkpoint.serde.jsonplus import (
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_DELTA_SNAPSHOT,
    EXT_METHOD_SINGLE_ARG,
    EXT_NUMPY_ARRAY,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
    JsonPlusSerializer,
)
from langgraph.store import base as store
from langgraph.types import Send, StateUpdate
from pydantic import BaseModel, SecretBytes, SecretStr

from scrubjay.agents.language.provenance import mark_in_place

_CONSTRUCTORS = {
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
}
_TYPES = {"null", "bytes", "bytearray", "msgpack"}


def _type_key(type_: type) -> tuple[str, ...]:
    return type_.__module__, type_.__name__


ALLOWED_TYPES = SAFE_MSGPACK_TYPES | {
    _type_key(each)
    for each in (
        agents.AgentAction,
        agents.AgentActionMessageLog,
        agents.AgentFinish,
        agents.AgentStep,
        prompt_values.ChatPromptValue,
        prompt_values.StringPromptValue,
        store.ListNamespacesOp,
        store.MatchCondition,
        store.PutOp,
        store.SearchItem,
        store.SearchOp,
        StateUpdate,
        SecretBytes,
        SecretStr,
    )
}
"""Module and name of each type that is allowed by default: plain data of Python, LangChain and LangGraph."""


class StrictSerializer(JsonPlusSerializer):
    """LangGraph's serializer, restricted to allowed types for both writing and reading.

    Types in `ALLOWED_TYPES` and in `allow` are allowed. Another type raises TypeError when it is written, and
    ValueError when it is read.
    """

    def __init__(self, allow: Iterable[type] = (), foreign: bool = False) -> None:
        """Create a serializer.

        Args:
            allow: Additional types to allow: your own dataclasses, pydantic models, enums and named tuples.
            foreign: Mark each message that is read as untrusted text.

        Raises:
            TypeError: if an item of `allow` is not a class, or cannot be imported by its module and name.
        """
        allow = tuple(allow)
        for each in allow:
            if not isinstance(each, type):
                raise TypeError(f"allow={each!r}: expected a class, such as MyState")
            if getattr(importlib.import_module(each.__module__), each.__name__, None) is not each:
                raise TypeError(
                    f"allow={each.__qualname__}: the class must be defined at the top level of "
                    f"{each.__module__}, where a later process can find it"
                )
        self._foreign = foreign
        super().__init__(allowed_msgpack_modules=ALLOWED_TYPES | {_type_key(each) for each in allow})

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Serialize a value; return its format and bytes. Raises TypeError if a type is not allowed."""
        kind, body = super().dumps_typed(obj)
        if kind == "msgpack":
            self._check(body, TypeError)
        return kind, body

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Deserialize a value. If a type is not allowed, raise ValueError before constructing any object."""
        kind, body = data
        # A column of an SQLite file may hold any type.
        if not isinstance(kind, str) or not isinstance(body, bytes | bytearray):
            raise ValueError(  # noqa: TRY004  (invalid file content)
                f"the checkpoint is damaged: its format and value have types {type(kind).__name__} and "
                f"{type(body).__name__}; expected str and bytes"
            )
        if kind not in _TYPES:
            raise ValueError(
                f"unsupported format {kind!r} in the checkpoint; supported are {', '.join(sorted(_TYPES))}"
            )
        if kind == "msgpack":
            self._check(body, ValueError)
        value = super().loads_typed(data)
        if self._foreign:
            for message in _find_messages(value):
                mark_in_place(message, True)
        return value

    def _check(self, body: bytes, error: type[Exception]) -> None:
        """Raise `error` if a value, or a nested value, names a type that is not allowed."""
        rejected_types: list[str] = []
        # LangGraph's `with_msgpack_allowlist` extends this set.
        allowed_keys = cast("set[tuple[str, ...]]", self._allowed_msgpack_modules)

        def check(code: int, inner: bytes) -> None:
            content = ormsgpack.unpackb(inner, ext_hook=check, option=ormsgpack.OPT_NON_STR_KEYS)
            if code in (EXT_DELTA_SNAPSHOT, EXT_NUMPY_ARRAY):
                return
            names = content if isinstance(content, list | tuple) else ()
            if code in _CONSTRUCTORS and tuple(names[:2]) in allowed_keys:
                return
            method_key = (*names[:2], *names[3:4])
            if code == EXT_METHOD_SINGLE_ARG and method_key in SAFE_MSGPACK_METHODS:
                return
            rejected_types.append(".".join(map(str, names[:2])) or f"extension {code}")

        try:
            ormsgpack.unpackb(body, ext_hook=check, option=ormsgpack.OPT_NON_STR_KEYS)
        except (ValueError, TypeError, RecursionError) as cause:
            if not rejected_types:
                raise ValueError(f"the checkpoint is damaged: {cause}") from cause
        if rejected_types:
            raise error(
                f"type {rejected_types[0][:200]!r} is not allowed in checkpoints; pass trusted types to "
                "Checkpointer(path, allow=[...]) (subclasses of datetime cannot be allowed)"
            )


def _find_messages(value: Any) -> list[BaseMessage]:
    """Return the messages in a deserialized value, at any depth of its containers and data objects."""
    messages: list[BaseMessage] = []
    pending = [value]
    while pending:
        match pending.pop():
            case BaseMessage() as message:
                messages.append(message)
            case Mapping() as mapping:
                pending += mapping.values()
            case list() | tuple() | set() | frozenset() | deque() as items:
                pending += items
            case Send() as send:
                pending.append(send.arg)
            case BaseModel() as model:
                pending += vars(model).values()
            case data if dataclasses.is_dataclass(data):
                pending += [getattr(data, field.name, None) for field in dataclasses.fields(data)]
    return messages
