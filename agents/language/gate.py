"""Gate: check of the web addresses in tool calls after untrusted text was read.

A call may contain only addresses that someone other than the model wrote (`AllowedAddresses`). The complete
text of an address argument must be an allowed address, even if it does not look like an address. In other
arguments every word with `scheme:`, `www.` or two slashes must be an allowed address.
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
    """Checker of the web addresses in calls to one tool."""

    def __init__(self, tool: BaseTool) -> None:
        names = address_arguments(tool)
        self._trusted, self._guesses = is_trusted(tool), names is None
        self._names = schema_addresses(tool) if names is None else names

    def has_disallowed_address(self, arguments: Any, allowed_addresses: AllowedAddresses) -> bool:
        """Return True if the arguments contain an address that is not in `allowed_addresses`.

        A tool with trusted results contacts third parties only through its address arguments. For such a tool
        only the address arguments are checked.
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
        """Yield a pair (is_address, text) for each text in a JSON value, including field names."""
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
    """Return the reason why a call needs approval after untrusted text was read; None if no reason exists.

    The reason is the name of a phrase in `agents/language/prompts`. There are three reasons: the tool
    declares a side effect, the tool does not declare `side_effect=False`, or the call contains an address
    that is not allowed. The model may have encoded private data in such an address.
    """
    if has_side_effect(tool):
        return "blocked" if is_side_effect_declared(tool) else "blocked_undeclared"
    return "blocked_address" if gate.has_disallowed_address(arguments, get_allowed_addresses()) else None


def collect_texts(arguments: Any) -> list[str]:
    """Return all texts of a JSON value in order, including field names and numbers."""
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
