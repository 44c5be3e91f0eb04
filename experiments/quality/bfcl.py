"""BFCL's questions about memory (PyPI bfcl-eval, Patil et al. 2025, Apache-2.0)."""

from __future__ import annotations

import importlib.util
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scrubjay.experiments.answers.parsing import expect_format, make_conversation, read_json_lines
from scrubjay.experiments.lm.conversations import Conversation, Question, Turn

_BEGIN = datetime(2025, 1, 1, tzinfo=UTC)


def bfcl_folder() -> Path:
    """Return the data folder of bfcl-eval. Raises ModuleNotFoundError if the package is not installed."""
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("BFCL's questions are missing; run pip install --no-deps bfcl-eval")
    return Path(spec.origin).parent / "data"


def read_bfcl() -> list[Conversation]:
    """Read one conversation per scenario.

    The scenario's name is the name of the conversation and the `ability` of its questions. A question is
    omitted if no turn contains the source that the data set quotes for it. Raises ModuleNotFoundError if
    bfcl-eval is not installed.
    """
    folder = bfcl_folder()
    with expect_format("BFCL", folder):
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
            scenario_questions = [
                Question(
                    line["question"][0][0]["content"],
                    _find_quotes(answers[line["id"]]["source"], turns),
                    scenario,
                )
                for line in questions
                if line["scenario"] == scenario
            ]
            conversations.append(make_conversation(turns, scenario_questions, scenario))
    return conversations


def _find_quotes(source: str | list[str], turns: list[Turn]) -> frozenset[int]:
    """Return, for each quoted passage in `source`, the index of the first turn that contains it."""
    places = set()
    for quote in [source] if isinstance(source, str) else source:
        for part in re.split(r"\.\.\.|…", quote):
            letters = _letters(part)
            if letters:
                places.update([i for i, turn in enumerate(turns) if letters in _letters(turn.text)][:1])
    return frozenset(places)


def _letters(text: str) -> str:
    return re.sub(r"\W+", "", text).lower()
