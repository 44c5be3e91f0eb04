"""MemDaily, in Chinese (Zhang et al. 2024, arXiv 2409.20163): messages about daily life to an assistant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scrubjay.experiments.lm.conversations import Conversation, Question, Turn
from scrubjay.experiments.quality.datasets.parsing import (
    check_integer,
    expect_format,
    fields,
    items,
    json_files,
    read_json,
    references,
    text,
    to_record_text,
)


def read_memdaily(folder: str | Path, pools: Iterable[Iterable[str]] | None = None) -> list[Conversation]:
    """Read MemSim's folder `messages_and_QAs`; each pool of trajectories becomes one conversation.

    A pool is a list of trajectory names. A trajectory's name consists of a file name and a number, e.g.
    "01_simple_events/12". Without pools, each trajectory is a conversation. A question's ability is the file
    name, e.g. "01_simple_events". Raises UsageError on another format or an unknown trajectory.
    """
    folder = Path(folder)
    with expect_format("MemDaily", folder):
        paths = json_files(folder)
    trajectories: dict[str, Any] = {}
    for path in paths:
        with expect_format("MemDaily", path):
            entries = items(read_json(path))
            trajectories.update((f"{path.stem}/{number}", one) for number, one in enumerate(entries))
    with expect_format("MemDaily", folder):
        name_lists = [[name] for name in trajectories] if pools is None else map(list, pools)
        return [_pool(names, trajectories) for names in name_lists]


def _pool(names: list[str], trajectories: dict[str, Any]) -> Conversation:
    turns: list[Turn] = []
    questions = []
    for name in names:
        trajectory, begin = fields(trajectories[name]), len(turns)
        messages = items(trajectory["message_list"])
        for message in messages:
            year, month, day, hour, minute = map(int, re.findall(r"\d+", text(message["time"]))[:5])
            turns.append(
                Turn(to_record_text(message["message"]), datetime(year, month, day, hour, minute, tzinfo=UTC))
            )
        for item in items(trajectory["question_list"]):
            steps = map(check_integer, items(item["target_step_id"]))
            places = frozenset(begin + step for step in steps if 0 <= step < len(messages))
            if places:
                correct_answers = references(item.get("answer"))
                ability = name.partition("/")[0]
                questions.append(
                    Question(text(item["question"]), places, ability, references=correct_answers)
                )
    return Conversation(tuple(turns), tuple(questions), names[0])
