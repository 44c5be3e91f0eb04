"""Synthetic FactConsolidation data: numbered facts about fictional people, and later contradictions.

The rows have the format of MemoryAgentBench (Hu et al. 2025, arXiv 2507.05257): of two contradicting facts
the later one holds. A question of type "sh" (single-hop) needs one fact, and one of type "mh" (multi-hop) two
or three facts. At least one of the needed facts replaced an earlier fact. Names and wording are sampled from
`facts.json`, so that no language model knows an answer.
"""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from scrubjay.experiments.cli.failures import UsageError

_CHANGES = (0, 1, 1, 2)
_PEOPLE_PER_ENTITY = {"person": 1, "company": 3, "city": 3, "country": 9}
"""Number of people per entity of each type."""
_MIN_FACTS = 60
MAX_FACTS = 100_000
"""Maximum facts of a row."""

Slot = tuple[str, str]
"""Subject and relation."""


class Fact(NamedTuple):
    """A fact, which replaces earlier facts with the same subject and relation."""

    subject: str
    relation: str
    object: str


def make_rows(seed: int, facts: int, questions: int) -> list[dict[str, Any]]:
    """Generate two rows of about `facts` facts: one with single-hop and one with multi-hop questions.

    Raises UsageError if `facts` is not from 60 to 100,000, or `questions` is not from 1 to `facts`.
    """
    if not _MIN_FACTS <= facts <= MAX_FACTS:
        raise UsageError(f"facts={facts}: must be from {_MIN_FACTS} to {MAX_FACTS}")
    if not 1 <= questions <= facts:
        raise UsageError(f"questions={questions}: must be from 1 to facts={facts}")
    generator = _FactGenerator(random.Random(f"facts {seed}"), facts)
    return [generator.row(seed, "sh", (1,), questions), generator.row(seed, "mh", (2, 3), questions)]


@functools.cache
def _wording() -> dict[str, Any]:
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


class _FactGenerator:
    def __init__(self, draw: random.Random, facts: int) -> None:
        self.draw, self.relations = draw, _wording()["relations"]
        self.names_by_kind = {kind: [] for kind in _PEOPLE_PER_ENTITY} | _wording()["words"]
        people = max(
            2, round(facts / 2 / sum(1 / _PEOPLE_PER_ENTITY[one["of"]] for one in self.relations.values()))
        )
        used_names: set[str] = set()
        for kind, others in _PEOPLE_PER_ENTITY.items():
            for _ in range(max(2, people // others)):
                self.names_by_kind[kind].append(self._name(kind, used_names))
        versions = {
            (subject, name): self._versions((subject, name))
            for name, relation in self.relations.items()
            for subject in self.names_by_kind[relation["of"]]
        }
        self.facts = self._shuffle_facts(versions)
        self.current = {slot: objects[-1] for slot, objects in versions.items()}
        self.changed_slots = {slot for slot, objects in versions.items() if len(objects) > 1}
        self.sentences = [
            self.draw.choice(self.relations[relation]["stated"]).format(s=subject, o=object)
            for subject, relation, object in self.facts
        ]

    def row(self, seed: int, kind: str, lengths: tuple[int, ...], questions: int) -> dict[str, Any]:
        """Return a row with up to `questions` questions. Each question needs n facts, with n in `lengths`."""
        chains = self._chains(lengths, questions)
        fact_list = "\n".join(f"{number}. {fact}" for number, fact in enumerate(self.sentences))
        return {
            "context": f"Here is a list of facts:\n{fact_list}",
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

    def _versions(self, slot: Slot) -> list[str]:
        """Sample the different objects that a subject has one after another in a relation."""
        subject, relation = slot
        others = [name for name in self.names_by_kind[self.relations[relation]["is"]] if name != subject]
        return self.draw.sample(others, min(len(others), 1 + self.draw.choice(_CHANGES)))

    def _shuffle_facts(self, versions: dict[Slot, list[str]]) -> list[Fact]:
        """Return all facts in random order, except that later versions of a fact come after earlier ones."""
        order = [slot for slot, objects in versions.items() for _ in objects]
        self.draw.shuffle(order)
        left = {slot: iter(objects) for slot, objects in versions.items()}
        return [Fact(*slot, next(left[slot])) for slot in order]

    def _chains(self, lengths: tuple[int, ...], count: int) -> list[tuple[str, ...]]:
        """Sample up to `count` distinct chains. A chain is a subject and the relations to follow."""
        chains: dict[tuple[str, ...], None] = {}
        changed_slots = sorted(self.changed_slots)
        for _ in range(20 * count):
            if len(chains) == count:
                break
            chain = self._chain(self.draw.choice(lengths), changed_slots)
            if chain is not None:
                chains[chain] = None
        return list(chains)

    def _chain(self, length: int, changed_slots: list[Slot]) -> tuple[str, ...] | None:
        chain = self.draw.choice(changed_slots)
        if length > 1 and self.draw.random() < 1 / 2:  # so that a fact other than the first may have changed
            chain = self.draw.choice(sorted(self.current))
        for _ in range(length - 1):
            kind = self.relations[chain[-1]]["is"]
            onwards = [
                name for name, one in self.relations.items() if one["of"] == kind and name not in chain[1:]
            ]
            if not onwards:
                return None
            chain = (*chain, self.draw.choice(onwards))
        entities = self._follow(chain)
        slots = set(zip(entities, chain[1:], strict=False))
        return chain if slots & self.changed_slots and len(set(entities)) == len(entities) else None

    def _follow(self, chain: tuple[str, ...]) -> list[str]:
        """Return the subject of a chain, then the current object of each relation in turn."""
        entities = [chain[0]]
        for relation in chain[1:]:
            entities.append(self.current[entities[-1], relation])
        return entities

    def _question(self, chain: tuple[str, ...]) -> str:
        noun = chain[0]
        for relation in chain[1:-1]:
            noun = self.relations[relation]["noun"].replace("{}", noun)
        return self.relations[chain[-1]]["asked"].replace("{}", noun)

    def _name(self, kind: str, used_names: set[str]) -> str:
        while True:
            form = self.draw.choice(_wording()["names"][kind])
            words = (
                "".join(self.draw.choices(_wording()["syllables"], k=self.draw.choice((2, 2, 3)))).title()
                for _ in range(form.count("{}"))
            )
            name = form.format(*words)
            if name not in used_names:
                used_names.add(name)
                return name
