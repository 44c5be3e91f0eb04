"""BEAM (Tavakoli et al. 2025, arXiv 2510.27246): chats of 128K tokens and more with an assistant, in JSON.

The pickles that lie beside the JSON are never opened.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scrubjay.experiments.language.conversations import Conversation, Question, Turn
from scrubjay.experiments.quality.sets.form import (
    fields,
    form_of,
    items,
    read_json,
    references,
    said,
    text,
    whole,
)

_BEGIN = datetime(2024, 1, 1, 9, tzinfo=UTC)
_ANCHOR = "%B-%d-%Y"
_APART, _STEP = timedelta(hours=2), timedelta(seconds=30)
_PLACE = re.compile(r"\s*->->[^\n]{0,16}$")
"""A message's place in the plan of its chat, which its authors left at its end."""
_ANSWERS = ("answer", "ideal_response", "ideal_answer", "ideal_summary")
"""Where a question of one ability or another has its answer."""


def read_beam(folder: str | Path, evident: bool = True) -> list[Conversation]:
    """Return the chats in a folder such as `chats/100K`, one record a message, named by their folders.

    The shortened chat is read where there is one, as its authors do. Of times the files tell some days: a
    question and what follows it are two hours from the next. Questions without sources are left out, unless
    `evident` is False and they have an answer. Raises UsageError on what is not in this form.
    """
    folder = Path(folder)
    with form_of("BEAM", folder):
        chats = sorted((path for path in folder.iterdir() if path.is_dir()), key=_by_number)
        if not chats:
            raise ValueError("it holds no folders of chats")
    return [_chat(path, evident) for path in chats]


def _chat(folder: Path, evident: bool) -> Conversation:
    shortened = folder / "chat_trunecated.json"
    path = shortened if shortened.exists() else folder / "chat.json"
    with form_of("BEAM", path):
        turns, place = _messages(read_json(path))
    path = folder / "probing_questions" / "probing_questions.json"
    with form_of("BEAM", path):
        asked = []
        for ability, probes in fields(read_json(path)).items():
            for probe in items(probes):
                answers = frozenset(
                    place[i] for i in _numbers(fields(probe).get("source_chat_ids")) if i in place
                )
                wanted = references(next((probe[name] for name in _ANSWERS if name in probe), None))
                if answers or (wanted and not evident):
                    asked.append(Question(text(probe["question"]), answers, ability, references=wanted))
    return Conversation(tuple(turns), tuple(asked), folder.name)


def _messages(batches: Any) -> tuple[list[Turn], dict[int, int]]:
    """Return the messages of a chat and the place of each by its number."""
    turns: list[Turn] = []
    place: dict[int, int] = {}
    now = _BEGIN
    for group in itertools.chain.from_iterable(items(fields(batch)["turns"]) for batch in items(batches)):
        for message in items(group):
            anchor = fields(message).get("time_anchor")
            if anchor is not None:
                # Days of a plan may stand in another order than the messages.
                now = max(now, datetime.strptime(text(anchor), _ANCHOR).replace(hour=9, tzinfo=UTC))
            place[whole(message["id"])] = len(turns)
            turns.append(Turn(said(_PLACE.sub("", text(message["content"]))), now))
            now += _STEP
        now += _APART
    return turns, place


def _numbers(value: Any) -> Iterator[int]:
    """Yield all whole numbers in lists and objects of lists."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers(one)
    elif isinstance(value, int):
        yield value


def _by_number(path: Path) -> tuple[int, str]:
    return int(path.name) if path.name.isdecimal() else -1, path.name
