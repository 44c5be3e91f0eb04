"""Published data sets: readers of their files, detection of the format, and development and test parts.

The two parts of a data set have no conversation in common, and in REALTALK no person (`parts.json`). A data
set that is not listed is split by a hash of the conversation names.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from scrubjay.experiments.answers.agentbench import read_agentbench
from scrubjay.experiments.answers.dialogues import (
    read_beam,
    read_locomo,
    read_longmemeval,
    read_memdaily,
    read_realtalk,
)
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.lm.conversations import Conversation

Form = Literal["agentbench", "longmemeval", "locomo", "realtalk", "beam", "memdaily"]
READERS: Mapping[Form, Callable[[Path], list[Conversation]]] = {
    "agentbench": read_agentbench,
    "longmemeval": read_longmemeval,
    "locomo": read_locomo,
    "realtalk": read_realtalk,
    "beam": read_beam,
    "memdaily": read_memdaily,
}
Part = Literal["development", "test"]
PARTS: tuple[Part, ...] = ("development", "test")
_HEAD_BYTES = 4096
_FIRST_KEY = re.compile(r'\s*\[?\s*\{\s*"([^"\\]{1,40})"')
_KEYS: Mapping[str, Form] = {
    **dict.fromkeys(("context", "questions", "answers", "metadata"), "agentbench"),
    **dict.fromkeys(
        ("qa", "conversation", "sample_id", "event_summary", "observation", "session_summary"), "locomo"
    ),
    **dict.fromkeys(
        (
            "question_id",
            "question_type",
            "question",
            "answer",
            "question_date",
            "haystack_dates",
            "haystack_sessions",
            "haystack_session_ids",
            "answer_session_ids",
        ),
        "longmemeval",
    ),
}
"""Format of a file by the first key of its first object."""


def read_any(path: Path, form: Form | None = None) -> list[Conversation]:
    """Read the conversations of a file or folder, with all questions that can be scored.

    Raises UsageError if the format is unknown, or if the data do not have the format `form`.
    """
    return READERS[form or guess(path)](path)


def with_evidence(conversations: Iterable[Conversation]) -> list[Conversation]:
    """Leave out questions for which no turn is known to be needed, and conversations without a question."""
    selected_conversations = (
        replace(one, questions=tuple(question for question in one.questions if question.answers))
        for one in conversations
    )
    return [one for one in selected_conversations if one.questions]


def guess(path: Path) -> Form:
    """Guess the format of a file or folder. Raises UsageError if it is unknown."""
    try:
        if path.is_dir():
            form = _guess_folder(path)
        elif path.suffix in (".parquet", ".jsonl"):
            form = "agentbench"
        else:
            begins = _FIRST_KEY.match(_head(path))
            form = _KEYS.get(begins[1]) if begins else None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; give the path of a data set") from None
    if form is None:
        raise UsageError(f"{path} is in no known format; pass --format {'|'.join(READERS)}")
    return form


def _guess_folder(folder: Path) -> Form | None:
    files = sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.is_file())
    if files:
        return "realtalk" if _head(files[0]).lstrip().startswith("{") else "memdaily"
    chats = ("chat.json", "chat_trunecated.json")
    return "beam" if any((one / name).is_file() for one in folder.iterdir() for name in chats) else None


def _head(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a regular file; give the path of a data set")
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES).decode("utf-8", "replace")


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
