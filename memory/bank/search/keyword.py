"""The keyword arm: which part of a query's words a record says, by BM25.

BM25 is that of SQLite's FTS5 (Robertson & Zaragoza 2009). A sum over the query's words, it is divided by the
sum of their rarities (inverse document frequencies), so that it means the same for a query of two words and
of ten. Its time grows with the records that match: words that too many records hold choose none: they only
weigh what rarer words chose. Where all are that common, the newest records that hold the rarest of them are
looked at.
"""

from __future__ import annotations

import itertools
import math
import operator
import sqlite3
from typing import NamedTuple

from scrubjay.memory.bank.file.words import day_terms, match_terms
from scrubjay.memory.bank.search.candidates import Row, held
from scrubjay.memory.bank.search.filter import Filter

_MOST_MATCHES = 10_000
_LEAST_RARITY = 1e-6  # FTS5's of a word that more than half of the records say


class Said(NamedTuple):
    """Which part of a query's words records say, by number, as far as they say any."""

    part: dict[int, float]
    lent: dict[int, float]
    """Without those that name a day: all that was said on it says them, and so do its neighbours."""
    rows: list[Row]
    """Of the best, best first."""


def match(
    connection: sqlite3.Connection, query: str, filter: Filter, count: int, least_rarity: float
) -> Said:
    """Return what records say of a query.

    Rows of those that hold at least `count`, where so many match; of equals the newest first. All words
    together count as at least `least_rarity`.
    """
    counts = {term: _count(connection, term) for term in match_terms(query)}
    records = _records(connection)
    least = max(sum(_rarity(n, records) for n in counts.values()), least_rarity)
    found = _parts(connection, counts, filter.scope(), least)
    days, lent = day_terms(query), found
    if not days.isdisjoint(counts):
        others = {term: n for term, n in counts.items() if term not in days}
        lent = _parts(connection, others, filter.scope(), least)
    found.reverse()
    found.sort(key=operator.itemgetter(1), reverse=True)  # which leaves equals in their order
    wanted = count
    while True:
        # The index knows what no longer holds, too: look deeper until enough is left.
        rows = held(connection, [number for number, _ in found[:wanted]], filter)
        if len(rows) >= count or wanted >= len(found):
            part = dict(found)
            return Said(part, part if lent is found else dict(lent), rows)
        wanted *= 4


def _parts(
    connection: sqlite3.Connection, counts: dict[str, int], scope: str, rarity: float
) -> list[tuple[int, float]]:
    """Return numbers of records, in order, and what they say of words that are so rare in all."""
    expression, oldest = _affordable(connection, counts, scope)
    if not expression:
        return []
    return connection.execute(
        "SELECT rowid, bm25(words, 0.0, 1.0) / ? FROM words WHERE words MATCH ? AND rowid >= ?",
        (-rarity, expression, oldest),
    ).fetchall()


def _affordable(connection: sqlite3.Connection, counts: dict[str, int], scope: str) -> tuple[str, int]:
    """Return an expression that few enough records match, and the oldest record to look at.

    The expression is empty where nothing matches.
    """
    if scope and sum(counts.values()) > _MOST_MATCHES:
        counts = {term: n and _count(connection, f"{scope}{term}") for term, n in counts.items()}
    every = " OR ".join(counts)
    rarest_first = sorted(filter(counts.get, counts), key=lambda term: counts[term])
    if not rarest_first:
        return "", 0
    total = list(itertools.accumulate(counts[term] for term in rarest_first))
    choosing = rarest_first[: max(1, sum(matches <= _MOST_MATCHES for matches in total))]
    if len(choosing) == len(rarest_first) and total[-1] <= _MOST_MATCHES:
        return f"{scope}({every})", 0
    expression = f"{scope}({' OR '.join(choosing)}) AND ({every})"
    if total[0] <= _MOST_MATCHES:
        return expression, 0
    (oldest,) = connection.execute(
        "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT 1 OFFSET ?",
        (f"{scope}{choosing[0]}", _MOST_MATCHES - 1),
    ).fetchone()
    return expression, oldest


def _rarity(count: int, records: int) -> float:
    return math.log((records - count + 0.5) / (count + 0.5)) if 2 * count < records else _LEAST_RARITY


def _count(connection: sqlite3.Connection, expression: str) -> int:
    return connection.execute("SELECT COUNT(*) FROM words WHERE words MATCH ?", (expression,)).fetchone()[0]


def _records(connection: sqlite3.Connection) -> int:
    # Numbers are never given twice, and counting rows would take as long as there are many.
    return connection.execute(
        "SELECT COALESCE(MAX(seq), 0) - (SELECT value FROM facts WHERE name = 'deletions') "
        "FROM sqlite_sequence WHERE name = 'records'"
    ).fetchone()[0]
