"""Security properties of a tool: side effects, trust in its results, and arguments that are addresses.

Undeclared properties take the unsafe value: only an explicit False says that a tool has no side effect or
that its results are trusted. The argument `declare` of an agent declares tools by name with a word of
`DECLARATIONS`. If a third party such as an MCP server wrote the tool's description, the third
party also wrote its metadata. For such a tool only a `Declaration` object counts, because a server cannot
send such an object.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
# Booleans that an MCP server sends with a tool.
_HINTS = ("readOnlyHint", "destructiveHint")
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


DECLARATIONS = {
    "reads": Declaration(side_effect=False),
    "writes": Declaration(side_effect=True),
    "computes": Declaration(side_effect=False, untrusted=False),
}
"""Declarations by word, for the argument `declare` of an agent.

| word | side effect | results |
| --- | --- | --- |
| reads | none | untrusted |
| writes | changes the outside world; needs approval after untrusted text was read | untrusted |
| computes | none | trusted, because they depend on the arguments only |
"""


class UndeclaredToolWarning(UserWarning):
    """A tool does not declare whether it has side effects, so an agent refuses it after untrusted text."""


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

    Raises:
        TypeError: If a value has the wrong type.
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


def check_declarations(words: Mapping[str, str] | None) -> dict[str, str]:
    """Return the argument `declare` of an agent as a dictionary; None is empty.

    Raises TypeError if the argument is not a dictionary. Raises ValueError on an unknown word.
    """
    if not isinstance(words, Mapping | None):
        raise TypeError(f'declare={words!r}: pass a dictionary, such as {{"search": "reads"}}')
    for name, word in (words or {}).items():
        if not isinstance(word, str) or word not in DECLARATIONS:
            raise ValueError(
                f"declare={{{name!r}: {word!r}}}: write reads (no side effects), writes (side effects; needs "
                "approval) or computes (no side effects, and trusted results)"
            )
    return dict(words or {})


def declare_tool(tool: BaseTool, word: str) -> BaseTool:
    """Return a copy of `tool` that is declared by a word of `DECLARATIONS`.

    Raises ValueError if the tool itself declares a side effect or untrusted results, and `word` does not.
    """
    declaration, addresses = DECLARATIONS[word], address_arguments(tool)
    for name in ("side_effect", "untrusted"):
        if _get_declared(tool, name) is True and getattr(declaration, name) is False:
            raise ValueError(
                f"declare={{{tool.name!r}: {word!r}}}: the tool declares {name}=True itself; leave it out of "
                "`declare`, or change the tool's own declaration"
            )
    return declare(
        tool, replace(declaration, addresses=None if addresses is None else tuple(sorted(addresses)))
    )


def declare_tools(tools: Mapping[str, BaseTool], words: Mapping[str, str] | None) -> dict[str, BaseTool]:
    """Return tools by name, with declared copies of the tools in `words`.

    Raises the errors of `check_declarations` and `declare_tool`, and ValueError on an unknown tool.
    """
    words = check_declarations(words)
    for name in words:
        if name not in tools:
            close = difflib.get_close_matches(str(name), tools, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"declare={{{name!r}: ...}}: unknown tool; the tools are {', '.join(tools) or '(none)'}{hint}"
            )
    return {name: declare_tool(tool, words[name]) if name in words else tool for name, tool in tools.items()}


def describe_undeclared(
    tools: Iterable[BaseTool], remedy: Callable[[list[str]], str] | None = None, alternative: str = ""
) -> str:
    """Return a description of the undeclared tools, and the line that declares them; "" if there are none.

    Args:
        tools: Tools of an agent.
        remedy: Function that returns the line for names of tools; None for the argument `declare`.
        alternative: Argument that makes a declaration unnecessary.

    Read-only hints of MCP servers are shown, but an agent ignores them.
    """
    undeclared_tools = [tool for tool in tools if not is_side_effect_declared(tool)]
    if not undeclared_tools:
        return ""
    names = [tool.name for tool in undeclared_tools]
    text = (
        f"undeclared tools: {', '.join(names)}. After the first untrusted text, such as the result of a "
        "tool, each call of these tools needs approval and is refused without it. If they have no side "
        f"effects, write {(remedy or _declare_line)(names)}; "
        f'write "writes" for a tool that changes something.{alternative and f" Or pass {alternative}."}'
    )
    hints = [f"{tool.name} ({', '.join(values)})" for tool in undeclared_tools if (values := _hints(tool))]
    return f"{text} Hints of servers, which are ignored: {', '.join(hints)}." if hints else text


def _declare_line(names: Sequence[str]) -> str:
    return f"declare={json.dumps(dict.fromkeys(names, 'reads'), ensure_ascii=False)}"


def _hints(tool: BaseTool) -> list[str]:
    metadata = tool.metadata or {}
    return [f"{name}={metadata[name]}" for name in _HINTS if isinstance(metadata.get(name), bool)]


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
