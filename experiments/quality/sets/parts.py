"""Which conversations recall may be tuned on, and which it is then tested on, by their names: `parts.json`.

Conversations are apart, not questions; in REALTALK the people are, too. A set whose conversations are not
listed is parted by a hash of their names.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from scrubjay.experiments.language.conversations import Conversation
from scrubjay.experiments.words.failures import UsageError

Part = Literal["development", "test"]
PARTS: tuple[Part, ...] = ("development", "test")


def names_of(set: str, part: Part) -> list[Any]:
    """Return the names of a set's conversations, seeds of made ones, and pools of names for MemDaily."""
    return _parts()[set][part]


def only(conversations: Iterable[Conversation], set: str, part: Part) -> tuple[Conversation, ...]:
    """Return the conversations of a part.

    Raises UsageError on one that is in neither part of a set whose conversations are listed, and where none
    is left.
    """
    kept = tuple(one for one in conversations if part_of(one.name, set) == part)
    if not kept:
        raise UsageError(f"{set}: there is nothing of its {part} part; name the whole set")
    return kept


def part_of(name: str, set: str) -> Part:
    """Return the part that a conversation of that name belongs to. Raises UsageError as `only` does."""
    if set not in _parts():
        return PARTS[hashlib.blake2b(name.encode(), digest_size=8).digest()[-1] % 2]
    for part in PARTS:
        if name in names_of(set, part):
            return part
    raise UsageError(f"{set}: {name!r} is in neither part; name the set as it is published")


@functools.cache
def _parts() -> dict[str, dict[Part, list[Any]]]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
