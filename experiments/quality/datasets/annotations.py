"""Optional annotations of a MemoryAgentBench row: the stated facts, and the facts that each question needs.

The row's metadata, as written by `facts.py`, has three fields. `facts` lists subject, relation and object of
each record. `hops` lists, for each question, the subject and the relations to follow. `asked` maps each
relation to a question for its object; {} in the question stands for the subject. A later fact of the same
subject and relation replaces an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from scrubjay.experiments.lm.conversations import Hop, Question, Turn
from scrubjay.experiments.quality.datasets.parsing import fields, items, text


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
