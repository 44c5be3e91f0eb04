"""Long conversations with questions about them, in English or Chinese, made by seed, to be recalled.

A turn states a fact about somebody, a date, or, mostly, nothing of weight; some facts are replaced later.
Every question knows the turns that answer it, so recall needs no judge. The wording is in
`conversations.json`.
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
"""What a question asks for: a fact in its own words, or in others, its newest or an older version, what
happened when, an answer whose words are not the question's, two facts at once."""

_BEGIN = datetime(2025, 1, 6, 18, tzinfo=UTC)
_SESSION, _TURN_SECONDS = 20, 40
_SLOTS, _EVENTS, _EXCHANGES = 6, 3, 2  # of each person
_CHANGES = (0, 1, 1, 2)
_SAYING_NAMES = 0.3


@dataclass(frozen=True)
class Turn:
    """Something said."""

    text: str
    observed: datetime
    """When."""
    replaces: int | None = None
    """Place of the turn whose fact is no longer true now."""
    fact: tuple[str, str, str] | None = None
    """Subject, relation and object of what it states, where that is known."""


class Hop(NamedTuple):
    """A relation to follow, from the object of the hop before."""

    subject: str
    """Of the first hop; "" of the others."""
    relation: str
    asked: str
    """A question for its object, with {} for the subject."""


@dataclass(frozen=True)
class Question:
    """Something to recall."""

    text: str
    answers: frozenset[int]
    """Places of the turns that are needed to answer it."""
    ability: str
    """What it asks for."""
    at: datetime | None = None
    """The moment that it asks about, None for the end."""
    outdated: frozenset[int] = frozenset()
    """Places of turns that answered it once."""
    references: tuple[str, ...] = ()
    """Texts, each of which is a right answer; none where only the turns are known."""
    hops: tuple[Hop, ...] = ()
    """How facts lead to the answer, where that is known."""


@dataclass(frozen=True)
class Conversation:
    """Turns, oldest first, and questions about them."""

    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]
    name: str = ""
    """By which the set that it is of knows it."""


@dataclass(frozen=True)
class Reminder:
    """A fact that is told in one turn and asked for in another, and never mentioned else."""

    told: int
    """Place of the turn that tells it."""
    asked: int
    """Place of the turn that asks for it."""
    who: str
    """Whom it is about."""
    value: str
    """What the answer must name."""


def converse(language: str, seed: int, turns: int = 1000, people: int = 12) -> Conversation:
    """Return a conversation of so many turns about so many people; the same for the same arguments.

    Raises ValueError on an unknown language, more than 20 people, or too few turns to say everything.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language={language!r}; choose from {', '.join(LANGUAGES)}")
    wording = _wording()[language]
    if not 2 <= people <= len(wording["people"]):
        raise ValueError(f"people={people}: must be from 2 to {len(wording['people'])}")
    least = 3 * people * (_SLOTS + _EVENTS + _EXCHANGES)
    if turns < least:
        raise ValueError(f"turns={turns}: {people} people need at least {least}")
    return _Talk(wording, random.Random(f"{language} {seed}"), turns, people).conversation()


def remind(
    language: str, seed: int, turns: int, told: int, asked: Sequence[int]
) -> tuple[Conversation, tuple[Reminder, ...]]:
    """Return a conversation with facts about one person from place `told` on, each asked for much later.

    In other words than those it was told in; what is told first is asked for last. Others have facts of the
    same kinds, and small talk names everybody. Raises ValueError on places that are taken twice or out of
    range, on more of them than kinds of facts, and as `converse`.
    """
    wording, people = _wording()[language], 4
    places = [told + number for number in range(len(asked))]
    taken = {*places, *asked}
    if len(taken) < 2 * len(asked) or not all(0 <= place < turns for place in taken):
        raise ValueError(
            f"told={told}, asked={tuple(asked)}: {turns} turns have no such places, one for each"
        )
    if len(asked) > len(wording["slots"]):
        raise ValueError(f"asked={tuple(asked)}: there are facts of {len(wording['slots'])} kinds, no more")
    least = 3 * people * (_SLOTS + _EVENTS + _EXCHANGES) + len(taken)
    if turns < least:
        raise ValueError(f"turns={turns}: at least {least} are needed")
    talk = _Talk(wording, random.Random(f"remind {language} {seed}"), turns, people + 1)
    who = talk.people.pop()
    talk.free = [place for place in talk.free if place not in taken]
    reminders = []
    kinds = talk.draw.sample(sorted(wording["slots"]), len(asked))
    for kind, place, later in zip(kinds, places, sorted(asked, reverse=True), strict=True):
        slot = wording["slots"][kind]
        value = talk.draw.choice(slot["values"])
        talk.say(place, talk.draw.choice(slot["statements"]).format(who=who, value=value))
        talk.said[later] = talk.draw.choice(slot["paraphrased"]).format(who=who)
        reminders.append(Reminder(place, later, who, value))
    return talk.conversation(), tuple(reminders)


@cache
def _wording() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "conversations.json").read_text(encoding="utf-8"))


class _Talk:
    def __init__(self, wording: dict[str, Any], draw: random.Random, turns: int, people: int) -> None:
        self.wording, self.draw = wording, draw
        self.people = draw.sample(wording["people"], people)
        self.named = list(self.people)
        self.moments = self._moments(turns)
        self.said: dict[int, str] = {}
        self.replaces: dict[int, int] = {}
        self.questions: list[Question] = []
        self.free = list(range(turns))
        draw.shuffle(self.free)

    def conversation(self) -> Conversation:
        """Fill the turns that are free."""
        drinks = {}
        for who in self.people:
            for kind in self.draw.sample(sorted(self.wording["exchanges"], key=str), _EXCHANGES):
                self._exchange(who, kind)
            for kind in self.draw.sample(sorted(self.wording["events"], key=str), _EVENTS):
                self._event(who, kind)
            for name in self.draw.sample(sorted(self.wording["slots"]), _SLOTS):
                current = self._fact(who, self.wording["slots"][name])
                if name == "drink":
                    drinks[who] = current
        for one, other in zip(list(drinks)[::2], list(drinks)[1::2], strict=False):
            text = self.wording["joined"].format(who=one, other=other)
            self._ask(text, (drinks[one], drinks[other]), "joined")
        for place in self.free:
            self.said[place] = self._small_talk()
        turns = (Turn(self.said[i], self.moments[i], self.replaces.get(i)) for i in range(len(self.moments)))
        return Conversation(tuple(turns), tuple(self.questions))

    def _moments(self, turns: int) -> list[datetime]:
        moments, begin = [], _BEGIN
        for place in range(turns):
            if place and place % _SESSION == 0:
                begin += timedelta(days=self.draw.randint(1, 4))
            moments.append(begin + timedelta(seconds=_TURN_SECONDS * (place % _SESSION)))
        return moments

    def _fact(self, who: str, slot: dict[str, Any]) -> int:
        """State a fact and what replaces it, ask for it, and return the place of the newest version."""
        versions = 1 + (self.draw.choice(_CHANGES) if slot["changes"] else 0)
        places = self._places(versions)
        statements = self.draw.sample(slot["statements"], len(slot["statements"]))
        ability = self.draw.choice(("stated", "paraphrased"))
        if versions == 1 and ability == "stated":
            statements = slot["statements"]  # the first one shares its words with the question
        for place, statement, value in zip(
            places, statements, self.draw.sample(slot["values"], versions), strict=False
        ):
            self.say(place, statement.format(who=who, value=value))
        self.replaces.update(zip(places[1:], places, strict=False))
        if versions == 1:
            self._ask(self.draw.choice(slot[ability]).format(who=who), places, ability)
            return places[0]
        question = self.draw.choice(slot["paraphrased"]).format(who=who)
        self._ask(question, places[-1:], "updated", outdated=places[:-1])
        held, ended = self.moments[places[0]], self.moments[places[1]]
        if ended - held > timedelta(days=2):  # a date alone must tell the versions apart
            then = held + (ended - held) / 2
            dated = self.wording["past"].format(date=self._date(then), question=question)
            self._ask(dated, places[:1], "past", then)
        return places[-1]

    def _event(self, who: str, kind: dict[str, Any]) -> None:
        (place,) = self._places(1)
        date = self._date(self.moments[place] - timedelta(days=self.draw.randint(1, 9)))
        self.say(place, kind["told"].format(who=who, date=date))
        self._ask(self.draw.choice(kind["asked"]).format(who=who, date=date), (place,), "dated")

    def _exchange(self, who: str, kind: dict[str, Any]) -> None:
        """Ask in one turn and answer in the next, of the same session."""
        place = next(p for p in reversed(self.free) if p + 1 in self.free and (p + 1) % _SESSION)
        self.free.remove(place)
        self.free.remove(place + 1)
        self.said[place] = kind["ask"].format(who=who)
        self.said[place + 1] = self.draw.choice(kind["values"])
        self._ask(self.draw.choice(kind["questions"]).format(who=who), (place + 1,), "reply")

    def _small_talk(self) -> str:
        names = self.draw.random() < _SAYING_NAMES
        return self.draw.choice(self.wording["people_talk" if names else "small_talk"]).format(
            who=self.draw.choice(self.named),
            thing=self.draw.choice(self.wording["things"]),
            place=self.draw.choice(self.wording["places"]),
        )

    def _places(self, count: int) -> list[int]:
        return sorted(self.free.pop() for _ in range(count))

    def say(self, place: int, fact: str) -> None:
        """Tell a fact, in passing or at once."""
        opening, ending = (
            self.draw.choice(self.wording["openings"]),
            self.draw.choice(self.wording["endings"]),
        )
        self.said[place] = f"{opening}{fact}{ending}"

    def _ask(
        self,
        text: str,
        answers: Iterable[int],
        ability: str,
        at: datetime | None = None,
        outdated: Iterable[int] = (),
    ) -> None:
        self.questions.append(Question(text, frozenset(answers), ability, at, frozenset(outdated)))

    def _date(self, moment: datetime) -> str:
        return self.wording["date"].format(
            day=moment.day, month=calendar.month_name[moment.month], number=moment.month, year=moment.year
        )
