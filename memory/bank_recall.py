"""Recall from a bank: two arms nominate, reciprocal ranks fuse them, recency and importance nudge.

Reciprocal rank fusion with the constant 60: Cormack, Clarke and Büttcher 2009. Its scores are close together, a
first place and a sixth 8 % apart, so the factors for recency and importance move one by 2 % each at most: both at
their worst cost the best record five places.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import sqlite3
from dataclasses import dataclass

import numpy as np

from scrubjay.memory.bank_record import Explanation
from scrubjay.memory.bank_vectors import Near, VectorIndex
from scrubjay.memory.bank_words import match_expression

_FUSION = 60
_SWAY = 0.02
_HALF_LIFE = 30 * 86400.0  # seconds in which recency halves
_TOP_CHUNKS = 256
_TOP_CHUNKS_BY_WORDS = 128
_SHARING = 1000
_SHARES = (0.4, 0.2, 0.1, 0.05)  # of a score, lent to neighbours in the chunk, one step away, two, and so on
_SPREAD = [(sign * step, share) for step, share in enumerate(_SHARES, 1) for sign in (-1, 1)]
_DEPTH = 4
_LEAST_DEPTH = 60


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

    def allows(self, namespace: str, kind: str) -> bool:
        """Return whether records of this namespace and kind may be seen."""
        return (self.kinds is None or kind in self.kinds) and namespace.startswith(self.namespace or "")


def join_namespace(namespace: tuple[str, ...]) -> str:
    """Return a namespace as stored: each part ends in U+001F, so that a wider one is a prefix."""
    return "".join(f"{part}\x1f" for part in namespace)


def split_namespace(stored: str) -> tuple[str, ...]:
    """Return what `join_namespace` joined."""
    return tuple(stored.split("\x1f")[:-1])


def scope_words(namespace: str, kind: str) -> str:
    """Return the words by which the keyword index knows a record's kind and every circle of its namespace."""
    circles = [i + 1 for i, letter in enumerate(namespace) if letter == "\x1f"]
    return " ".join([_scope_word(kind), *(_scope_word(namespace[:end]) for end in circles)])


def recall(
    connection: sqlite3.Connection,
    query: str,
    vector: np.ndarray | None,
    index: VectorIndex | None,
    dense_weight: float,
    filter: Filter,
    now: float,
    k: int,
) -> list[tuple[int, float, Explanation]]:
    """Return number, score and explanation of the `k` best records, best first."""
    depth = max(_DEPTH * k, _LEAST_DEPTH)
    keyword = _keyword(connection, query, filter, depth)
    near: dict[int, tuple[int, Near]] = {}
    if vector is not None and index is not None:
        near = {
            n.number: (rank, n) for rank, n in enumerate(_dense(connection, vector, index, filter, depth), 1)
        }
    found = []
    for number, renewed, importance in _select(
        connection, "number, renewed, importance", keyword.keys() | near.keys()
    ):
        dense_rank, place = near.get(number, (None, None))
        ranked = ((1.0, keyword.get(number)), (dense_weight, dense_rank))
        fused = sum(weight / (_FUSION + rank) for weight, rank in ranked if rank is not None)
        age = max(0.0, now - renewed)
        explanation = Explanation(
            keyword_rank=keyword.get(number),
            dense_rank=dense_rank,
            chunk_rank=place.chunk_rank if place else None,
            cosine=place.cosine if place else None,
            fused=fused,
            recency=1 + _SWAY * (2 * 0.5 ** (age / _HALF_LIFE) - 1),
            importance=1 + _SWAY * (2 * importance - 1),
        )
        found.append((number, fused * explanation.recency * explanation.importance, explanation))
    found.sort(key=lambda hit: (-hit[1], -hit[0]))
    return found[:k]


def _keyword(connection: sqlite3.Connection, query: str, filter: Filter, limit: int) -> dict[int, float]:
    """Return the rank of each record that shares words with the query; equals share the mean of their places."""
    expression = match_expression(query)
    if expression is None:
        return {}
    expression = f"body : ({expression})"
    scopes = [[_scope_word(kind) for kind in filter.kinds]] if filter.kinds is not None else []
    if filter.namespace:
        scopes.append([_scope_word(filter.namespace)])
    for names in scopes:
        expression = f"scope : ({' OR '.join(names)}) AND {expression}"
    condition, values = filter.condition()
    rows = connection.execute(
        "SELECT number, -rank, chunk, place FROM words JOIN records ON number = words.rowid "
        f"WHERE words MATCH ? AND {condition} ORDER BY rank LIMIT ?",
        [expression, *values, _SHARING],
    ).fetchall()
    scores = {number: score for number, score, _, _ in rows}
    around: dict[tuple[int, int], float] = collections.defaultdict(float)
    coarse: dict[int, float] = collections.defaultdict(float)
    for _, score, chunk, place in rows:
        coarse[chunk] += score * score
        for distance, share in _SPREAD:
            around[chunk, place + distance] += share * score
    chosen = sorted(coarse, key=coarse.__getitem__, reverse=True)[:_TOP_CHUNKS_BY_WORDS]
    for number, chunk, place in _select(
        connection, "number, chunk, place", chosen, condition, values, "chunk"
    ):
        if (chunk, place) in around:
            scores[number] = scores.get(number, 0.0) + around[chunk, place]
    best = sorted(scores.items(), key=lambda scored: -scored[1])[:limit]
    ranks: dict[int, float] = {}
    for _, equals in itertools.groupby(best, key=lambda scored: scored[1]):
        numbers = [number for number, _ in equals]
        ranks.update(dict.fromkeys(numbers, len(ranks) + (len(numbers) + 1) / 2))
    return ranks


def _dense(
    connection: sqlite3.Connection, vector: np.ndarray, index: VectorIndex, filter: Filter, limit: int
) -> list[Near]:
    condition, values = filter.condition()
    wanted = limit
    while True:
        # What no longer holds is in the index still: look deeper until enough is left.
        near = index.nearest(vector, filter.allows, _TOP_CHUNKS, wanted)
        allowed = {n for (n,) in _select(connection, "number", [n.number for n in near], condition, values)}
        kept = [n for n in near if n.number in allowed]
        if len(kept) >= limit or len(near) < wanted:
            return kept[:limit]
        wanted *= 4


def _select(connection, columns, numbers, condition="1", values=(), key="number") -> list[tuple]:
    numbers = list(numbers)
    rows: list[tuple] = []
    for first in range(0, len(numbers), 500):  # older SQLites take at most 999 values
        some = numbers[first : first + 500]
        marks = ", ".join("?" * len(some))
        rows += connection.execute(
            f"SELECT {columns} FROM records WHERE {key} IN ({marks}) AND {condition}", [*some, *values]
        )
    return rows


def _scope_word(name: str) -> str:
    # Digits alone, which the stemmer leaves as they are.
    return f"x{int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), 'big')}"
