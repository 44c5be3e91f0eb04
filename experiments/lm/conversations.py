"""Synthetic long conversations with recall questions, in English or Chinese, generated from a seed.

Some turns state a fact about a person, some the date of an event; most turns are small talk. Later turns
replace some facts. Every question lists the turns that contain its answer, so no language model must judge
the recall. The wording is in `conversations.json`.
"""

from __future__ import annotations

import calendar
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

LANGUAGES = ("en", "zh")
ABILITIES = ("stated", "paraphrased", "updated", "past", "dated", "reply", "joined")
"""Question types: a fact in its own words, a paraphrase, the newest version, an older version, the event at a
date, an answer that shares no words with the question, and two facts at once."""

_BEGIN = datetime(2025, 1, 6, 18, tzinfo=UTC)
_SESSION, _TURN_SECONDS = 20, 40
_SLOTS, _EVENTS, _EXCHANGES = 6, 3, 2  # per person
_CHANGES = (0, 1, 1, 2)
_NAME_PROBABILITY = 0.3


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    text: str
    observed: datetime
    """Time of the turn."""
    replaces: int | None = None
    """Index of the turn whose fact this turn replaces."""
    fact: tuple[str, str, str] | None = None
    """Subject, relation and object of the stated fact, if known."""


class Hop(NamedTuple):
    """One relation in the chain that answers a question; its object is the subject of the next relation."""

    subject: str
    """Subject of the first relation in the chain; "" for later relations."""
    relation: str
    question: str
    """Question that asks for the object; {} is replaced by the subject."""


@dataclass(frozen=True)
class Question:
    """A recall question."""

    text: str
    answers: frozenset[int]
    """Indices of the turns that are needed for the answer."""
    ability: str
    """Question type, one of `ABILITIES` or a type of the data set."""
    at: datetime | None = None
    """Time at which the answer must be valid; None for the end of the conversation."""
    outdated_answers: frozenset[int] = frozenset()
    """Indices of turns with a former answer: a fact that a later turn replaced."""
    references: tuple[str, ...] = ()
    """Correct answers; one of them is enough. Empty if the data set names only the turns with the answer."""
    hops: tuple[Hop, ...] = ()
    """Chain of relations that leads to the answer, if known."""


@dataclass(frozen=True)
class Conversation:
    """Turns, oldest first, with questions about them."""

    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]
    name: str = ""
    """Name of the conversation in its data set."""


@dataclass(frozen=True)
class Reminder:
    """A fact that is stated in one turn and queried in another, and not mentioned elsewhere."""

    fact_turn: int
    """Index of the turn that states the fact."""
    question_turn: int
    """Index of the turn that asks for the fact."""
    who: str
    """Person that the fact is about."""
    value: str
    """Value that the answer must contain."""


def generate_conversation(language: str, seed: int, turns: int = 1000, people: int = 12) -> Conversation:
    """Generate a conversation of `turns` turns about `people` people; equal arguments give equal results.

    Raises ValueError on an unknown language, fewer than 2 or more than 20 people, or too few turns.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language={language!r}; choose from {', '.join(LANGUAGES)}")
    wording = _wording()[language]
    if not 2 <= people <= len(wording["people"]):
        raise ValueError(f"people={people}: must be from 2 to {len(wording['people'])}")
    least = 3 * people * (_SLOTS + _EVENTS + _EXCHANGES)
    if turns < least:
        raise ValueError(f"turns={turns}: must be at least {least} for people={people}")
    return _ConversationGenerator(wording, random.Random(f"{language} {seed}"), turns, people).conversation()


def generate_reminders(
    language: str, seed: int, turns: int, fact_turn: int, question_turns: Sequence[int]
) -> tuple[Conversation, tuple[Reminder, ...]]:
    """Generate a conversation with facts about one person, and return it with the facts.

    The first `len(question_turns)` turns from `fact_turn` onward state one fact each. Each turn in
    `question_turns` asks for one of these facts, in reverse order: the last question asks for the first fact.
    Questions and facts differ in wording. Other people have facts of the same types, and small talk mentions
    everybody.

    Raises ValueError if fact and question turns overlap or are out of range, if there are more questions than
    types of facts, or if `turns` is too small.
    """
    wording, people = _wording()[language], 4
    places = [fact_turn + number for number in range(len(question_turns))]
    reserved_turns = {*places, *question_turns}
    if len(reserved_turns) < 2 * len(question_turns) or not all(
        0 <= place < turns for place in reserved_turns
    ):
        raise ValueError(
            f"fact_turn={fact_turn}, question_turns={tuple(question_turns)}: fact and question turns must be "
            f"distinct and from 0 to {turns - 1}"
        )
    if len(question_turns) > len(wording["slots"]):
        raise ValueError(
            f"question_turns={tuple(question_turns)}: every question asks for a different type of fact, and "
            f"only {len(wording['slots'])} types exist; pass at most {len(wording['slots'])} turns"
        )
    least = 3 * people * (_SLOTS + _EVENTS + _EXCHANGES) + len(reserved_turns)
    if turns < least:
        raise ValueError(f"turns={turns}: must be at least {least} for {len(question_turns)} questions")
    talk = _ConversationGenerator(wording, random.Random(f"remind {language} {seed}"), turns, people + 1)
    who = talk.people.pop()
    talk.free = [place for place in talk.free if place not in reserved_turns]
    reminders = []
    kinds = talk.draw.sample(sorted(wording["slots"]), len(question_turns))
    for kind, place, later in zip(kinds, places, sorted(question_turns, reverse=True), strict=True):
        slot = wording["slots"][kind]
        value = talk.draw.choice(slot["values"])
        talk.say(place, talk.draw.choice(slot["statements"]).format(who=who, value=value))
        talk.texts[later] = talk.draw.choice(slot["paraphrased"]).format(who=who)
        reminders.append(Reminder(place, later, who, value))
    return talk.conversation(), tuple(reminders)


@cache
def _wording() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "conversations.json").read_text(encoding="utf-8"))


class _ConversationGenerator:
    def __init__(self, wording: dict[str, Any], draw: random.Random, turns: int, people: int) -> None:
        self.wording, self.draw = wording, draw
        self.people = draw.sample(wording["people"], people)
        self.all_people = list(self.people)
        self.moments: list[datetime] = []
        begin = _BEGIN
        for place in range(turns):
            if place and place % _SESSION == 0:
                begin += timedelta(days=draw.randint(1, 4))
            self.moments.append(begin + timedelta(seconds=_TURN_SECONDS * (place % _SESSION)))
        self.texts: dict[int, str] = {}
        self.replaces: dict[int, int] = {}
        self.questions: list[Question] = []
        self.free = list(range(turns))
        draw.shuffle(self.free)

    def conversation(self) -> Conversation:
        """Return the conversation and its questions.

        Facts, events and exchanges are written into turns that are still empty, and small talk into the rest.
        """
        drinks = {}
        for who in self.people:
            for kind in self.draw.sample(sorted(self.wording["exchanges"], key=str), _EXCHANGES):
                self._exchange(who, kind)
            for kind in self.draw.sample(sorted(self.wording["events"], key=str), _EVENTS):
                (place,) = self._places(1)
                date = self._date(self.moments[place] - timedelta(days=self.draw.randint(1, 9)))
                self.say(place, kind["told"].format(who=who, date=date))
                self._ask(self.draw.choice(kind["asked"]).format(who=who, date=date), (place,), "dated")
            for name in self.draw.sample(sorted(self.wording["slots"]), _SLOTS):
                current = self._fact(who, self.wording["slots"][name])
                if name == "drink":
                    drinks[who] = current
        for one, other in zip(list(drinks)[::2], list(drinks)[1::2], strict=False):
            text = self.wording["joined"].format(who=one, other=other)
            self._ask(text, (drinks[one], drinks[other]), "joined")
        for place in self.free:  # small talk
            names = self.draw.random() < _NAME_PROBABILITY
            self.texts[place] = self.draw.choice(
                self.wording["people_talk" if names else "small_talk"]
            ).format(
                who=self.draw.choice(self.all_people),
                thing=self.draw.choice(self.wording["things"]),
                place=self.draw.choice(self.wording["places"]),
            )
        turns = (Turn(self.texts[i], self.moments[i], self.replaces.get(i)) for i in range(len(self.moments)))
        return Conversation(tuple(turns), tuple(self.questions))

    def _fact(self, who: str, slot: dict[str, Any]) -> int:
        """Write a fact and its later versions into turns, and add questions.

        Return the index of the turn with the newest version.
        """
        versions = 1 + (self.draw.choice(_CHANGES) if slot["changes"] else 0)
        places = self._places(versions)
        statements = self.draw.sample(slot["statements"], len(slot["statements"]))
        ability = self.draw.choice(("stated", "paraphrased"))
        if versions == 1 and ability == "stated":
            statements = slot["statements"]  # the first statement shares its words with the question
        for place, statement, value in zip(
            places, statements, self.draw.sample(slot["values"], versions), strict=False
        ):
            self.say(place, statement.format(who=who, value=value))
        self.replaces.update(zip(places[1:], places, strict=False))
        if versions == 1:
            self._ask(self.draw.choice(slot[ability]).format(who=who), places, ability)
            return places[0]
        question = self.draw.choice(slot["paraphrased"]).format(who=who)
        self._ask(question, places[-1:], "updated", outdated_answers=places[:-1])
        start, end = self.moments[places[0]], self.moments[places[1]]
        if end - start > timedelta(days=2):  # the date alone must distinguish the versions
            then = start + (end - start) / 2
            dated_question = self.wording["past"].format(date=self._date(then), question=question)
            self._ask(dated_question, places[:1], "past", then)
        return places[-1]

    def _exchange(self, who: str, kind: dict[str, Any]) -> None:
        """Write a question into one turn and its answer into the next turn of the same session."""
        place = next(p for p in reversed(self.free) if p + 1 in self.free and (p + 1) % _SESSION)
        self.free.remove(place)
        self.free.remove(place + 1)
        self.texts[place] = kind["ask"].format(who=who)
        self.texts[place + 1] = self.draw.choice(kind["values"])
        self._ask(self.draw.choice(kind["questions"]).format(who=who), (place + 1,), "reply")

    def _places(self, count: int) -> list[int]:
        return sorted(self.free.pop() for _ in range(count))

    def say(self, place: int, fact: str) -> None:
        """Write a fact into turn `place`, with a random opening and ending."""
        opening, ending = (self.draw.choice(self.wording[name]) for name in ("openings", "endings"))
        self.texts[place] = f"{opening}{fact}{ending}"

    def _ask(
        self,
        text: str,
        answers: Iterable[int],
        ability: str,
        at: datetime | None = None,
        outdated_answers: Iterable[int] = (),
    ) -> None:
        self.questions.append(Question(text, frozenset(answers), ability, at, frozenset(outdated_answers)))

    def _date(self, moment: datetime) -> str:
        return self.wording["date"].format(
            day=moment.day, month=calendar.month_name[moment.month], number=moment.month, year=moment.year
        )
