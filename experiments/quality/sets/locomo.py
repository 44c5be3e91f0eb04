"""LoCoMo (Maharana et al. 2024, arXiv 2402.17753) and REALTALK (Lee et al. 2025, arXiv 2502.13270).

What two people wrote to each other over weeks: made by language models in LoCoMo, by people in REALTALK.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scrubjay.experiments.language.conversations import Conversation, Question, Turn
from scrubjay.experiments.quality.sets.form import (
    fields,
    form_of,
    items,
    json_files,
    read_json,
    references,
    said,
    text,
)

_LOCOMO_TIME = "%I:%M %p on %d %B, %Y"
_REALTALK_TIME = "%d.%m.%Y, %H:%M:%S"
_STEP = timedelta(seconds=30)
_ADVERSARIAL = 5
_ABILITIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}


def read_locomo(path: str | Path, evident: bool = True) -> list[Conversation]:
    """Return the conversations of a `locomo10.json`, one record a turn, pictures by their captions.

    Questions of category 5, which have no answer, are left out; so are those without evidence, unless
    `evident` is False and they have an answer. Raises UsageError on what is not in this form.
    """
    path = Path(path)
    with form_of("LoCoMo", path):
        return [_locomo(fields(sample), evident) for sample in items(read_json(path))]


def read_realtalk(folder: str | Path, evident: bool = True) -> list[Conversation]:
    """Return the chats in REALTALK's folder `data`, one record a message, pictures by their captions.

    Named by their files; `evident` as of `read_locomo`. Raises UsageError on what is not in this form.
    """
    folder = Path(folder)
    with form_of("REALTALK", folder):
        paths = json_files(folder)
    chats = []
    for path in paths:
        with form_of("REALTALK", path):
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
            turns.append(Turn(_said(turn, "text"), begin + number * _STEP))
    return Conversation(tuple(turns), _asked(sample, place, evident), text(sample["sample_id"]))


def _realtalk(chat: dict[str, Any], name: str, evident: bool) -> Conversation:
    turns: list[Turn] = []
    place: dict[str, int] = {}
    for turn in (turn for name in _sessions(chat) for turn in items(chat[name])):
        place[text(turn["dia_id"])] = len(turns)
        moment = datetime.strptime(text(turn["date_time"]), _REALTALK_TIME).replace(tzinfo=UTC)
        turns.append(Turn(_said(turn, "clean_text"), moment))
    return Conversation(tuple(turns), _asked(chat, place, evident), name)


def _sessions(talk: dict[str, Any]) -> list[str]:
    numbered = [int(name[8:]) for name in talk if re.fullmatch(r"session_[0-9]{1,4}", name)]
    return [f"session_{number}" for number in sorted(numbered)]


def _said(turn: Any, key: str) -> str:
    caption = f" [{turn['blip_caption']}]" if fields(turn).get("blip_caption") else ""
    return said(f"{text(turn['speaker'])}: {text(turn[key])}{caption}")


def _asked(told: dict[str, Any], place: dict[str, int], evident: bool) -> tuple[Question, ...]:
    asked = []
    for item in items(told["qa"]):
        ids = re.findall(r"D\d+:\d+", " ".join(map(text, items(item.get("evidence", [])))))
        answers = frozenset(place[i] for i in ids if i in place)
        wanted = references(item.get("answer"))
        if item["category"] != _ADVERSARIAL and (answers or (wanted and not evident)):
            ability = _ABILITIES[item["category"]]
            asked.append(Question(text(item["question"]), answers, ability, references=wanted))
    return tuple(asked)
