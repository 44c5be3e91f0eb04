"""LongMemEval (Wu et al. 2025, arXiv 2410.10813): 500 questions, each about its own history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scrubjay.experiments.lm.conversations import Conversation, Question, Turn
from scrubjay.experiments.quality.datasets.parsing import (
    expect_format,
    fields,
    items,
    read_json,
    references,
    text,
    to_record_text,
)

_TIME = "%Y/%m/%d (%a) %H:%M"
_STEP = timedelta(seconds=30)


def read_longmemeval(path: str | Path, evident: bool = True) -> list[Conversation]:
    """Read the histories in a `longmemeval_*.json`; each message is a record.

    A history has the id of its question as its name.

    Messages marked `has_answer` are the evidence. Questions without evidence are omitted, unless `evident` is
    False and they have an answer. Abstention questions are always omitted. Sessions are sorted by date.
    Raises UsageError on another format.
    """
    path = Path(path)
    with expect_format("LongMemEval", path):
        conversations = [_instance(fields(one), evident) for one in items(read_json(path))]
    return [one for one in conversations if one.questions]


def _instance(one: dict[str, Any], evident: bool) -> Conversation:
    turns, answers = [], set()
    dates = map(_moment, items(one["haystack_dates"]))
    sessions = list(zip(dates, items(one["haystack_sessions"]), strict=True))
    for begin, session in sorted(sessions, key=lambda pair: pair[0]):
        for number, message in enumerate(items(session)):
            if fields(message).get("has_answer"):
                answers.add(len(turns))
            turns.append(Turn(to_record_text(message["content"]), begin + number * _STEP))
    name, ability = text(one["question_id"]), text(one["question_type"])
    correct_answers, moment = references(one.get("answer")), _moment(one["question_date"])
    question = Question(
        text(one["question"]), frozenset(answers), ability, moment, references=correct_answers
    )
    has_answer = (answers or (correct_answers and not evident)) and not name.endswith("_abs")
    return Conversation(tuple(turns), (question,) if has_answer else (), name)


def _moment(date: Any) -> datetime:
    return datetime.strptime(text(date), _TIME).replace(tzinfo=UTC)
