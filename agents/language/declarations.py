"""Security properties of a tool: side effects, trust in its results, and arguments that are addresses.

Undeclared properties take the unsafe value: only an explicit False says that a tool has no side effect or
that its results are trusted. If a third party such as an MCP server wrote the tool's description, the third
party also wrote its metadata. For such a tool only a `Declaration` object counts, because a server cannot
send such an object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.tools import tool as langchain_tool
from langchain_core.utils.function_calling import convert_to_openai_tool

THIRD_PARTY = "scrubjay_foreign"
"""Metadata key of a tool; True if a third party wrote its description."""

_DECLARED = "scrubjay_declared"
_ADAPTERS = "langchain_mcp_adapters"
_FORMATS = ("uri", "uri-reference", "uri-template", "url", "iri", "iri-reference", "hostname", "idn-hostname")
_NAMES = re.compile(
    "(.*(ur[il]|iri|href)|link|address|host|hostname|domain|site|website|webpage|homepage|endpoint|webhook"
    "|callback|server)(e?s)?"
)
_WORDS = re.compile(r"(?:UR[IL]|IRI)s|[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True)
class Declaration:
    """Security properties of a tool as declared by its user in this process."""

    side_effect: bool = True
    """True if the tool changes the outside world."""
    untrusted: bool = True
    """True if a third party can influence the text of the tool's results."""
    addresses: tuple[str, ...] | None = None
    """Names of the arguments that are web addresses; None detects these arguments by schema and name."""


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


def declare(tool: BaseTool, declaration: Declaration) -> BaseTool:
    """Return a copy of `tool` with the declaration in its metadata."""
    metadata: dict[str, Any] = {"side_effect": declaration.side_effect, "untrusted": declaration.untrusted}
    if declaration.addresses is not None:
        metadata["addresses"] = declaration.addresses
    return tool.model_copy(update={"metadata": {**(tool.metadata or {}), **metadata, _DECLARED: declaration}})


def has_side_effect(tool: BaseTool) -> bool:
    """Return False if the tool is declared to have no side effect, and True for every other tool."""
    return _get_declared(tool, "side_effect") is not False


def is_side_effect_declared(tool: BaseTool) -> bool:
    """Return True if the tool declares `side_effect`, either as True or as False."""
    return isinstance(_get_declared(tool, "side_effect"), bool)


def is_trusted(tool: BaseTool) -> bool:
    """Return True if the tool's results are declared to be trusted (`untrusted` is False)."""
    return _get_declared(tool, "untrusted") is False


def is_third_party(tool: BaseTool) -> bool:
    """Return True if a third party wrote the tool's description and no declaration makes the tool trusted.

    Tools made by langchain-mcp-adapters and tools with `THIRD_PARTY` in their metadata have such
    descriptions.
    """
    return _is_described_by_others(tool) and not is_trusted(tool)


def address_arguments(tool: BaseTool) -> frozenset[str] | None:
    """Return the declared names of the arguments that are web addresses; None if no names are declared.

    Raises TypeError if the declared value is not a list or tuple.
    """
    addresses = _get_declared(tool, "addresses")
    if not isinstance(addresses, list | tuple | None):
        raise TypeError(f"tool {tool.name!r}: addresses={addresses!r}: must be a tuple of argument names")
    return None if addresses is None else frozenset(addresses)


def schema_addresses(tool: BaseTool) -> frozenset[str]:
    """Return the names of all fields, at any depth, whose JSON schema has an address format.

    Address formats are uri, url, hostname and similar ones; pydantic's URL types produce them.
    """
    schema: dict[str, Any] = convert_to_openai_tool(tool)["function"].get("parameters") or {}
    definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
    names: set[str] = set()
    visited_parts: set[tuple[str, str]] = set()
    pending: list[tuple[str, Any]] = [("", schema)]
    while pending:
        name, part = pending.pop()
        if isinstance(part, list):
            pending += [(name, item) for item in part]
        elif isinstance(part, dict):
            if part.get("format") in _FORMATS:
                names.add(name)
            kind = str(part.get("$ref", "")).rpartition("/")[2]
            if (name, kind) not in visited_parts:
                visited_parts.add((name, kind))
                pending.append((name, definitions.get(kind)))
            for key, item in part.items():
                if key == "properties" and isinstance(item, dict):
                    pending += item.items()
                else:
                    pending.append((name, item))
    return frozenset(names)


def sounds_like_an_address(name: str) -> bool:
    """Return True if a word of an argument's name denotes an address, as in `callback_url`."""
    return any(_NAMES.fullmatch(word.lower()) for word in _WORDS.findall(name))


def _get_declared(tool: BaseTool, name: str) -> Any:
    metadata = tool.metadata or {}
    if _is_described_by_others(tool):
        declaration = metadata.get(_DECLARED)
        return getattr(declaration, name) if isinstance(declaration, Declaration) else None
    return metadata.get(name)


def _is_described_by_others(tool: BaseTool) -> bool:
    made_by = [getattr(getattr(tool, name, None), "__module__", None) or "" for name in ("func", "coroutine")]
    return (tool.metadata or {}).get(THIRD_PARTY) is True or any(
        module.partition(".")[0] == _ADAPTERS for module in made_by
    )
