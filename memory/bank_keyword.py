"""The keyword arm: BM25 over the words of records, and a share of a record's score for its neighbours in the chunk.

BM25 is that of SQLite's FTS5 (Robertson & Zaragoza 2009), whose time grows with the records that match. So words that
too many records hold choose none: they only weigh what rarer words chose. Where all are that common, the newest
records that hold the rarest of them are looked at.
"""

from __future__ import annotations

import collections
import itertools
import math
import sqlite3
from typing import NamedTuple

from scrubjay.memory.bank_store import select
from scrubjay.memory.bank_words import is_unspaced, match_terms

_TOP_CHUNKS = 128
_SHARING = 1000  # records that lend
_SHARES = (0.4, 0.2, 0.1, 0.05)  # of a score, lent to neighbours in the chunk, one step away, two, and so on
_SPREAD = [(sign * step, share) for step, share in enumerate(_SHARES, 1) for sign in (-1, 1)]
_MOST_MATCHES = 10_000
_LARGEST_FACTOR = 2.2  # of a word's weight, in a text that says nothing else


class Keyword(NamedTuple):
    """What words know about a query."""

    scores: dict[int, float]
    """BM25 and shares, by number of record."""
    coverage: float
    """The best score as a part of what a record of all the query's words could have, at most 1."""


def keyword_scores(
    connection: sqlite3.Connection, query: str, scope: str, condition: str, values: list[object]
) -> Keyword:
    """Return the scores of records that share words with the query, and of their neighbours in the chunk.

    `scope` begins every expression of FTS5, `condition` in SQL with its `values` says which records hold.
    """
    counts = {term: _count(connection, f"{scope}body : {term}") for term in match_terms(query)}
    if not any(counts.values()):
        return Keyword({}, 0.0)
    rows = _matches(connection, counts, scope, condition, values)
    scores = {number: score for number, score, _, _ in rows}
    around: dict[tuple[int, int], float] = collections.defaultdict(float)
    coarse: dict[int, float] = collections.defaultdict(float)
    for _, score, chunk, place in rows:
        coarse[chunk] += score * score
        for distance, share in _SPREAD:
            around[chunk, place + distance] += share * score
    chosen = sorted(coarse, key=coarse.__getitem__, reverse=True)[:_TOP_CHUNKS]
    for number, chunk, place in select(
        connection, "number, chunk, place", chosen, condition, values, "chunk"
    ):
        if (chunk, place) in around:
            scores[number] = scores.get(number, 0.0) + around[chunk, place]
    best = max(scores.values(), default=0.0)
    return Keyword(scores, min(1.0, best / _largest_score(connection, counts)))


def _matches(
    connection: sqlite3.Connection, counts: dict[str, int], scope: str, condition: str, values: list[object]
) -> list[tuple[int, float, int, int]]:
    """Return number, BM25, chunk and place of the best records that match and hold, best first."""
    expression, oldest = _affordable(connection, counts, scope)
    wanted = 2 * _SHARING
    while True:
        # The index ranks what no longer holds, too: look deeper until enough is left.
        rows = connection.execute(
            "SELECT rowid, -rank FROM words WHERE words MATCH ? AND rowid >= ? ORDER BY rank LIMIT ?",
            (expression, oldest, wanted),
        ).fetchall()
        held = {
            number: where
            for number, *where in select(
                connection, "number, chunk, place", [number for number, _ in rows], condition, values
            )
        }
        if len(held) >= _SHARING or len(rows) < wanted:
            return [(number, score, *held[number]) for number, score in rows if number in held][:_SHARING]
        wanted *= 4


def _affordable(connection: sqlite3.Connection, counts: dict[str, int], scope: str) -> tuple[str, int]:
    """Return an expression that few enough records match, and the oldest record to look at."""
    every = " OR ".join(counts)
    rarest_first = sorted(filter(counts.get, counts), key=lambda term: counts[term])
    total = list(itertools.accumulate(counts[term] for term in rarest_first))
    choosing = rarest_first[: max(1, sum(matches <= _MOST_MATCHES for matches in total))]
    if len(choosing) == len(rarest_first) and total[-1] <= _MOST_MATCHES:
        return f"{scope}body : ({every})", 0
    expression = f"{scope}body : (({' OR '.join(choosing)}) AND ({every}))"
    if total[0] <= _MOST_MATCHES:
        return expression, 0
    (oldest,) = connection.execute(
        "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT 1 OFFSET ?",
        (f"{scope}body : {choosing[0]}", _MOST_MATCHES - 1),
    ).fetchone()
    return expression, oldest


def _count(connection: sqlite3.Connection, expression: str) -> int:
    return connection.execute("SELECT COUNT(*) FROM words WHERE words MATCH ?", (expression,)).fetchone()[0]


def _largest_score(connection: sqlite3.Connection, counts: dict[str, int]) -> float:
    (records,) = connection.execute("SELECT MAX(rowid) FROM words").fetchone()
    # A pair of characters that nobody wrote may straddle two words; a word that nobody wrote is one unmet.
    terms = [count for term, count in counts.items() if count or not is_unspaced(term)]
    weights = (math.log((records - count + 0.5) / (count + 0.5)) for count in terms if 2 * count < records)
    return _LARGEST_FACTOR * sum(weights) or 1e-6
