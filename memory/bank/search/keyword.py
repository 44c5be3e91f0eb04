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
import sqlite3

from scrubjay.memory.bank.file.words import match_terms
from scrubjay.memory.bank.search.candidates import Row, held
from scrubjay.memory.bank.search.filter import Filter

_BEST = 1000  # records that match
_MOST_MATCHES = 10_000


def match(connection: sqlite3.Connection, query: str, filter: Filter) -> tuple[dict[int, float], list[Row]]:
    """Return the records that say words of the query: BM25 by its words' rarities, by number, and their rows.

    Best first, the best 1,000 at most.
    """
    terms = match_terms(query)
    counts = {term: _count(connection, f"body : {term}") for term in terms}
    records = _records(connection)
    rarity = sum(math.log((records - n + 0.5) / (n + 0.5)) for n in counts.values() if 2 * n < records)
    expression, oldest = _affordable(connection, counts, filter.scope())
    if not expression:
        return {}, []
    wanted = _BEST
    while True:
        # The index ranks what no longer holds, too: look deeper until enough is left.
        found = dict(
            connection.execute(
                "SELECT rowid, -rank FROM words WHERE words MATCH ? AND rowid >= ? ORDER BY rank LIMIT ?",
                (expression, oldest, wanted),
            ).fetchall()
        )
        rows = held(connection, [*found], filter)
        if len(rows) >= _BEST or len(found) < wanted:
            rows = rows[:_BEST]
            return {number: found[number] / max(rarity, 1e-6) for number, *_ in rows}, rows
        wanted *= 4


def _affordable(connection: sqlite3.Connection, counts: dict[str, int], scope: str) -> tuple[str, int]:
    """Return an expression that few enough records match, and the oldest record to look at.

    The expression is empty where nothing matches.
    """
    if scope and sum(counts.values()) > _MOST_MATCHES:
        counts = {term: n and _count(connection, f"{scope}body : {term}") for term, n in counts.items()}
    every = " OR ".join(counts)
    rarest_first = sorted(filter(counts.get, counts), key=lambda term: counts[term])
    if not rarest_first:
        return "", 0
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
