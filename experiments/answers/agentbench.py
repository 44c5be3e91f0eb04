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
    turns = [Turn(to_record_text(record), _BEGIN + place * _STEP) for place, record in enumerate(records)]
    if metadata.get("facts") is not None:
        turns, questions = _follow_facts(metadata, turns, question_texts, reference_lists, source)
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


def _follow_facts(
    metadata: dict[str, Any],
    turns: Sequence[Turn],
    question_texts: Sequence[str],
    reference_lists: Sequence[tuple[str, ...]],
    ability: str,
) -> tuple[list[Turn], list[Question]]:
    """Annotate the turns with their facts, and build the questions from the facts that each of them needs.

    A question needs the current fact of each hop; the facts that it replaced are outdated. Raises ValueError,
    TypeError or KeyError on malformed metadata.
    """
    templates = {relation: text(question) for relation, question in fields(metadata["asked"]).items()}
    facts: list[tuple[str, str, str]] = []
    current: dict[tuple[str, str], int] = {}
    annotated_turns: list[Turn] = []
    for fact, turn in zip(items(metadata["facts"]), turns, strict=True):
        subject, relation, object = map(text, items(fact))
        facts.append((subject, relation, object))
        previous = current.get((subject, relation))
        current[subject, relation] = len(annotated_turns)
        annotated_turns.append(replace(turn, fact=facts[-1], replaces=previous))
    questions = []
    hop_lists = [[text(word) for word in items(words)] for words in items(metadata["hops"])]
    for question_text, answers, words in zip(question_texts, reference_lists, hop_lists, strict=True):
        at, *relations = words
        evidence, outdated_answers, hops = set(), set(), []
        for relation in relations:
            place: int | None = current[at, relation]
            evidence.add(place)
            hops.append(Hop("" if hops else at, relation, templates[relation]))
            at = facts[place][2]
            while (place := annotated_turns[place].replaces) is not None:
                outdated_answers.add(place)
        questions.append(
            Question(
                question_text,
                frozenset(evidence),
                ability,
                outdated_answers=frozenset(outdated_answers),
                references=answers,
                hops=tuple(hops),
            )
        )
    return annotated_turns, questions
