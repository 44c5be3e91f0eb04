"""Keyword search: the share of a query's words that a record contains, by BM25.

SQLite's FTS5 computes BM25 (Robertson & Zaragoza 2009), a sum over the words of the query. The sum is divided
by the sum of the words' inverse document frequencies (rarities), so that scores of short and long queries are
comparable. The runtime grows with the number of matching records. Therefore words that occur in too many
records select no candidates. They only add to the score of candidates that rarer words select. If all words
are too common, the newest records with the rarest word are the candidates.
"""

from __future__ import annotations

import itertools
import math
import operator
import sqlite3
from typing import NamedTuple

from scrubjay.memory.bank.file.words import day_terms, match_terms
from scrubjay.memory.bank.search.candidates import Filter, Row, select_enough

_MAX_MATCHES = 10_000
_MIN_RARITY = 1e-6  # FTS5's value for a word in more than half of the records


class KeywordMatches(NamedTuple):
    """Keyword scores of the records that contain words of a query."""

    coverage: dict[int, float]
    """Share of the query's words that a record contains, weighted by rarity. Keys are record numbers."""
    neighbour_coverage: dict[int, float]
    """Share of the query's words other than date words that a record contains, weighted by rarity. Keys are
    record numbers. A fraction of a record's share is added to the scores of the records right before and
    after it. Date words are left out, since the date of a record says nothing about its neighbours."""
    rows: list[Row]
    """Rows of the best matches, best first."""


def match_keywords(
    connection: sqlite3.Connection, query: str, filter: Filter, count: int, min_rarity: float
) -> KeywordMatches:
    """Return the keyword scores of a query, and the rows of the best valid matches.

    At least `count` rows are returned, or all valid matches if there are fewer.
    Records with equal scores are sorted newest first. Scores are divided by the sum of the rarities of the
    query's words, or by `min_rarity` if this sum is smaller.
    """
    counts = {term: _count(connection, term) for term in match_terms(query)}
    records = _count_records(connection)
    total_rarity = max(sum(_rarity(n, records) for n in counts.values()), min_rarity)
    scores = _score_records(connection, counts, filter.scope(), total_rarity)
    days, neighbour_scores = day_terms(query), scores
    if not days.isdisjoint(counts):
        others = {term: n for term, n in counts.items() if term not in days}
        neighbour_scores = _score_records(connection, others, filter.scope(), total_rarity)
    scores.reverse()
    scores.sort(key=operator.itemgetter(1), reverse=True)  # stable, so ties keep their order
    rows = select_enough(connection, lambda depth: [number for number, _ in scores[:depth]], filter, count)
    coverage = dict(scores)
    return KeywordMatches(coverage, coverage if neighbour_scores is scores else dict(neighbour_scores), rows)


def _score_records(
    connection: sqlite3.Connection, counts: dict[str, int], scope: str, rarity: float
) -> list[tuple[int, float]]:
    """Return record numbers, ascending, with their BM25 scores divided by `rarity`."""
    expression, oldest = _build_expression(connection, counts, scope)
    if not expression:
        return []
    return connection.execute(
        "SELECT rowid, bm25(words, 0.0, 1.0) / ? FROM words WHERE words MATCH ? AND rowid >= ?",
        (-rarity, expression, oldest),
    ).fetchall()


def _build_expression(connection: sqlite3.Connection, counts: dict[str, int], scope: str) -> tuple[str, int]:
    """Return an FTS5 expression with a bounded number of matches, and the lowest record number to score.

    The expression is empty if no record matches.
    """
    if scope and sum(counts.values()) > _MAX_MATCHES:
        counts = {term: n and _count(connection, f"{scope}{term}") for term, n in counts.items()}
    all_terms = " OR ".join(counts)
    rarest_first = sorted(filter(counts.get, counts), key=lambda term: counts[term])
    if not rarest_first:
        return "", 0
    total = list(itertools.accumulate(counts[term] for term in rarest_first))
    selective_terms = rarest_first[: max(1, sum(matches <= _MAX_MATCHES for matches in total))]
    if len(selective_terms) == len(rarest_first) and total[-1] <= _MAX_MATCHES:
        return f"{scope}({all_terms})", 0
    expression = f"{scope}({' OR '.join(selective_terms)}) AND ({all_terms})"
    if total[0] <= _MAX_MATCHES:
        return expression, 0
    (oldest,) = connection.execute(
        "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT 1 OFFSET ?",
        (f"{scope}{selective_terms[0]}", _MAX_MATCHES - 1),
    ).fetchone()
    return expression, oldest


def _rarity(count: int, records: int) -> float:
    return math.log((records - count + 0.5) / (count + 0.5)) if 2 * count < records else _MIN_RARITY


def _count(connection: sqlite3.Connection, expression: str) -> int:
    return connection.execute("SELECT COUNT(*) FROM words WHERE words MATCH ?", (expression,)).fetchone()[0]


def _count_records(connection: sqlite3.Connection) -> int:
    # Record numbers are never reused, and counting rows takes linear time.
    return connection.execute(
        "SELECT COALESCE(MAX(seq), 0) - (SELECT value FROM facts WHERE name = 'deletions') "
        "FROM sqlite_sequence WHERE name = 'records'"
    ).fetchone()[0]
