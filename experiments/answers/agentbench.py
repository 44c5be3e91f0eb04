"""MemoryAgentBench (Hu et al. 2025, arXiv 2507.05257): long texts in passages, with questions on each.

Its files do not list the records that answer a question. A record counts as needed if it contains an answer,
which is the usual definition in open-domain question answering. If the answers are in no record, or in more
than one record in ten, no record counts as needed.

The metadata of a row, as written by `facts.py`, may state its facts, and the facts that each question needs,
in three fields. `facts` lists subject, relation and object of each record. `hops` lists, for each question,
the subject and the relations to follow. `asked` maps each relation to a question for its object; {} in the
question stands for the subject. A later fact of the same subject and relation replaces an earlier one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scrubjay.experiments.answers.parsing import (
    expect_format,
    fields,
    items,
    make_conversation,
    read_json,
    read_json_lines,
    references,
    text,
    to_record_text,
)
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.lm.conversations import Conversation, Hop, Question, Turn
from scrubjay.memory.bank.document import split_document

_BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
_STEP = timedelta(seconds=30)
_LENGTH = 600  # characters of a passage
_FACT = re.compile(r"^\d+\. ", re.MULTILINE)
_WORD = re.compile(r"\w+")
_COMMON = 0.1


def read_agentbench(path: str | Path) -> list[Conversation]:
    """Read a file of MemoryAgentBench, as published (.parquet) or in JSON or JSON Lines.

    A record is a passage or a numbered fact. Conversations are named by source and number of the text.

    Raises UsageError on another format, and ModuleNotFoundError on a .parquet file without pyarrow.
    """
    path = Path(path)
    with expect_format("MemoryAgentBench", path):
        conversations = [_text(fields(row), number) for number, row in enumerate(_rows(path))]
    return [one for one in conversations if one.questions]


def _rows(path: Path) -> list[Any]:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except FileNotFoundError:
            raise
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"not a complete .parquet file ({one_line(error)})") from None
    return read_json_lines(path) if path.suffix == ".jsonl" else items(read_json(path))


def _text(row: dict[str, Any], number: int) -> Conversation:
    records, metadata = _records(text(row["context"])), fields(row.get("metadata") or {})
    source = text(metadata.get("source") or "text")
    reference_lists = [references(one) for one in items(row["answers"])]
    question_texts = [text(question) for question in items(row["questions"])]
    turns = tuple(
        Turn(to_record_text(record), _BEGIN + place * _STEP) for place, record in enumerate(records)
    )
    if metadata.get("facts") is not None:
        annotations = FactAnnotations(metadata, turns)
        turns, questions = annotations.turns, annotations.questions(question_texts, reference_lists, source)
    else:
        letters = [_letters(record) for record in records]
        questions = [
            Question(question, _matching_records(answers, letters), source, references=answers)
            for question, answers in zip(question_texts, reference_lists, strict=True)
        ]
    return make_conversation(turns, questions, f"{source} {number}")


def _matching_records(answers: tuple[str, ...], letters: list[str]) -> frozenset[int]:
    """Return indices of the records that contain an answer; empty if more than one record in ten does."""
    answer_texts = [one for one in map(_letters, answers) if one.strip()]
    places = frozenset(i for i, record in enumerate(letters) if any(one in record for one in answer_texts))
    return places if len(places) <= max(1, _COMMON * len(letters)) else frozenset()


def _records(context: str) -> list[str]:
    facts = [line for line in context.split("\n") if _FACT.match(line)]
    if 2 * len(facts) > context.count("\n"):
        return facts
    return [passage for _, passages in split_document(context, _LENGTH) for passage in passages]


def _letters(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.lower()))} "


class FactAnnotations:
    """Facts of a row; `turns` are the input turns in order, annotated with the facts that they state.

    Raises ValueError, TypeError or KeyError on malformed metadata.
    """

    def __init__(self, metadata: dict[str, Any], turns: Sequence[Turn]) -> None:
        self._question_templates = {
            relation: text(question) for relation, question in fields(metadata["asked"]).items()
        }
        self._hops = [[text(word) for word in items(words)] for words in items(metadata["hops"])]
        self._facts: list[tuple[str, str, str]] = []
        self._current: dict[tuple[str, str], int] = {}
        annotated_turns = []
        for fact, turn in zip(items(metadata["facts"]), turns, strict=True):
            subject, relation, object = map(text, items(fact))
            previous = self._current.get((subject, relation))
            self._current[subject, relation] = len(annotated_turns)
            self._facts.append((subject, relation, object))
            annotated_turns.append(replace(turn, fact=self._facts[-1], replaces=previous))
        self.turns = tuple(annotated_turns)

    def questions(
        self, question_texts: Sequence[str], references: Sequence[tuple[str, ...]], ability: str
    ) -> list[Question]:
        """Build the questions, each with the turns that its answer needs and the outdated turns."""
        return [
            self._question(question, answers, words, ability)
            for question, answers, words in zip(question_texts, references, self._hops, strict=True)
        ]

    def _question(
        self, question_text: str, answers: tuple[str, ...], words: list[str], ability: str
    ) -> Question:
        subject, *relations = words
        evidence, outdated_answers, hops, at = set(), set(), [], subject
        for relation in relations:
            place = self._current[at, relation]
            evidence.add(place)
            outdated_answers.update(self._before(place))
            hops.append(Hop("" if hops else subject, relation, self._question_templates[relation]))
            at = self._facts[place][2]
        return Question(
            question_text,
            frozenset(evidence),
            ability,
            outdated_answers=frozenset(outdated_answers),
            references=answers,
            hops=tuple(hops),
        )

    def _before(self, place: int) -> list[int]:
        """Return all earlier facts that the fact at `place` replaced, directly or indirectly."""
        places: list[int] = []
        while (before := self.turns[place].replaces) is not None:
            places.append(before)
            place = before
        return places
