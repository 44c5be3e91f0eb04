"""Facts that change: a rule that finds the hits of a search that a newer hit replaces. It needs no model.

The rule reads claims such as "I live in Lyon" in short texts. A claim has a subject, an attribute and a
value. The attributes form a closed list, and each holds one value at a time. The newest claim about the same
subject and attribute counts. An older claim with another value is superseded.

- Both records have the same namespace, kind and speaker. The newer one has at least the trust of the older.
- A subject is the first person, the user, a name, or a relative with a name such as "my brother Tom". A
  relative of whom there is only one, such as a mother, needs no name.
- A sentence, or a clause of it, is exactly a claim with a few known words around it. Questions, plans,
  conditions, reported speech, past facts and additions such as "also" make no claim.
- "I live in Berlin" does not contradict "I live in Germany". Two places are compared only if both are
  countries or neither is one. Values that contain each other do not contradict.
- "No longer", "quit" and "used to" end a claim without a new value.

A search reorders its hits and marks them. It writes nothing. When in doubt the rule does nothing. In 20,558
turns of public conversations it read 7 claims and marked no record. It is meant for records of single facts.
The rule knows English and a little Chinese. In other languages it does nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from scrubjay.memory.bank.record import TRUSTS, Hit, Record
from scrubjay.memory.bank.search.claims import Claim, contradicts, may_claim, read_claims

MAX_COMPARED = 64
"""Largest number of hits of one search that the rule compares."""
EXTRA_HITS = 10
"""Hits below the last requested one that may replace a requested one."""


class _Statement(NamedTuple):
    """Claim of a record."""

    index: int
    """Index of the record among the hits."""
    claim: Claim
    time: float
    """Time of the latest statement."""
    start: float
    """Start of validity; the time of the statement if it is unknown."""
    trust: int
    """Larger for higher trust."""


def find_changes(records: Sequence[Record], at: float | None = None) -> dict[int, int]:
    """Return the indices of superseded records, each with the index of the record that supersedes it.

    A record is superseded only if each of its claims is. Its value in the result is then the newest record
    that supersedes one of them.

    Args:
        records: Records that are valid at one time.
        at: Time of the search in seconds; None for now. Later repetitions of a statement do not count.
    """
    groups: dict[tuple[object, ...], list[_Statement]] = {}
    counts: dict[int, int] = {}
    candidates = [(index, record) for index, record in enumerate(records) if may_claim(record.text)]
    for index, record in candidates if len(candidates) > 1 else ():
        speaker = record.provenance.get("speaker", "")
        if not isinstance(speaker, str):
            continue
        claims = read_claims(record.text)
        counts[index] = len(claims)
        for claim in claims:
            # "I" is the author, so that the trust is a part of the subject.
            author = record.trust if claim.is_first_person else ""
            scope = (record.namespace, record.kind, speaker, author, claim.subject, claim.attribute)
            time = _statement_time(record, at)
            start = time if record.valid_from is None else record.valid_from.timestamp()
            statement = _Statement(index, claim, time, start, -TRUSTS.index(record.trust))
            groups.setdefault(scope, []).append(statement)
    replacements: dict[int, list[_Statement]] = {}
    for statements in groups.values():
        if len(statements) > 1:
            statements.sort(key=lambda statement: -statement.time)
            for old in statements:
                if not old.claim.is_end and (new := _find_newer(old, statements)) is not None:
                    replacements.setdefault(old.index, []).append(new)
    return {
        index: max(newer, key=lambda statement: statement.time).index
        for index, newer in replacements.items()
        if len(newer) == counts[index]
    }


def order_by_changes(hits: list[Hit], at: float | None = None) -> list[Hit]:
    """Return hits with their marks, each superseded one behind the one that supersedes it.

    A newer hit moves to the place right before the first hit that it supersedes. All others keep their order.
    """
    changes = find_changes(hits[:MAX_COMPARED], at)
    if not changes:
        return hits
    order: dict[int, None] = {}
    for index in range(len(hits)):
        chain = [index]
        while (newer := changes.get(chain[-1])) is not None and newer not in chain:
            chain.append(newer)
        order |= dict.fromkeys(one for one in reversed(chain) if one not in order)
    return [
        dataclasses.replace(hits[i], superseded_by=hits[changes[i]].id) if i in changes else hits[i]
        for i in order
    ]


def _find_newer(old: _Statement, statements: Sequence[_Statement]) -> _Statement | None:
    """Return the newest statement that decides about an old one, if it supersedes it; else None."""
    for new in statements:  # newest first
        if new.time <= old.time:
            return None
        if new.trust < old.trust or new.index == old.index:
            continue
        contradiction = contradicts(old.claim, new.claim)
        if contradiction is not None:
            # A later statement about an earlier time is in doubt.
            return new if contradiction and new.start > old.start else None
    return None


def _statement_time(record: Record, at: float | None) -> float:
    """Return the time of the latest statement of a record that is known at the time `at`."""
    renewed = record.renewed.timestamp()
    return renewed if at is None or renewed <= at else record.observed.timestamp()
