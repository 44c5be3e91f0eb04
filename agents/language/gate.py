"""Gate on the addresses in tool calls after untrusted text was read.

A call may then contain only addresses that someone other than the model wrote (`AllowedAddresses`). An
address argument must be allowed as a whole, whatever it looks like. In other arguments every word that looks
like an address must be allowed: a word with `scheme:`, `www.` or two slashes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.tools import BaseTool

from scrubjay.agents.language.address import AllowedAddresses, remove_blanks
from scrubjay.agents.language.declarations import (
    address_arguments,
    has_side_effect,
    is_side_effect_declared,
    is_trusted,
    schema_addresses,
    sounds_like_an_address,
)

# A scheme matches only from the first of its letters: trying each letter would take quadratic time.
_MARK = re.compile(r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]+:\S|(?<![a-z0-9])www\.|[/\\／＼]{2}", re.IGNORECASE)
# For a text whose word separators are removed, as a tool may do. Any word before a colon would look like a
# scheme there, so only known schemes count.
_JOINED = re.compile(r"\A(https?:|ftps?:|wss?:|mailto:|www\.)|[/\\／＼]{2}", re.IGNORECASE)


class Gate:
    """Address check of the calls to one tool."""

    def __init__(self, tool: BaseTool) -> None:
        names = address_arguments(tool)
        self._trusted, self._guesses = is_trusted(tool), names is None
        self._names = schema_addresses(tool) if names is None else names

    def has_disallowed_address(self, arguments: Any, allowed_addresses: AllowedAddresses) -> bool:
        """Return True if the arguments contain an address that is not in `allowed`.

        A tool with trusted results contacts third parties only through its address arguments, so for such a
        tool only these are checked.
        """
        return any(
            (
                text not in allowed_addresses
                if is_address
                else not self._trusted and _has_disallowed_address(text, allowed_addresses)
            )
            for is_address, text in self._texts(arguments)
        )

    def _texts(self, arguments: Any) -> Iterator[tuple[bool, str]]:
        """Yield pairs (is address, text) of the texts in a JSON value, field names included."""
        pending: list[tuple[bool, Any]] = [(False, arguments)]  # the model controls the depth: no recursion
        while pending:
            is_address, value = pending.pop()
            if isinstance(value, dict):
                for name, item in value.items():
                    pending.append((is_address and not name.isidentifier(), name))
                    pending.append((is_address or self._is_address(name), item))
            elif isinstance(value, list):
                pending += [(is_address, item) for item in value]
            elif isinstance(value, str) and value:
                yield is_address, value
            elif is_address and isinstance(value, int | float) and not isinstance(value, bool):
                yield True, str(value)  # a number such as 2130706433 is an IPv4 address, too

    def _is_address(self, name: str) -> bool:
        return name in self._names or (self._guesses and sounds_like_an_address(name))


def find_objection(
    tool: BaseTool, gate: Gate, arguments: Any, get_allowed_addresses: Callable[[], AllowedAddresses]
) -> str | None:
    """Return the reason why a call needs approval after untrusted text was read, as the name of a prompt.

    Reasons are a side effect, an undeclared side effect, and an address that is not allowed: the model may
    have encoded private data in it. Return None if the call needs no approval.
    """
    if has_side_effect(tool):
        return "blocked" if is_side_effect_declared(tool) else "blocked_undeclared"
    return "blocked_address" if gate.has_disallowed_address(arguments, get_allowed_addresses()) else None


def collect_texts(arguments: Any) -> list[str]:
    """Return the texts of a JSON value in order, field names and numbers included."""
    results: list[str] = []
    pending = [arguments]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [part for item in reversed(value.items()) for part in reversed(item)]
        elif isinstance(value, list):
            pending += reversed(value)
        elif value is not None:
            results.append(str(value))
    return results


def _has_disallowed_address(text: str, allowed_addresses: AllowedAddresses) -> bool:
    rest: list[str] = []
    for word in text.split():
        if not _MARK.search(word):
            rest.append(word)
        elif word not in allowed_addresses:
            return True
    joined_text = remove_blanks("".join(rest))
    return joined_text != text and bool(_JOINED.search(joined_text))
