"""What is known of a tool: whether it changes things, who words its results, which arguments are addresses.

What nobody declared is taken for the worse: only the value False says that a tool has no side effect, or that
nobody outside words its results. Of a tool whose description strangers wrote, as those of MCP servers, its
metadata came from them, too: there a `Declaration` alone counts, which no server can send.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

FOREIGN = "scrubjay_foreign"
"""In the metadata of a tool whose description is a stranger's: True."""

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
    """What a tool's user says of it in this process."""

    side_effect: bool = True
    """It changes things outside."""
    untrusted: bool = True
    """Somebody outside can word its results."""
    addresses: tuple[str, ...] | None = None
    """Arguments that are addresses; None for those whose schema or name says so."""


def declare(tool: BaseTool, declaration: Declaration) -> BaseTool:
    """Return a copy of `tool` with what is declared of it."""
    told: dict[str, Any] = {"side_effect": declaration.side_effect, "untrusted": declaration.untrusted}
    if declaration.addresses is not None:
        told["addresses"] = declaration.addresses
    return tool.model_copy(update={"metadata": {**(tool.metadata or {}), **told, _DECLARED: declaration}})


def has_side_effect(tool: BaseTool) -> bool:
    """Return whether this tool may change things outside: unless it is declared that it does not."""
    return _declared(tool, "side_effect") is not False


def is_known(tool: BaseTool) -> bool:
    """Return whether anybody declared that this tool changes things outside, or that it does not."""
    return isinstance(_declared(tool, "side_effect"), bool)


def is_trusted(tool: BaseTool) -> bool:
    """Return whether nobody outside can word a tool's results: where that is declared."""
    return _declared(tool, "untrusted") is False


def is_foreign(tool: BaseTool) -> bool:
    """Return whether a stranger worded what the model is told of this tool, and nobody vouches for it.

    True of the tools that langchain-mcp-adapters makes, and of those marked `FOREIGN`.
    """
    return _is_described_by_others(tool) and not is_trusted(tool)


def address_arguments(tool: BaseTool) -> frozenset[str] | None:
    """Return the names of the arguments that are addresses as it is declared; None if it is not.

    Raises TypeError on names that are no list or tuple.
    """
    declared = _declared(tool, "addresses")
    if not isinstance(declared, list | tuple | None):
        raise TypeError(f"tool {tool.name!r}: addresses={declared!r}: give a tuple of names of arguments")
    return None if declared is None else frozenset(declared)


def schema_addresses(tool: BaseTool) -> frozenset[str]:
    """Return the names of all fields, at any depth, to which the schema gives an address's format.

    Such are those of pydantic's types of addresses, and `format` uri, url, hostname and their like.
    """
    schema: dict[str, Any] = convert_to_openai_tool(tool)["function"].get("parameters") or {}
    definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
    found: set[str] = set()
    followed: set[tuple[str, str]] = set()
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        name, part = waiting.pop()
        if isinstance(part, list):
            waiting += [(name, item) for item in part]
        elif isinstance(part, dict):
            if part.get("format") in _FORMATS:
                found.add(name)
            kind = str(part.get("$ref", "")).rpartition("/")[2]
            if (name, kind) not in followed:
                followed.add((name, kind))
                waiting.append((name, definitions.get(kind)))
            for key, item in part.items():
                if key == "properties" and isinstance(item, dict):
                    waiting += item.items()
                else:
                    waiting.append((name, item))
    return frozenset(found)


def sounds_like_an_address(name: str) -> bool:
    """Return whether a word of an argument's name says that it is an address, as in `callback_url`."""
    return any(_NAMES.fullmatch(word.lower()) for word in _WORDS.findall(name))


def _declared(tool: BaseTool, name: str) -> Any:
    metadata = tool.metadata or {}
    if _is_described_by_others(tool):
        declaration = metadata.get(_DECLARED)
        return getattr(declaration, name) if isinstance(declaration, Declaration) else None
    return metadata.get(name)


def _is_described_by_others(tool: BaseTool) -> bool:
    made_by = [getattr(getattr(tool, name, None), "__module__", None) or "" for name in ("func", "coroutine")]
    return (tool.metadata or {}).get(FOREIGN) is True or any(
        module.partition(".")[0] == _ADAPTERS for module in made_by
    )
