"""What a row of MemoryAgentBench may tell beside its text: the facts it states, and those questions need.

In its metadata, as `facts.py` writes it: `facts` has subject, relation and object of every record; `hops` has
for every question its subject and the relations to follow; `asked` has for every relation a question for its
object, with {} for the subject. A later fact of the same subject and relation replaces an earlier one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from scrubjay.experiments.language.conversations import Hop, Question, Turn
from scrubjay.experiments.quality.sets.form import fields, items, text


class Known:
    """The facts of a row; `turns` are the given ones, which state them, in order.

    Raises ValueError, TypeError or KeyError on metadata of another form.
    """

    def __init__(self, metadata: dict[str, Any], turns: Sequence[Turn]) -> None:
        self._asked = {relation: text(asked) for relation, asked in fields(metadata["asked"]).items()}
        self._hops = [[text(word) for word in items(words)] for words in items(metadata["hops"])]
        self._facts: list[tuple[str, str, str]] = []
        self._current: dict[tuple[str, str], int] = {}
        told = []
        for fact, turn in zip(items(metadata["facts"]), turns, strict=True):
            subject, relation, object = map(text, items(fact))
            replaced = self._current.get((subject, relation))
            self._current[subject, relation] = len(told)
            self._facts.append((subject, relation, object))
            told.append(replace(turn, fact=self._facts[-1], replaces=replaced))
        self.turns = tuple(told)

    def questions(
        self, asked: Sequence[str], references: Sequence[tuple[str, ...]], ability: str
    ) -> list[Question]:
        """Return the questions with the facts that they need, and those that these replaced."""
        return [
            self._question(question, answers, words, ability)
            for question, answers, words in zip(asked, references, self._hops, strict=True)
        ]

    def _question(self, asked: str, answers: tuple[str, ...], words: list[str], ability: str) -> Question:
        subject, *relations = words
        needed, outdated, hops, at = set(), set(), [], subject
        for relation in relations:
            place = self._current[at, relation]
            needed.add(place)
            outdated.update(self._before(place))
            hops.append(Hop("" if hops else subject, relation, self._asked[relation]))
            at = self._facts[place][2]
        return Question(
            asked,
            frozenset(needed),
            ability,
            outdated=frozenset(outdated),
            references=answers,
            hops=tuple(hops),
        )

    def _before(self, place: int) -> list[int]:
        """Return the facts that one has replaced, those that were replaced before included."""
        found: list[int] = []
        while (before := self.turns[place].replaces) is not None:
            found.append(before)
            place = before
        return found
