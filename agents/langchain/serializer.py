"""Serializer of checkpoints that constructs only types it knows: a file may come from a stranger.

LangGraph's serializer imports and calls whatever name an extension of msgpack holds. In its strict mode it
logs a warning and returns the bare arguments. This one reads the names first and raises an error.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, cast

import ormsgpack
from langchain_core import agents, prompt_values
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
from langgraph.types import StateUpdate
from pydantic import SecretBytes, SecretStr

_CONSTRUCTORS = {
    EXT_CONSTRUCTOR_SINGLE_ARG,
    EXT_CONSTRUCTOR_POS_ARGS,
    EXT_CONSTRUCTOR_KW_ARGS,
    EXT_PYDANTIC_V1,
    EXT_PYDANTIC_V2,
}
_TYPES = {"null", "bytes", "bytearray", "msgpack"}


def _key(type_: type) -> tuple[str, ...]:
    return type_.__module__, type_.__name__


ADMITTED = SAFE_MSGPACK_TYPES | {
    _key(each)
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
"""Module and name of each type that is admitted without `allow`: plain data of Python, LangChain and
LangGraph."""


class StrictSerializer(JsonPlusSerializer):
    """LangGraph's serializer, restricted to admitted types in both directions.

    Raises TypeError on writing, and ValueError on reading, a type that is neither in `ADMITTED` nor allowed.
    """

    def __init__(self, allow: Iterable[type] = ()) -> None:
        """Make a serializer.

        Args:
            allow: More types to admit: dataclasses, pydantic models, enums and named tuples of your own.

        Raises:
            TypeError: if one of them is no class that its module has under its name.
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
        super().__init__(allowed_msgpack_modules=ADMITTED | {_key(each) for each in allow})

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Return a value's kind and bytes. Raises TypeError on a type that is not admitted."""
        kind, body = super().dumps_typed(obj)
        if kind == "msgpack":
            self._check(body, TypeError)
        return kind, body

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return a value. Raises ValueError on a type that is not admitted, and then constructs nothing."""
        kind, body = data
        # A column of SQLite may hold anything.
        if not isinstance(kind, str) or not isinstance(body, bytes | bytearray):
            damage = f"it holds a {type(body).__name__} in place of bytes"
            raise ValueError(f"the checkpoint is damaged: {damage}")  # noqa: TRY004  (of a file, as all else)
        if kind not in _TYPES:
            raise ValueError(
                f"the checkpoint holds data of kind {kind!r}; only {', '.join(sorted(_TYPES))} is read"
            )
        if kind == "msgpack":
            self._check(body, ValueError)
        return super().loads_typed(data)

    def _check(self, body: bytes, error: type[Exception]) -> None:
        """Raise `error` if a value, or one inside it, names a type that is not admitted."""
        refused: list[str] = []
        # `with_msgpack_allowlist` of LangGraph extends the same set.
        admitted = cast("set[tuple[str, ...]]", self._allowed_msgpack_modules)

        def check(code: int, inner: bytes) -> None:
            content = ormsgpack.unpackb(inner, ext_hook=check, option=ormsgpack.OPT_NON_STR_KEYS)
            if code in (EXT_DELTA_SNAPSHOT, EXT_NUMPY_ARRAY):
                return
            names = content if isinstance(content, list | tuple) else ()
            if code in _CONSTRUCTORS and tuple(names[:2]) in admitted:
                return
            called = (*names[:2], *names[3:4])
            if code == EXT_METHOD_SINGLE_ARG and called in SAFE_MSGPACK_METHODS:
                return
            refused.append(".".join(map(str, names[:2])) or f"extension {code}")

        try:
            ormsgpack.unpackb(body, ext_hook=check, option=ormsgpack.OPT_NON_STR_KEYS)
        except (ValueError, TypeError, RecursionError) as cause:
            if not refused:
                raise ValueError(f"the checkpoint is damaged: {cause}") from cause
        if refused:
            raise error(
                f"the type {refused[0][:200]!r} is not admitted in checkpoints; "
                "Checkpointer(path, allow=[...]) admits types that you trust, but no subclasses of datetime"
            )
