"""FactConsolidation, made offline: numbered facts and later their contradictions, of people who never were.

As in MemoryAgentBench (Hu et al. 2025, arXiv 2507.05257), whose form the rows have: of two facts that
contradict each other the later one holds. A question needs one fact ("sh") or two or three ("mh"), at least
one of which has replaced another. Names and wording are drawn from `facts.json`, so that no language model
knows an answer by heart.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from scrubjay.experiments.words.failures import UsageError

_CHANGES = (0, 1, 1, 2)
_OTHERS = {"person": 1, "company": 3, "city": 3, "country": 9}
"""One of each kind for so many people."""
_FEWEST = 60
MOST = 100_000
"""Facts of a row."""

Slot = tuple[str, str]
"""Subject and relation."""


class Fact(NamedTuple):
    """A fact; it replaces what was told before of its subject and relation."""

    subject: str
    relation: str
    object: str


def make_rows(seed: int, facts: int, questions: int) -> list[dict[str, Any]]:
    """Return rows of about so many facts, with questions of one fact and of several; by seed always the same.

    Raises UsageError on fewer than 60 or more than 100,000 facts, or no questions.
    """
    if not _FEWEST <= facts <= MOST:
        raise UsageError(f"facts={facts}: must be from {_FEWEST} to {MOST}")
    if not 1 <= questions <= facts:
        raise UsageError(f"questions={questions}: must be from 1 to the {facts} facts")
    world = _World(random.Random(f"facts {seed}"), facts)
    return [world.row(seed, "sh", (1,), questions), world.row(seed, "mh", (2, 3), questions)]


@functools.cache
def _wording() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


class _World:
    def __init__(self, draw: random.Random, facts: int) -> None:
        self.draw, self.relations = draw, _wording()["relations"]
        self.named = {kind: [] for kind in _OTHERS} | _wording()["words"]
        people = max(2, round(facts / 2 / sum(1 / _OTHERS[one["of"]] for one in self.relations.values())))
        taken: set[str] = set()
        for kind, others in _OTHERS.items():
            for _ in range(max(2, people // others)):
                self.named[kind].append(self._name(kind, taken))
        versions = {slot: self._versions(slot) for slot in self._slots()}
        self.facts = self._mixed(versions)
        self.current = {slot: objects[-1] for slot, objects in versions.items()}
        self.changed = {slot for slot, objects in versions.items() if len(objects) > 1}
        self.stated = [self._stated(fact) for fact in self.facts]

    def row(self, seed: int, kind: str, lengths: tuple[int, ...], questions: int) -> dict[str, Any]:
        """Return a row of questions that need so many facts; fewer where there are no more."""
        chains = self._chains(lengths, questions)
        told = "\n".join(f"{number}. {fact}" for number, fact in enumerate(self.stated))
        return {
            "context": f"Here is a list of facts:\n{told}",
            "questions": [self._question(chain) for chain in chains],
            "answers": [[self._follow(chain)[-1]] for chain in chains],
            "metadata": {
                "source": f"factconsolidation_{kind}",
                "seed": seed,
                "facts": [list(fact) for fact in self.facts],
                "hops": [list(chain) for chain in chains],
                "asked": {name: relation["asked"] for name, relation in self.relations.items()},
            },
        }

    def _slots(self) -> Iterator[Slot]:
        for name, relation in self.relations.items():
            for subject in self.named[relation["of"]]:
                yield subject, name

    def _versions(self, slot: Slot) -> list[str]:
        """Return the objects of a subject and relation, one after the other, no two the same."""
        subject, relation = slot
        others = [name for name in self.named[self.relations[relation]["is"]] if name != subject]
        return self.draw.sample(others, min(len(others), 1 + self.draw.choice(_CHANGES)))

    def _mixed(self, versions: dict[Slot, list[str]]) -> list[Fact]:
        """Return all facts in an order by chance, versions of one in theirs."""
        order = [slot for slot, objects in versions.items() for _ in objects]
        self.draw.shuffle(order)
        left = {slot: iter(objects) for slot, objects in versions.items()}
        return [Fact(*slot, next(left[slot])) for slot in order]

    def _stated(self, fact: Fact) -> str:
        wording = self.draw.choice(self.relations[fact.relation]["stated"])
        return wording.format(s=fact.subject, o=fact.object)

    def _chains(self, lengths: tuple[int, ...], count: int) -> list[tuple[str, ...]]:
        """Return subjects with relations to follow from each, no two the same."""
        found: dict[tuple[str, ...], None] = {}
        changed = sorted(self.changed)
        for _ in range(20 * count):
            if len(found) == count:
                break
            chain = self._chain(self.draw.choice(lengths), changed)
            if chain is not None:
                found[chain] = None
        return list(found)

    def _chain(self, length: int, changed: list[Slot]) -> tuple[str, ...] | None:
        chain = self.draw.choice(changed)
        if length > 1 and self.draw.random() < 1 / 2:  # so that another fact than the first has changed
            chain = self.draw.choice(sorted(self.current))
        for _ in range(length - 1):
            kind = self.relations[chain[-1]]["is"]
            onwards = [
                name for name, one in self.relations.items() if one["of"] == kind and name not in chain[1:]
            ]
            if not onwards:
                return None
            chain = (*chain, self.draw.choice(onwards))
        passed = self._follow(chain)
        slots = set(zip(passed, chain[1:], strict=False))
        return chain if slots & self.changed and len(set(passed)) == len(passed) else None

    def _follow(self, chain: tuple[str, ...]) -> list[str]:
        """Return the subject and what the relations lead to, one after the other, as it holds at the end."""
        passed = [chain[0]]
        for relation in chain[1:]:
            passed.append(self.current[passed[-1], relation])
        return passed

    def _question(self, chain: tuple[str, ...]) -> str:
        if len(chain) == 2:
            return self.relations[chain[1]]["asked"].replace("{}", chain[0])
        noun = chain[0]
        for relation in chain[1:-1]:
            noun = self.relations[relation]["noun"].replace("{}", noun)
        return self.relations[chain[-1]]["asked"].replace("{}", noun)

    def _name(self, kind: str, taken: set[str]) -> str:
        while True:
            form = self.draw.choice(_wording()["names"][kind])
            made = form.format(*(self._word() for _ in range(form.count("{}"))))
            if made not in taken:
                taken.add(made)
                return made

    def _word(self) -> str:
        return "".join(self.draw.choices(_wording()["syllables"], k=self.draw.choice((2, 2, 3)))).title()
