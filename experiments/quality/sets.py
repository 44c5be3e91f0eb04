"""What recall is measured on: records to remember and questions that know the records which answer them.

Made conversations, and three published sets that are read from where the user has them: BFCL's questions
about memory (PyPI bfcl-eval, Patil et al. 2025, Apache-2.0), LoCoMo (Maharana et al. 2024, arXiv 2402.17753)
and, in Chinese, MemDaily (Zhang et al. 2024, arXiv 2409.20163).
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scrubjay.experiments.language.conversations import Conversation, Question, Turn

_LOCOMO_TIME = "%I:%M %p on %d %B, %Y"
_LOCOMO_ADVERSARIAL = 5
_LOCOMO_ABILITIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
_MEMDAILY_POOL, _MEMDAILY_TUNED = 10, 600  # trajectories
_BEGIN = datetime(2025, 1, 1, tzinfo=UTC)


def read_bfcl() -> Iterator[Conversation]:
    """Yield one conversation per scenario of BFCL's memory questions; a question's ability is its scenario.

    Questions whose quoted source stands in no turn are left out. Raises ModuleNotFoundError without
    bfcl-eval.
    """
    found = importlib.util.find_spec("bfcl_eval")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("BFCL's questions are missing; pip install --no-deps bfcl-eval")
    folder = Path(found.origin).parent / "data"
    questions = _lines(folder / "BFCL_v4_memory.json")
    answers = {line["id"]: line for line in _lines(folder / "possible_answer" / "BFCL_v4_memory.json")}
    for path in sorted((folder / "memory_prereq_conversation").glob("memory_*.json")):
        scenario = path.stem.removeprefix("memory_")
        turns = [
            Turn(text[0]["content"], _BEGIN + timedelta(days=day, minutes=minute))
            for day, session in enumerate(_lines(path))
            for minute, text in enumerate(session["question"])
        ]
        asked = []
        for line in questions:
            if line["scenario"] == scenario:
                places = _quoted(answers[line["id"]]["source"], turns)
                if places:
                    asked.append(Question(line["question"][0][0]["content"], places, scenario))
        yield Conversation(tuple(turns), tuple(asked))


def read_locomo(path: str | Path) -> Iterator[Conversation]:
    """Yield the conversations of a `locomo10.json`, one record a turn, pictures by their captions.

    Questions of category 5, which have no answer, and those without evidence are left out.
    """
    for sample in json.loads(Path(path).read_text(encoding="utf-8")):
        turns, place = [], {}
        for number in range(1, 100):
            session = sample["conversation"].get(f"session_{number}")
            if session is None:
                continue
            told = sample["conversation"][f"session_{number}_date_time"]
            begin = datetime.strptime(told, _LOCOMO_TIME).replace(tzinfo=UTC)
            for turn in session:
                place[turn["dia_id"]] = len(turns)
                caption = f" [{turn['blip_caption']}]" if turn.get("blip_caption") else ""
                moment = begin + timedelta(seconds=30 * (len(turns) - place[session[0]["dia_id"]]))
                turns.append(Turn(f"{turn['speaker']}: {turn['text']}{caption}", moment))
        asked = []
        for item in sample["qa"]:
            ids = re.findall(r"D\d+:\d+", " ".join(item.get("evidence", [])))
            gold = frozenset(place[i] for i in ids if i in place)
            if item["category"] != _LOCOMO_ADVERSARIAL and gold:
                asked.append(Question(item["question"], gold, _LOCOMO_ABILITIES[item["category"]]))
        yield Conversation(tuple(turns), tuple(asked))


def read_memdaily(folder: str | Path) -> Iterator[Conversation]:
    """Yield 60 conversations of ten trajectories each, drawn from MemSim's folder `messages_and_QAs`.

    A question's ability is the kind of its trajectory. The first 600 drawn are left out: recall was tuned on
    them.
    """
    trajectories = [
        (path.stem.split("_")[1], trajectory)
        for path in sorted(Path(folder).glob("*.json"))
        for trajectory in json.loads(path.read_text(encoding="utf-8"))
    ]
    random.Random(0).shuffle(trajectories)
    drawn = trajectories[_MEMDAILY_TUNED : 2 * _MEMDAILY_TUNED]
    for first in range(0, len(drawn), _MEMDAILY_POOL):
        turns: list[Turn] = []
        asked = []
        for kind, trajectory in drawn[first : first + _MEMDAILY_POOL]:
            begin, messages = len(turns), trajectory["message_list"]
            for message in messages:
                year, month, day, hour, minute = map(int, re.findall(r"\d+", message["time"])[:5])
                turns.append(Turn(message["message"], datetime(year, month, day, hour, minute, tzinfo=UTC)))
            for item in trajectory["question_list"]:
                places = frozenset(begin + step for step in item["target_step_id"] if step < len(messages))
                if places:
                    asked.append(Question(item["question"], places, kind))
        yield Conversation(tuple(turns), tuple(asked))


def in_one(conversations: Iterable[Conversation]) -> Conversation:
    """Return conversations one after the other as one, with the questions of all."""
    turns: list[Turn] = []
    asked: list[Question] = []
    for conversation in conversations:
        begin = len(turns)
        for turn in conversation.turns:
            turns.append(replace(turn, replaces=None if turn.replaces is None else begin + turn.replaces))
        for question in conversation.questions:
            answers, outdated = (
                frozenset(begin + place for place in places)
                for places in (question.answers, question.outdated)
            )
            asked.append(replace(question, answers=answers, outdated=outdated))
    return Conversation(tuple(turns), tuple(asked))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _quoted(source: str | list[str], turns: list[Turn]) -> frozenset[int]:
    """Return the turns that hold a passage of the source; where several do, the first."""
    places = set()
    for quote in [source] if isinstance(source, str) else source:
        for part in re.split(r"\.\.\.|…", quote):
            wanted = _letters(part)
            if wanted:
                places.update([i for i, turn in enumerate(turns) if wanted in _letters(turn.text)][:1])
    return frozenset(places)


def _letters(text: str) -> str:
    return re.sub(r"\W+", "", text).lower()
