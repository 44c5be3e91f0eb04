"""LongMemEval (Wu et al. 2025, arXiv 2410.10813): 500 questions, each about a history of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scrubjay.experiments.language.conversations import Conversation, Question, Turn
from scrubjay.experiments.quality.sets.form import fields, form_of, items, read_json, references, said, text

_TIME = "%Y/%m/%d (%a) %H:%M"
_STEP = timedelta(seconds=30)


def read_longmemeval(path: str | Path, evident: bool = True) -> list[Conversation]:
    """Return the histories in a `longmemeval_*.json`, one record a message, named by their question's id.

    The messages marked `has_answer` answer; questions without such are left out, unless `evident` is False
    and they have an answer; those about nothing said always are. Sessions are put in the order of their
    dates. Raises UsageError on what is not in this form.
    """
    path = Path(path)
    with form_of("LongMemEval", path):
        told = [_instance(fields(one), evident) for one in items(read_json(path))]
    return [one for one in told if one.questions]


def _instance(one: dict[str, Any], evident: bool) -> Conversation:
    turns, answers = [], set()
    dates = map(_moment, items(one["haystack_dates"]))
    sessions = list(zip(dates, items(one["haystack_sessions"]), strict=True))
    for begin, session in sorted(sessions, key=lambda pair: pair[0]):
        for number, message in enumerate(items(session)):
            if fields(message).get("has_answer"):
                answers.add(len(turns))
            turns.append(Turn(said(message["content"]), begin + number * _STEP))
    name, ability = text(one["question_id"]), text(one["question_type"])
    wanted, moment = references(one.get("answer")), _moment(one["question_date"])
    question = Question(text(one["question"]), frozenset(answers), ability, moment, references=wanted)
    answered = (answers or (wanted and not evident)) and not name.endswith("_abs")
    return Conversation(tuple(turns), (question,) if answered else (), name)


def _moment(date: Any) -> datetime:
    return datetime.strptime(text(date), _TIME).replace(tzinfo=UTC)
