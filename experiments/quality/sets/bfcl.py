"""BFCL's questions about memory (PyPI bfcl-eval, Patil et al. 2025, Apache-2.0)."""

from __future__ import annotations

import importlib.util
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scrubjay.experiments.language.conversations import Conversation, Question, Turn
from scrubjay.experiments.quality.sets.form import form_of, read_json_lines

_BEGIN = datetime(2025, 1, 1, tzinfo=UTC)


def read_bfcl() -> list[Conversation]:
    """Return a conversation for each scenario, of whose name it is; a question's ability is its scenario.

    Questions whose quoted source stands in no turn are left out. Raises ModuleNotFoundError without
    bfcl-eval.
    """
    found = importlib.util.find_spec("bfcl_eval")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("BFCL's questions are missing; pip install --no-deps bfcl-eval")
    folder = Path(found.origin).parent / "data"
    with form_of("BFCL", folder):
        questions = read_json_lines(folder / "BFCL_v4_memory.json")
        answers = {
            line["id"]: line for line in read_json_lines(folder / "possible_answer" / "BFCL_v4_memory.json")
        }
        conversations = []
        for path in sorted((folder / "memory_prereq_conversation").glob("memory_*.json")):
            scenario = path.stem.removeprefix("memory_")
            turns = [
                Turn(text[0]["content"], _BEGIN + timedelta(days=day, minutes=minute))
                for day, session in enumerate(read_json_lines(path))
                for minute, text in enumerate(session["question"])
            ]
            asked = []
            for line in questions:
                if line["scenario"] == scenario:
                    places = _quoted(answers[line["id"]]["source"], turns)
                    if places:
                        asked.append(Question(line["question"][0][0]["content"], places, scenario))
            conversations.append(Conversation(tuple(turns), tuple(asked), scenario))
    return conversations


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
