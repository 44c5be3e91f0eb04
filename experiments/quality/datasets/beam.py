"""BEAM (Tavakoli et al. 2025, arXiv 2510.27246): chats of 128K tokens and more with an assistant, in JSON.

The pickle files next to the JSON are never opened.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scrubjay.experiments.lm.conversations import Conversation, Question, Turn
from scrubjay.experiments.quality.datasets.parsing import (
    check_integer,
    expect_format,
    fields,
    items,
    read_json,
    references,
    text,
    to_record_text,
)

_BEGIN = datetime(2024, 1, 1, 9, tzinfo=UTC)
_ANCHOR = "%B-%d-%Y"
_GROUP_GAP, _STEP = timedelta(hours=2), timedelta(seconds=30)
_PLACE = re.compile(r"\s*->->[^\n]{0,16}$")
"""Position in the chat plan, which the data set appends to each message."""
_ANSWERS = ("answer", "ideal_response", "ideal_answer", "ideal_summary")
"""Keys of the answer, which depend on the question type."""


def read_beam(folder: str | Path, evident: bool = True) -> list[Conversation]:
    """Read the chats in a folder such as `chats/100K`; each message is a record.

    A chat has the name of its folder. If a folder also has a shortened chat, the full chat is ignored, as in
    the authors' evaluation. Only some groups of messages have a date in the files. Any other group begins two
    hours after the previous group. Questions without source messages are omitted, unless `evident` is False
    and they have an answer. Raises UsageError on another format.
    """
    folder = Path(folder)
    with expect_format("BEAM", folder):
        chats = sorted((path for path in folder.iterdir() if path.is_dir()), key=_by_number)
        if not chats:
            raise ValueError("the folder contains no chat folders")
    return [_chat(path, evident) for path in chats]


def _chat(folder: Path, evident: bool) -> Conversation:
    short_path = folder / "chat_trunecated.json"
    path = short_path if short_path.exists() else folder / "chat.json"
    with expect_format("BEAM", path):
        turns, place = _messages(read_json(path))
    path = folder / "probing_questions" / "probing_questions.json"
    with expect_format("BEAM", path):
        questions = []
        for ability, probes in fields(read_json(path)).items():
            for probe in items(probes):
                answers = frozenset(
                    place[i] for i in _numbers(fields(probe).get("source_chat_ids")) if i in place
                )
                correct_answers = references(next((probe[name] for name in _ANSWERS if name in probe), None))
                if answers or (correct_answers and not evident):
                    questions.append(
                        Question(text(probe["question"]), answers, ability, references=correct_answers)
                    )
    return Conversation(tuple(turns), tuple(questions), folder.name)


def _messages(batches: Any) -> tuple[list[Turn], dict[int, int]]:
    """Return the messages of a chat, and the index of each message by its id."""
    turns: list[Turn] = []
    place: dict[int, int] = {}
    now = _BEGIN
    for group in itertools.chain.from_iterable(items(fields(batch)["turns"]) for batch in items(batches)):
        for message in items(group):
            anchor = fields(message).get("time_anchor")
            if anchor is not None:
                # Dates of a plan may be in another order than the messages.
                now = max(now, datetime.strptime(text(anchor), _ANCHOR).replace(hour=9, tzinfo=UTC))
            place[check_integer(message["id"])] = len(turns)
            turns.append(Turn(to_record_text(_PLACE.sub("", text(message["content"]))), now))
            now += _STEP
        now += _GROUP_GAP
    return turns, place


def _numbers(value: Any) -> Iterator[int]:
    """Yield all integers in nested lists and objects."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers(one)
    elif isinstance(value, int):
        yield value


def _by_number(path: Path) -> tuple[int, str]:
    return int(path.name) if path.name.isdecimal() else -1, path.name
