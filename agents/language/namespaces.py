"""Namespace templates: `("user", "{user_id}")` is filled at each call, so that one object serves all users.

LangMem uses the same syntax. Values come from `config={"configurable": {"user_id": ...}}` and from the
context of LangGraph's runtime (`graph.invoke(..., context=...)`). Doubled braces are literal: `"{{x}}"`
becomes `{x}`.
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from langchain_core.runnables import RunnableConfig, ensure_config

from scrubjay.memory.bank.record import check_namespace


def check_template(namespace: Sequence[str]) -> tuple[str, ...]:
    """Return a namespace or template as a tuple.

    Every part must be a non-empty string, and every field in braces must be a plain name. Raises TypeError or
    ValueError if not.
    """
    parts = check_namespace(namespace)
    for part in parts:
        _fields(part, parts)
    return parts


class MissingValueError(KeyError):
    """No value was passed for a field of a namespace template; the caller must pass it."""


def check_literal(namespace: Sequence[str]) -> tuple[str, ...]:
    """Return the namespace of a call as a tuple. This namespace must not be a template.

    Raises ValueError if a part contains a template field, such as `{user_id}`.
    """
    parts = check_namespace(namespace)
    if any(re.search(r"\{[^\W\d]\w*\}", part) for part in parts):
        raise ValueError(
            f"namespace={parts!r}: the namespace of a call must not be a template; pass templates to the "
            "constructor"
        )
    return parts


def escape_namespace(namespace: Sequence[str]) -> tuple[str, ...]:
    """Return the template that yields exactly this namespace when it is filled: braces are doubled."""
    return tuple(part.replace("{", "{{").replace("}", "}}") for part in namespace)


def fill_template(
    template: Sequence[str], config: RunnableConfig | None = None, context: Any = None
) -> tuple[str, ...]:
    """Return the namespace that a template gives for the current call.

    Args:
        template: Result of `check_template`.
        config: Config of the call; by default that of the current runnable.
        context: Context of LangGraph's runtime; by default that of the current graph.

    Raises:
        MissingValueError: A field has no value. The error is a KeyError and names the field.
        TypeError: A value is neither a string, an integer nor a UUID.
        ValueError: A value is empty, or config and context have different values.
    """
    parts = tuple(template)
    if not any("{" in part or "}" in part for part in parts):
        return parts
    configurable = ensure_config(config).get("configurable", {})
    context = _running_context() if context is None else context

    def value(name: str) -> str:
        values = [
            each for each in (configurable.get(name), _context_value(context, name)) if each is not None
        ]
        if not values:
            raise MissingValueError(
                f"namespace={parts!r}: no value for {name!r}; pass "
                f"config={{'configurable': {{{name!r}: ...}}}} to the call, or a context with this value"
            )
        if len({str(each) for each in values}) > 1:
            raise ValueError(
                f"namespace={parts!r}: {name} is {values[0]!r} in the config and {values[1]!r} in the "
                "context; pass one of them"
            )
        if isinstance(values[0], bool) or not isinstance(values[0], str | int | uuid.UUID):
            raise TypeError(f"namespace={parts!r}: {name} is {values[0]!r}; pass a string")
        return str(values[0])

    return check_namespace(
        [
            "".join(literal + ("" if name is None else value(name)) for literal, name in _fields(part, parts))
            for part in parts
        ]
    )


def _fields(part: str, parts: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """Return the pairs (literal text, name of the following field) of one part of a template."""
    try:
        fields = list(Formatter().parse(part))
    except ValueError as error:
        raise ValueError(f"namespace={parts!r}: {part!r}: {error}; double every literal brace") from None
    for _, name, specification, conversion in fields:
        plain = name is None or (name.isidentifier() and not name.startswith("_"))
        if not plain or specification or conversion:
            raise ValueError(
                f"namespace={parts!r}: {part!r} is not a valid template; write a plain name in braces, such "
                "as '{user_id}', and double every literal brace"
            )
    return [(literal, name) for literal, name, *_ in fields]


def _context_value(context: Any, name: str) -> Any:
    if isinstance(context, Mapping):
        return context.get(name)
    return getattr(context, name, None)


def _running_context() -> Any:
    """Return the context of the running LangGraph graph; None outside a graph."""
    runtime: Any = sys.modules.get("langgraph.runtime")  # a running graph has imported it
    try:
        return None if runtime is None else getattr(runtime.get_runtime(), "context", None)
    except (KeyError, RuntimeError):  # outside a graph
        return None
