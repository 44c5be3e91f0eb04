"""MemDaily, in Chinese (Zhang et al. 2024, arXiv 2409.20163): what people told an assistant of their days."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
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
    whole,
)


def read_memdaily(folder: str | Path, pools: Iterable[Iterable[str]] | None = None) -> list[Conversation]:
    """Return a conversation for each pool of trajectories of MemSim's folder `messages_and_QAs`.

    Without pools each trajectory is one.

    A trajectory's name is that of its file and its number in it: "01_simple_events/12". Its file is the
    ability of its questions. Raises UsageError on what is not in this form, and on trajectories that there
    are none of.
    """
    folder = Path(folder)
    with form_of("MemDaily", folder):
        paths = json_files(folder)
    trajectories: dict[str, Any] = {}
    for path in paths:
        with form_of("MemDaily", path):
            told = items(read_json(path))
            trajectories.update((f"{path.stem}/{number}", one) for number, one in enumerate(told))
    with form_of("MemDaily", folder):
        drawn = [[name] for name in trajectories] if pools is None else map(list, pools)
        return [_pool(names, trajectories) for names in drawn]


def _pool(names: list[str], trajectories: dict[str, Any]) -> Conversation:
    turns: list[Turn] = []
    asked = []
    for name in names:
        trajectory, begin = fields(trajectories[name]), len(turns)
        messages = items(trajectory["message_list"])
        for message in messages:
            year, month, day, hour, minute = map(int, re.findall(r"\d+", text(message["time"]))[:5])
            turns.append(Turn(said(message["message"]), datetime(year, month, day, hour, minute, tzinfo=UTC)))
        for item in items(trajectory["question_list"]):
            steps = map(whole, items(item["target_step_id"]))
            places = frozenset(begin + step for step in steps if 0 <= step < len(messages))
            if places:
                wanted = references(item.get("answer"))
                ability = name.partition("/")[0]
                asked.append(Question(text(item["question"]), places, ability, references=wanted))
    return Conversation(tuple(turns), tuple(asked), names[0])
