"""Declare the security properties of tools; an undeclared tool counts as a tool with side effects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.tools import tool as langchain_tool

from scrubjay.agents.language.declarations import Declaration, declare


def as_tool(function_or_tool: BaseTool | Callable[..., Any]) -> BaseTool:
    """Return a tool unchanged; convert a function. A function without docstring raises ValueError."""
    if isinstance(function_or_tool, BaseTool):
        return function_or_tool
    try:
        return langchain_tool(function_or_tool)
    except ValueError as error:
        raise ValueError(
            f"tool {getattr(function_or_tool, '__name__', function_or_tool)!r}: {error}"
        ) from error


def tool(
    bare: None = None,
    /,
    *,
    side_effect: bool = True,
    untrusted: bool = True,
    addresses: Sequence[str] | None = None,
) -> Callable[[BaseTool | Callable[..., Any]], BaseTool]:
    """Return a decorator that declares the security properties of a function or langchain tool.

    The decorator returns a langchain tool. `@tool(side_effect=False)` decorates a function, which may be
    async, and replaces langchain's decorator or stands above it. `tool(side_effect=False)(existing_tool)`
    returns a declared copy of a tool, such as a tool of an MCP server.

    Args:
        bare: Must be None. A function here means that the decorator was used without parentheses.
        side_effect: True if the tool changes the outside world. After untrusted text was read, such a tool
            needs approval.
        untrusted: True if a third party can influence the text of the tool's results; False for a tool that
            computes results from its arguments only.
        addresses: Names of the arguments that are web addresses; () if there are no such arguments. None
            detects these arguments by schema and name.

    Raises TypeError if a value has the wrong type.
    """
    if bare is not None:
        raise TypeError(
            f"@tool on {bare!r} declares nothing; write @tool(side_effect=False) or @tool(side_effect=True)"
        )
    for name, value in (("side_effect", side_effect), ("untrusted", untrusted)):
        if not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}: must be True or False")
    if isinstance(addresses, str):
        raise TypeError(f"addresses={addresses!r}: must be a tuple of names, such as {(addresses,)!r}")
    declaration = Declaration(side_effect, untrusted, None if addresses is None else tuple(addresses))

    def decorate(function_or_tool: BaseTool | Callable[..., Any]) -> BaseTool:
        return declare(as_tool(function_or_tool), declaration)

    return decorate
