"""The keyword arm: BM25 over words, as shares of one whole, some of it lent to neighbours in the chunk.

BM25 is that of SQLite's FTS5 (Robertson & Zaragoza 2009): a sum of log-odds, which would make shares by
themselves if words came independently; as they do not, it is divided by 2.5. Its time grows with the records
that match: words that too many records hold choose none: they only weigh what rarer words chose. Where all
are that common, the newest records that hold the rarest of them are looked at. A date is one word
(`memory/bank/search/dates.py`).
"""

from __future__ import annotations

import collections
import itertools
import math
import sqlite3
from datetime import tzinfo
from typing import NamedTuple

import numpy as np

from scrubjay.memory.bank.file.damage import Unreadable
from scrubjay.memory.bank.file.store import select
from scrubjay.memory.bank.search.choice import best_chunks, best_records
from scrubjay.memory.bank.search.dates import Day, read_dates
from scrubjay.memory.bank.search.shares import PORTIONS, lent, shares
from scrubjay.memory.bank.search.words import is_unspaced, match_terms, normalise

_TOP_CHUNKS = 128
_SHARING = 1000  # records that have shares
_SPREAD = [(sign * step, portion) for step, portion in enumerate(PORTIONS, 1) for sign in (-1, 1)]
_TEMPERATURE = 2.5
_MOST_MATCHES = 10_000
_LARGEST_FACTOR = 2.2  # of a word's weight, in a text that says nothing else
_UNMET_PAIR = 0.25  # of a word's weight: a pair of characters that nobody wrote may straddle two words

_Row = tuple[int, float, int, int]
"""Number of a record, BM25, chunk and place."""


class Keyword(NamedTuple):
    """What words know about a query."""

    scores: dict[int, float]
    """Shares of one whole and what neighbours lend, by number of record."""
    bm25: dict[int, float]
    """Of records that share words or a day themselves, by number."""
    coverage: float
    """The best BM25 as a part of what a record of all the query's words could have, at most 1."""


def keyword_scores(
    connection: sqlite3.Connection,
    query: str,
    scope: str,
    condition: str,
    values: list[object],
    zone: tzinfo,
) -> Keyword:
    """Return the scores of records that share words or a day with the query, and of their neighbours.

    Args:
        connection: To the bank's file.
        query: The question.
        scope: How every expression of FTS5 begins.
        condition: Which records hold, in SQL.
        values: Of the condition's question marks.
        zone: Where days begin.
    """
    phrases, days, rest = read_dates(normalise(query))
    terms = [*phrases, *match_terms(rest, alone=not phrases)]
    counts = {term: _count(connection, f"{scope}body : {term}") for term in terms}
    rows = _matches(connection, counts, scope, condition, values) if any(counts.values()) else []
    rows = _with_observed(rows, days, zone, connection, condition, values) if days else rows
    if not rows:
        return Keyword({}, {}, 0.0)
    numbers, bm25, chunks, places = zip(*rows, strict=True)
    share = shares(np.array(bm25), _TEMPERATURE)
    scores = dict(zip(numbers, share.tolist(), strict=True))
    around: dict[tuple[int, int], float] = collections.defaultdict(float)
    coarse: dict[int, float] = collections.defaultdict(float)
    for given, chunk, place in zip(lent(share).tolist(), chunks, places, strict=True):
        coarse[chunk] += given
        for distance, portion in _SPREAD:
            around[chunk, place + distance] += portion * given
    touched = list(coarse)
    chosen = [touched[i] for i in best_chunks(np.array(list(coarse.values())), _TOP_CHUNKS)]
    for number, chunk, place in select(
        connection, "number, chunk, place", chosen, condition, values, "chunk"
    ):
        if (chunk, place) in around:
            scores[number] = scores.get(number, 0.0) + around[chunk, place]
    coverage = min(1.0, bm25[0] / _largest_score(connection, counts))
    return Keyword(scores, dict(zip(numbers, bm25, strict=True)), coverage)


def _matches(
    connection: sqlite3.Connection, counts: dict[str, int], scope: str, condition: str, values: list[object]
) -> list[_Row]:
    """Return the best records that match and hold, best first."""
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


def _with_observed(
    rows: list[_Row],
    days: list[Day],
    zone: tzinfo,
    connection: sqlite3.Connection,
    condition: str,
    values: list[object],
) -> list[_Row]:
    """Return the rows with the newest thousand observed on one of the days, for whom it is one more word."""
    records = _records(connection)
    first, last = connection.execute(
        "SELECT (SELECT MIN(observed) FROM records), (SELECT MAX(observed) FROM records)"
    ).fetchone()
    if first is None:
        return rows
    rarity: dict[tuple[int, int, int], float] = {}
    for begin, end in (span for day in days for span in day.spans(first, last, zone)):
        then = connection.execute(
            f"SELECT number, chunk, place FROM records WHERE observed >= ? AND observed < ? AND {condition} "
            "ORDER BY observed DESC LIMIT ?",
            (begin, end, *values, _SHARING),
        ).fetchall()
        if len(then) > records:
            raise Unreadable(f"it notes {records} records and has {len(then)} of one day")
        gain = max(0.0, math.log((records - len(then) + 0.5) / (len(then) + 0.5)))
        # A day and its month, both named, are one sign.
        rarity.update((row, max(gain, rarity.get(row, 0.0))) for row in then)
    score = {number: (bm25, chunk, place) for number, bm25, chunk, place in rows}
    for (number, chunk, place), gain in rarity.items():
        bm25 = score[number][0] if number in score else 0.0
        score[number] = (bm25 + gain, chunk, place)
    best = best_records({number: bm25 for number, (bm25, *_) in score.items()}, _SHARING)
    return [(number, *score[number]) for number in best]


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


def _records(connection: sqlite3.Connection) -> int:
    # Numbers are never given twice, and counting rows would take as long as there are many.
    return connection.execute(
        "SELECT COALESCE(MAX(seq), 0) - (SELECT value FROM facts WHERE name = 'deletions') "
        "FROM sqlite_sequence WHERE name = 'records'"
    ).fetchone()[0]


def _largest_score(connection: sqlite3.Connection, counts: dict[str, int]) -> float:
    records = _records(connection)
    weights = (
        math.log((records - count + 0.5) / (count + 0.5))
        * (1 if count or not is_unspaced(term) else _UNMET_PAIR)
        for term, count in counts.items()
        if 2 * count < records
    )
    return _LARGEST_FACTOR * sum(weights) or 1e-6
