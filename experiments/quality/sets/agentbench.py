"""MemoryAgentBench (Hu et al. 2025, arXiv 2507.05257): long texts, read piece by piece, questions on each.

Its files name no records that answer a question. A record does that holds an answer in its words, as recall
of passages is counted in open-domain question answering; questions whose answers stand in none, or in more
than one record in ten, are left out. Files that we make tell more (`sets/known.py`).
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
    read_json,
    read_json_lines,
    references,
    said,
    text,
)
from scrubjay.experiments.quality.sets.known import Known
from scrubjay.experiments.words.foreign import one_line
from scrubjay.memory.bank.document import split_document

_BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
_STEP = timedelta(seconds=30)
_LENGTH = 600  # characters of a passage
_FACT = re.compile(r"^\d+\. ", re.MULTILINE)
_WORD = re.compile(r"\w+")
_COMMON = 0.1


def read_agentbench(path: str | Path, evident: bool = True) -> list[Conversation]:
    """Return the texts of a file of MemoryAgentBench, as it is published (.parquet) or in JSON (lines).

    A record is a passage, or one of numbered facts. Named by source and number of the text. `evident` False
    keeps questions of which no record is known to answer them. Raises UsageError on what is not in this form,
    ModuleNotFoundError on a .parquet without pyarrow.
    """
    path = Path(path)
    with form_of("MemoryAgentBench", path):
        told = [_text(fields(row), number, evident) for number, row in enumerate(_rows(path))]
    return [one for one in told if one.questions]


def _rows(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except FileNotFoundError:
            raise
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"it is no whole .parquet ({one_line(error)})") from None
    return read_json_lines(path) if path.suffix == ".jsonl" else items(read_json(path))


def _text(row: dict[str, Any], number: int, evident: bool) -> Conversation:
    records, metadata = _records(text(row["context"])), fields(row.get("metadata") or {})
    source = text(metadata.get("source") or "text")
    wanted = [references(one) for one in items(row["answers"])]
    asked = [text(question) for question in items(row["questions"])]
    told = tuple(Turn(said(record), _BEGIN + place * _STEP) for place, record in enumerate(records))
    if metadata.get("facts") is not None:
        known = Known(metadata, told)
        told, questions = known.turns, known.questions(asked, wanted, source)
    else:
        letters = [_letters(record) for record in records]
        questions = [
            Question(question, _holding(answers, letters), source, references=answers)
            for question, answers in zip(asked, wanted, strict=True)
        ]
    kept = tuple(one for one in questions if one.answers or (one.references and not evident))
    return Conversation(told, kept, f"{source} {number}")


def _holding(answers: tuple[str, ...], letters: list[str]) -> frozenset[int]:
    """Return the records that hold an answer; none if they are too many."""
    wanted = [one for one in map(_letters, answers) if one.strip()]
    places = frozenset(i for i, told in enumerate(letters) if any(one in told for one in wanted))
    return places if len(places) <= max(1, _COMMON * len(letters)) else frozenset()


def _records(context: str) -> list[str]:
    facts = [line for line in context.split("\n") if _FACT.match(line)]
    if 2 * len(facts) > context.count("\n"):
        return facts
    return [passage for _, passages in split_document(context, _LENGTH) for passage in passages]


def _letters(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.lower()))} "
