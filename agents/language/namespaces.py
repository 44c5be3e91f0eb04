"""Namespace templates: `("user", "{user_id}")` is filled at each call, so that one object serves all users.

LangMem has the same form. Values come from `config={"configurable": {"user_id": ...}}` and from the context
of LangGraph's runtime (`graph.invoke(..., context=...)`). Two braces stand for one: `"{{x}}"` is the literal
part `{x}`.
"""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from langchain_core.runnables import RunnableConfig, ensure_config

from scrubjay.memory.bank.file.record import check_namespace


def check_template(namespace: Sequence[str]) -> tuple[str, ...]:
    """Return a namespace or template as a tuple.

    Raises TypeError or ValueError if it is not one of non-empty words, or has a field that is no plain name.
    """
    parts = check_namespace(namespace)
    for part in parts:
        _fields(part, parts)
    return parts


class MissingValueError(KeyError):
    """A namespace template has no value for one of its names; the caller must pass it."""


def check_literal(namespace: Sequence[str]) -> tuple[str, ...]:
    """Return the namespace that a call passes, which is no template: a user may be called `{owner}`.

    Raises ValueError if it looks like a template that nobody filled.
    """
    parts = check_namespace(namespace)
    if any(re.search(r"\{[^\W\d]\w*\}", part) for part in parts):
        raise ValueError(
            f"namespace={parts!r}: the namespace of a call is taken as it is; give a template where the "
            "object is made"
        )
    return parts


def as_literal(namespace: Sequence[str]) -> tuple[str, ...]:
    """Return the template that is filled with this very namespace, whatever braces are in it."""
    return tuple(part.replace("{", "{{").replace("}", "}}") for part in namespace)


def fill(
    template: Sequence[str], config: RunnableConfig | None = None, context: Any = None
) -> tuple[str, ...]:
    """Return a template's namespace for the present call.

    Args:
        template: What `check_template` returned.
        config: Of the call; by default that of the runnable that runs now.
        context: Of LangGraph's runtime; by default that of the graph that runs now.

    Raises:
        MissingValueError: a KeyError, if a value is missing, naming it.
        TypeError: if a value is neither a string, a whole number nor a UUID.
        ValueError: if a value is empty, or config and context have different ones.
    """
    parts = tuple(template)
    if not any("{" in part or "}" in part for part in parts):
        return parts
    configurable = ensure_config(config).get("configurable", {})
    context = _running_context() if context is None else context

    def value(name: str) -> str:
        found = [each for each in (configurable.get(name), _context_value(context, name)) if each is not None]
        if not found:
            raise MissingValueError(
                f"namespace={parts!r}: no value for {name!r}; pass "
                f"config={{'configurable': {{{name!r}: ...}}}} to the call, or a context that has it"
            )
        if len({str(each) for each in found}) > 1:
            raise ValueError(
                f"namespace={parts!r}: {name} is {found[0]!r} in the config and {found[1]!r} in the context; "
                "pass one of them"
            )
        if isinstance(found[0], bool) or not isinstance(found[0], str | int | uuid.UUID):
            raise TypeError(f"namespace={parts!r}: {name}={found[0]!r}; pass a string")
        return str(found[0])

    return check_namespace(
        [
            "".join(literal + ("" if name is None else value(name)) for literal, name in _fields(part, parts))
            for part in parts
        ]
    )


def _fields(part: str, parts: tuple[str, ...]) -> list[tuple[str, str | None]]:
    """Return the literal texts of a part, each with the name of the field after it."""
    try:
        found = list(Formatter().parse(part))
    except ValueError as error:
        raise ValueError(f"namespace={parts!r}: {part!r}: {error}; write two braces for one") from None
    for _, name, specification, conversion in found:
        plain = name is None or (name.isidentifier() and not name.startswith("_"))
        if not plain or specification or conversion:
            raise ValueError(
                f"namespace={parts!r}: {part!r} is no template; write a plain name in braces, such as "
                "'{user_id}', or two braces for one"
            )
    return [(literal, name) for literal, name, *_ in found]


def _context_value(context: Any, name: str) -> Any:
    if isinstance(context, Mapping):
        return context.get(name)
    return getattr(context, name, None)


def _running_context() -> Any:
    """Return the context of the LangGraph graph that runs now; None where there is none."""
    runtime: Any = sys.modules.get("langgraph.runtime")  # a graph that runs has imported it
    try:
        return None if runtime is None else getattr(runtime.get_runtime(), "context", None)
    except (KeyError, RuntimeError):  # outside a graph
        return None
