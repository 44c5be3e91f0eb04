"""Tools with what their user says of them: what nobody speaks for is taken to change things."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.tools import tool as made_by_langchain

from scrubjay.agents.language.declarations import Declaration, declare


def as_tool(given: BaseTool | Callable[..., Any]) -> BaseTool:
    """Return a tool, or that of a function. Raises ValueError naming one without a docstring."""
    if isinstance(given, BaseTool):
        return given
    try:
        return made_by_langchain(given)
    except ValueError as error:
        raise ValueError(f"tool {getattr(given, '__name__', given)!r}: {error}") from error


def tool(
    bare: None = None,
    /,
    *,
    side_effect: bool = True,
    untrusted: bool = True,
    addresses: Sequence[str] | None = None,
) -> Callable[[BaseTool | Callable[..., Any]], BaseTool]:
    """Return what makes a tool of a function, plain or async, or a declared copy of a langchain tool.

    `@tool(side_effect=False)` stands above a function, in place of langchain's decorator or on top of it;
    `tool(side_effect=False)(found)` declares a tool that is there, of an MCP server for instance.

    Args:
        bare: Nothing: what stands above a function has brackets.
        side_effect: Whether it changes things outside. What does is not run, once text from outside was
            read, without approval.
        untrusted: Whether somebody outside can word its results. False for what computes from its arguments.
        addresses: The arguments that are addresses, none for (); None for those whose schema or name says so.

    Raises TypeError on another value.
    """
    if bare is not None:
        raise TypeError(f"tool above {bare!r} declares nothing: write @tool(side_effect=False), or True")
    for name, value in (("side_effect", side_effect), ("untrusted", untrusted)):
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: must be True or False")
    if isinstance(addresses, str):
        raise TypeError(f"addresses={addresses!r}: must be a tuple of names, such as {(addresses,)!r}")
    declaration = Declaration(side_effect, untrusted, None if addresses is None else tuple(addresses))

    def declared(given: BaseTool | Callable[..., Any]) -> BaseTool:
        return declare(as_tool(given), declaration)

    return declared
