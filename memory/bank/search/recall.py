"""Recall from a bank: two arms share out one whole each, and count as far as they are sure.

What a record gets:

1. Each arm's scores become shares of one whole by a softmax, and records lend some of theirs to neighbours in
   the chunk (`memory/bank/search/shares.py`): BM25 by words, cosines by embeddings.
2. Shares of both arms are summed, as convex combinations beat fusions of ranks (Bruch, Gai and Ingber 2023,
   arXiv 2210.11934), but with weights that the query's own scores tell, since no weights serve all queries.
   Words weigh the part of the query that the best record covers, to the power of 1.5: they know little of a
   query that shares but a name with a hundred records. Embeddings weigh how far the nearest record stands out
   from what chance would bring near, in a logistic curve, times how well they know the query's script
   (`memory/bank/search/fluency.py`), times the bank's `dense_weight`: where no record stands out none is
   meant.
3. Recency and importance each move the sum by 2 % at most: they decide between equals.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import sqlite3
from dataclasses import dataclass
from datetime import tzinfo

import numpy as np

from scrubjay.memory.bank.file.record import Explanation
from scrubjay.memory.bank.file.store import select
from scrubjay.memory.bank.search.choice import best_records
from scrubjay.memory.bank.search.dense import DenseIndex, Near, Nearby
from scrubjay.memory.bank.search.keyword import keyword_scores

_SWAY = 0.02
_HALF_LIFE = 30 * 86400.0  # seconds in which recency halves
TOP_CHUNKS = 256
_DEPTH = 4
_LEAST_DEPTH = 60
_HALF_SURE, _SURENESS_SCALE = 0.5, 0.75  # standard deviations


@dataclass(frozen=True)
class Filter:
    """Which records a search may see."""

    at: float
    """Seconds since 1970 at which they must hold."""
    kinds: tuple[str, ...] | None
    """Kinds, None for all."""
    namespace: str | None
    """The beginning of their namespace as stored, None for all."""
    trusts: tuple[str, ...] | None
    """Degrees of trust, None for all."""

    def condition(self) -> tuple[str, list[object]]:
        """Return the condition in SQL and its values."""
        parts = ["(valid_from IS NULL OR valid_from <= ?)", "(valid_to IS NULL OR valid_to > ?)"]
        values: list[object] = [self.at, self.at]
        for column, choices in (("kind", self.kinds), ("trust", self.trusts)):
            if choices is not None:
                parts.append(f"{column} IN ({', '.join('?' * len(choices))})")
                values += choices
        if self.namespace:
            parts.append("namespace >= ? AND namespace < ?")
            values += [self.namespace, self.namespace[:-1] + "\x20"]
        return " AND ".join(parts), values

    def scope(self) -> str:
        """Return the beginning of an FTS5 expression that only records of these kinds and namespace match."""
        parts = [[_scope_word(kind) for kind in self.kinds]] if self.kinds is not None else []
        if self.namespace:
            parts.append([_scope_word(self.namespace)])
        return "".join(f"scope : ({' OR '.join(names)}) AND " for names in parts)

    def allows(self, namespace: str, kind: str) -> bool:
        """Return whether records of this namespace and kind may be seen."""
        return (self.kinds is None or kind in self.kinds) and namespace.startswith(self.namespace or "")


def scope_words(namespace: str, kind: str) -> str:
    """Return the words by which the keyword index knows a record's kind and every circle of its namespace."""
    circles = [i + 1 for i, letter in enumerate(namespace) if letter == "\x1f"]
    return " ".join([_scope_word(kind), *(_scope_word(namespace[:end]) for end in circles)])


def recall(
    connection: sqlite3.Connection,
    query: str,
    vector: np.ndarray | None,
    index: DenseIndex | None,
    dense_weight: float,
    filter: Filter,
    now: float,
    k: int,
    zone: tzinfo,
) -> list[tuple[int, float, Explanation]]:
    """Return number, score and explanation of the `k` best records, best first.

    Args:
        connection: To the bank's file.
        query: The question.
        vector: Its embedding, of length 1; None for words alone.
        index: Of the records' embeddings; None for words alone.
        dense_weight: What embeddings count where words count 1.
        filter: Which records may be found.
        now: The moment they must hold at, in seconds.
        k: Records at most.
        zone: Where days begin.
    """
    depth = max(_DEPTH * k, _LEAST_DEPTH)
    keyword = keyword_scores(connection, query, filter.scope(), *filter.condition(), zone)
    by_words = best_records(keyword.scores, depth)
    near: dict[int, Near] = {}
    if vector is not None and index is not None:
        nearby = _dense(connection, vector, index, filter, depth, by_words, keyword.bm25)
        near = {n.number: n for n in nearby.records}
        dense_weight /= 1 + math.exp((_HALF_SURE - nearby.excess) / _SURENESS_SCALE)
    word_weight = keyword.coverage**1.5
    keyword_ranks = _ranks({number: keyword.scores[number] for number in by_words})
    dense_ranks = _ranks({number: place.score for number, place in near.items()})
    found: dict[int, tuple[float, Explanation]] = {}
    for number, renewed, importance in select(connection, "number, renewed, importance", {*by_words, *near}):
        place = near.get(number)
        from_words = word_weight * keyword.scores.get(number, 0.0)
        from_embeddings = dense_weight * place.score if place else 0.0
        age = max(0.0, now - renewed)
        explanation = Explanation(
            keyword_rank=keyword_ranks.get(number),
            dense_rank=dense_ranks.get(number),
            chunk_rank=place.chunk_rank if place else None,
            cosine=place.cosine if place else None,
            from_words=from_words,
            from_embeddings=from_embeddings,
            recency=1 + _SWAY * (2 * 0.5 ** (age / _HALF_LIFE) - 1),
            importance=1 + _SWAY * (2 * importance - 1),
        )
        score = (from_words + from_embeddings) * explanation.recency * explanation.importance
        found[number] = (score, explanation)
    kept = best_records({number: score for number, (score, _) in found.items()}, k)
    return [(number, *found[number]) for number in kept]


def _ranks(scores: dict[int, float]) -> dict[int, float]:
    """Return places by score from 1; equals share the mean of theirs."""
    best = sorted(scores, key=lambda number: -scores[number])
    ranks: dict[int, float] = {}
    for _, equals in itertools.groupby(best, key=lambda number: scores[number]):
        numbers = list(equals)
        ranks.update(dict.fromkeys(numbers, len(ranks) + (len(numbers) + 1) / 2))
    return ranks


def _dense(
    connection: sqlite3.Connection,
    vector: np.ndarray,
    index: DenseIndex,
    filter: Filter,
    limit: int,
    also: list[int],
    bm25: dict[int, float],
) -> Nearby:
    """Return the nearest that hold, and those of `also`."""
    condition, values = filter.condition()
    wanted = limit
    while True:
        # What no longer holds is in the index still: look deeper until enough is left.
        near, excess = index.nearest(vector, filter.allows, TOP_CHUNKS, wanted, also, bm25)
        allowed = {n for (n,) in select(connection, "number", [n.number for n in near], condition, values)}
        kept = [n for n in near if n.number in allowed]
        if len(kept) >= limit or len(near) < wanted:
            return Nearby(kept, excess)
        wanted *= 4


def _scope_word(name: str) -> str:
    # Digits alone, which the stemmer leaves as they are.
    return f"x{int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), 'big')}"
