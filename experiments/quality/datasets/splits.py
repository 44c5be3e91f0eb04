"""Development and test splits of the data sets, by conversation name (`parts.json`).

The two parts have no conversation in common, and in REALTALK no person. A data set that is not listed is
split by a hash of the conversation names.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.lm.conversations import Conversation

Part = Literal["development", "test"]
PARTS: tuple[Part, ...] = ("development", "test")


def part_names(set: str, part: Part) -> list[Any]:
    """Return the conversation names of a part.

    The names are seeds for synthetic sets. For MemDaily, each entry is a list of trajectory names that form
    one conversation.
    """
    return _parts()[set][part]


def select_part(conversations: Iterable[Conversation], set: str, part: Part) -> tuple[Conversation, ...]:
    """Select the conversations of a part.

    Raises UsageError if a conversation of a listed data set is in neither part, or if the part is empty.
    """
    selected_conversations = tuple(one for one in conversations if find_part(one.name, set) == part)
    if not selected_conversations:
        raise UsageError(f"{set}: no conversations of the {part} part; give the whole data set")
    return selected_conversations


def find_part(name: str, set: str) -> Part:
    """Return the part that contains a conversation.

    Raises UsageError if `parts.json` lists the data set but no part contains the conversation.
    """
    if set not in _parts():
        return PARTS[hashlib.blake2b(name.encode(), digest_size=8).digest()[-1] % 2]
    for part in PARTS:
        if name in part_names(set, part):
            return part
    raise UsageError(
        f"{set}: {name!r} is in neither part, {' or '.join(PARTS)}; pass the unmodified published data set"
    )


@functools.cache
def _parts() -> dict[str, dict[Part, list[Any]]]:
    return json.loads(Path(__file__).with_name("parts.json").read_text(encoding="utf-8"))
