"""LoCoMo (Maharana et al. 2024, arXiv 2402.17753) and REALTALK (Lee et al. 2025, arXiv 2502.13270).

Chats of two people over weeks, written by language models in LoCoMo and by people in REALTALK.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scrubjay.experiments.lm.conversations import Conversation, Question, Turn
from scrubjay.experiments.quality.datasets.parsing import (
    expect_format,
    fields,
    items,
    json_files,
    read_json,
    references,
    text,
    to_record_text,
)

_LOCOMO_TIME = "%I:%M %p on %d %B, %Y"
_REALTALK_TIME = "%d.%m.%Y, %H:%M:%S"
_STEP = timedelta(seconds=30)
_ADVERSARIAL = 5
_ABILITIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}


def read_locomo(path: str | Path, evident: bool = True) -> list[Conversation]:
    """Read the conversations of a `locomo10.json`; each turn is a record, with captions for pictures.

    Questions of category 5, which have no answer, are omitted. Questions without evidence are also omitted,
    unless `evident` is False and they have an answer. Raises UsageError on another format.
    """
    path = Path(path)
    with expect_format("LoCoMo", path):
        return [_locomo(fields(sample), evident) for sample in items(read_json(path))]


def read_realtalk(folder: str | Path, evident: bool = True) -> list[Conversation]:
    """Read the chats in REALTALK's folder `data`; each message is a record, with captions for pictures.

    Chats are named by their files; `evident` is as in `read_locomo`. Raises UsageError on another format.
    """
    folder = Path(folder)
    with expect_format("REALTALK", folder):
        paths = json_files(folder)
    chats = []
    for path in paths:
        with expect_format("REALTALK", path):
            chats.append(_realtalk(fields(read_json(path)), path.stem, evident))
    return chats


def _locomo(sample: dict[str, Any], evident: bool) -> Conversation:
    turns: list[Turn] = []
    place: dict[str, int] = {}
    talk = fields(sample["conversation"])
    for name in _sessions(talk):
        begin = datetime.strptime(text(talk[f"{name}_date_time"]), _LOCOMO_TIME).replace(tzinfo=UTC)
        for number, turn in enumerate(items(talk[name])):
            place[text(turn["dia_id"])] = len(turns)
            turns.append(Turn(_format_turn(turn, "text"), begin + number * _STEP))
    return Conversation(tuple(turns), _read_questions(sample, place, evident), text(sample["sample_id"]))


def _realtalk(chat: dict[str, Any], name: str, evident: bool) -> Conversation:
    turns: list[Turn] = []
    place: dict[str, int] = {}
    for turn in (turn for name in _sessions(chat) for turn in items(chat[name])):
        place[text(turn["dia_id"])] = len(turns)
        moment = datetime.strptime(text(turn["date_time"]), _REALTALK_TIME).replace(tzinfo=UTC)
        turns.append(Turn(_format_turn(turn, "clean_text"), moment))
    return Conversation(tuple(turns), _read_questions(chat, place, evident), name)


def _sessions(talk: dict[str, Any]) -> list[str]:
    numbers = [int(name[8:]) for name in talk if re.fullmatch(r"session_[0-9]{1,4}", name)]
    return [f"session_{number}" for number in sorted(numbers)]


def _format_turn(turn: Any, key: str) -> str:
    caption = f" [{turn['blip_caption']}]" if fields(turn).get("blip_caption") else ""
    return to_record_text(f"{text(turn['speaker'])}: {text(turn[key])}{caption}")


def _read_questions(sample: dict[str, Any], place: dict[str, int], evident: bool) -> tuple[Question, ...]:
    questions = []
    for item in items(sample["qa"]):
        ids = re.findall(r"D\d+:\d+", " ".join(map(text, items(item.get("evidence", [])))))
        answers = frozenset(place[i] for i in ids if i in place)
        correct_answers = references(item.get("answer"))
        if item["category"] != _ADVERSARIAL and (answers or (correct_answers and not evident)):
            ability = _ABILITIES[item["category"]]
            questions.append(Question(text(item["question"]), answers, ability, references=correct_answers))
    return tuple(questions)
