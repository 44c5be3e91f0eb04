"""Files of any set that is known, by what they look like."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from scrubjay.experiments.language.conversations import Conversation
from scrubjay.experiments.quality.sets.agentbench import read_agentbench
from scrubjay.experiments.quality.sets.beam import read_beam
from scrubjay.experiments.quality.sets.locomo import read_locomo, read_realtalk
from scrubjay.experiments.quality.sets.longmemeval import read_longmemeval
from scrubjay.experiments.quality.sets.memdaily import read_memdaily
from scrubjay.experiments.words.failures import UsageError

Form = Literal["agentbench", "longmemeval", "locomo", "realtalk", "beam", "memdaily"]
READERS: Mapping[Form, Callable[[Path], list[Conversation]]] = {
    "agentbench": lambda path: read_agentbench(path, evident=False),
    "longmemeval": lambda path: read_longmemeval(path, evident=False),
    "locomo": lambda path: read_locomo(path, evident=False),
    "realtalk": lambda path: read_realtalk(path, evident=False),
    "beam": lambda path: read_beam(path, evident=False),
    "memdaily": read_memdaily,
}
_LOOKED_AT = 4096
_FIRST_KEY = re.compile(r'\s*\[?\s*\{\s*"([^"\\]{1,40})"')
_KEYS: Mapping[str, Form] = {
    **dict.fromkeys(("context", "questions", "answers", "metadata"), "agentbench"),
    **dict.fromkeys(
        ("qa", "conversation", "sample_id", "event_summary", "observation", "session_summary"), "locomo"
    ),
    **dict.fromkeys(("question_id", "question_type", "question", "answer"), "longmemeval"),
    **dict.fromkeys(("question_date", "haystack_dates", "haystack_sessions"), "longmemeval"),
    **dict.fromkeys(("haystack_session_ids", "answer_session_ids"), "longmemeval"),
}
"""What a file is whose first object begins with this key."""


def read_any(path: Path, form: Form | None = None) -> list[Conversation]:
    """Return the conversations of a file or folder of a set, with all questions that can be judged.

    Raises UsageError on what is in no form that is known, or not in the one that is named.
    """
    return READERS[form or guess(path)](path)


def guess(path: Path) -> Form:
    """Return the form that a file or folder seems to be in. Raises UsageError if that is none."""
    try:
        found = _of_folder(path) if path.is_dir() else _of_file(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; name where a set lies") from None
    if found is None:
        raise UsageError(
            f"{path} looks like no set that is known; --form {'|'.join(READERS)} says which it is"
        )
    return found


def _of_folder(folder: Path) -> Form | None:
    files = sorted(path for path in folder.iterdir() if path.suffix == ".json" and path.is_file())
    if files:
        return "realtalk" if _head(files[0]).lstrip().startswith("{") else "memdaily"
    chats = ("chat.json", "chat_trunecated.json")
    return "beam" if any((one / name).is_file() for one in folder.iterdir() for name in chats) else None


def _of_file(path: Path) -> Form | None:
    if path.suffix in (".parquet", ".jsonl"):
        return "agentbench"
    begins = _FIRST_KEY.match(_head(path))
    return _KEYS.get(begins[1]) if begins else None


def _head(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no plain file")
    with path.open("rb") as file:
        return file.read(_LOOKED_AT).decode("utf-8", "replace")
