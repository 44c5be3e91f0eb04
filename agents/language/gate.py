"""Which addresses of a call another than the model gave: only those are opened once a stranger was heard.

In an argument that is an address, all of it has to be given, whatever it looks like. In any other every word
has to that looks like one: with `scheme:` or `www.` in it, or two slashes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from langchain_core.tools import BaseTool

from scrubjay.agents.language.address import Given, squeezed
from scrubjay.agents.language.declarations import (
    address_arguments,
    has_side_effect,
    is_known,
    is_trusted,
    schema_addresses,
    sounds_like_an_address,
)

# A scheme is tried from where its letters begin alone: from each of them would take their square.
_MARK = re.compile(r"(?<![a-z0-9+.-])[a-z][a-z0-9+.-]+:\S|(?<![a-z0-9])www\.|[/\\／＼]{2}", re.IGNORECASE)
# Of a text without what parts its words, which a tool may drop; there any word before a colon looks like a
# scheme.
_JOINED = re.compile(r"\A(https?:|ftps?:|wss?:|mailto:|www\.)|[/\\／＼]{2}", re.IGNORECASE)


class Gate:
    """Judges the calls of one tool."""

    def __init__(self, tool: BaseTool) -> None:
        declared = address_arguments(tool)
        self._trusted, self._guesses = is_trusted(tool), declared is None
        self._names = schema_addresses(tool) if declared is None else declared

    def has_ungiven(self, arguments: Any, given: Given) -> bool:
        """Return whether there is an address in the arguments that is not `given`.

        A tool whose results nobody outside words asks nobody outside, but by its addresses: only those count.
        """
        return any(
            (text not in given if is_address else not self._trusted and _names_another(text, given))
            for is_address, text in self._texts(arguments)
        )

    def _texts(self, arguments: Any) -> Iterator[tuple[bool, str]]:
        """Yield the texts of a JSON value, names of fields included, and whether each is an address."""
        waiting: list[tuple[bool, Any]] = [(False, arguments)]  # a model chooses how deep: no recursion
        while waiting:
            is_address, value = waiting.pop()
            if isinstance(value, dict):
                for name, item in value.items():
                    waiting.append((is_address and not name.isidentifier(), name))
                    waiting.append((is_address or self._is_address(name), item))
            elif isinstance(value, list):
                waiting += [(is_address, item) for item in value]
            elif isinstance(value, str) and value:
                yield is_address, value
            elif is_address and isinstance(value, int | float) and not isinstance(value, bool):
                yield True, str(value)  # 2130706433 is one, too

    def _is_address(self, name: str) -> bool:
        return name in self._names or (self._guesses and sounds_like_an_address(name))


def objection(tool: BaseTool, gate: Gate, arguments: Any, given: Callable[[], Given]) -> str | None:
    """Return why a call needs approval once text from outside was read, as the name of a prompt's line.

    It changes things, or nobody said that it does not; or it goes to an address that nobody gave, in which
    the model may have written what it knows. None if nothing is in its way.
    """
    if has_side_effect(tool):
        return "blocked" if is_known(tool) else "blocked_undeclared"
    return "blocked_address" if gate.has_ungiven(arguments, given()) else None


def texts(arguments: Any) -> list[str]:
    """Return the texts of a JSON value in their order, names of fields and numbers included."""
    found: list[str] = []
    waiting = [arguments]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [part for item in reversed(value.items()) for part in reversed(item)]
        elif isinstance(value, list):
            waiting += reversed(value)
        elif value is not None:
            found.append(str(value))
    return found


def _names_another(text: str, given: Given) -> bool:
    rest: list[str] = []
    for word in text.split():
        if not _MARK.search(word):
            rest.append(word)
        elif word not in given:
            return True
    joined = squeezed("".join(rest))
    return joined != text and bool(_JOINED.search(joined))
