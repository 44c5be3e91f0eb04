"""Recall from a bank: how near a record is, which of the query's words it says, and what stands beside it.

    score = z + 5 (w + half of w before and after) + 1.5 max(0, largest z before or after - sqrt(2 ln N))

- z is the cosine in standard deviations of all N that may be found, as one model's cosines lie from 0 to 1,
  another's above 0.7. It is multiplied by the bank's `dense_weight` and by how well the embeddings know the
  query's script (`memory/bank/search/fluency.py`).
- w is the part of the query's words that a record says (`memory/bank/search/keyword.py`), about 1 for all of
  them. Convex combinations beat fusions of ranks (Bruch, Gai and Ingber 2023, arXiv 2210.11934).
- A reply need not repeat what it replies to, so it gets a part of what its neighbours in the segment have: of
  w always, but for words that name a day, which its neighbours say by themselves; of z where a neighbour is
  nearer than chance would bring the nearest of N.
- Recency and importance each move the sum by 0.02 at most: they decide between equals.

The weights were chosen on the development parts of `experiments/quality/sets/parts.json`.
"""

from __future__ import annotations

import math
import sqlite3
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels.select import best
from scrubjay.memory.bank.file.record import Explanation
from scrubjay.memory.bank.search.candidates import Candidates, Row, held, neighbours
from scrubjay.memory.bank.search.dense import Scan
from scrubjay.memory.bank.search.filter import Filter
from scrubjay.memory.bank.search.keyword import match

_WORDS = 5.0
_WORDS_BESIDE = 0.5
_MEANING_BESIDE = 1.5
_LEAST_RARITY = 0.1  # beside embeddings, for which what most records say is no match
_SWAY = 0.02
_HALF_LIFE = 30 * 86400.0  # seconds in which recency halves
_DEPTH = 4
_LEAST_DEPTH = 64  # of each arm, whose neighbours may be found, too
_MATCHES = 2  # times the depth, as many may say the same words


class Found(NamedTuple):
    """A record that a search returns."""

    number: int
    score: float
    why: Explanation | None
    """Where it was asked for."""


def recall(
    connection: sqlite3.Connection,
    query: str,
    scan: Scan | None,
    dense_weight: float,
    filter: Filter,
    now: float,
    k: int,
    explain: bool,
) -> list[Found]:
    """Return the `k` best records, best first; of equals the newest.

    Args:
        connection: To the bank's file.
        query: The question.
        scan: How near records are to it; None for words alone.
        dense_weight: What a standard deviation of nearness counts.
        filter: Which records may be found.
        now: The moment, in seconds, at which a record is as old as it is.
        k: Records at most.
        explain: Whether to say why each came.
    """
    depth = max(_DEPTH * k, _LEAST_DEPTH)
    least_rarity = 0.0 if scan is None else _LEAST_RARITY
    said = match(connection, query, filter, _MATCHES * depth, least_rarity)
    rows = said.rows
    lending = rows[:depth]
    chance = 0.0
    if scan is not None:
        near = _nearest(connection, scan, filter, depth)
        chance = math.sqrt(2 * math.log(max(scan.count, 1)))
        z = dense_weight * scan.deviations(scan.cosines(_numbers(near)))
        lending += [row for row, one in zip(near, z, strict=True) if one > chance]
        rows += near
    found = Candidates.of([*rows, *neighbours(connection, lending, rows, filter)])
    numbers = found.numbers.tolist()
    w = np.array([said.part.get(number, 0.0) for number in numbers])
    lent = w if said.lent is said.part else np.array([said.lent.get(number, 0.0) for number in numbers])
    cosines = np.full(len(w), np.nan) if scan is None else scan.cosines(found.numbers)
    z = np.zeros(len(w)) if scan is None else dense_weight * np.nan_to_num(scan.deviations(cosines))
    drawn = np.maximum(found.before(z), found.after(z)) - chance
    from_words, from_embeddings = _WORDS * w, z
    from_neighbours = _WORDS * _WORDS_BESIDE * (found.before(lent) + found.after(lent))
    from_neighbours += _MEANING_BESIDE * np.maximum(drawn, 0.0)
    recency = _SWAY * (2 * 0.5 ** (np.maximum(now - found.renewed, 0.0) / _HALF_LIFE) - 1)
    importance = _SWAY * (2 * found.importance - 1)
    score = from_words + from_embeddings + from_neighbours + recency + importance
    chosen = _best(score, found.numbers, k)
    if not explain:
        return [Found(numbers[i], float(score[i]), None) for i in chosen]
    return [
        Found(
            numbers[i],
            float(score[i]),
            Explanation(
                keyword_rank=_rank(w, i) if w[i] else None,
                dense_rank=None if np.isnan(cosines[i]) else _rank(cosines, i),
                cosine=None if np.isnan(cosines[i]) else float(cosines[i]),
                from_words=float(from_words[i]),
                from_embeddings=float(from_embeddings[i]),
                from_neighbours=float(from_neighbours[i]),
                recency=float(recency[i]),
                importance=float(importance[i]),
            ),
        )
        for i in chosen
    ]


def nearest(connection: sqlite3.Connection, scan: Scan, filter: Filter, k: int) -> list[Found]:
    """Return the `k` records of the largest cosines, which are their scores; of equals the newest."""
    near = _numbers(_nearest(connection, scan, filter, k)[:k])
    return [
        Found(number, cosine, Explanation(None, rank, cosine, 0.0, cosine, 0.0, 0.0, 0.0))
        for rank, (number, cosine) in enumerate(
            zip(near.tolist(), scan.cosines(near).tolist(), strict=True), 1
        )
    ]


def _nearest(connection: sqlite3.Connection, scan: Scan, filter: Filter, count: int) -> list[Row]:
    """Return the rows of at least the `count` nearest that hold, the nearest first."""
    wanted = count
    while True:
        # What no longer holds is in the index still: look deeper until enough is left.
        near = scan.nearest(wanted).tolist()
        rows = held(connection, near, filter)
        if len(rows) >= count or len(near) < wanted:
            return rows
        wanted *= 4


def _numbers(rows: list[Row]) -> Int[np.ndarray, "R"]:
    return np.array([number for number, *_ in rows], dtype=np.int64)


def _rank(values: Float[np.ndarray, "R"], i: int) -> int:
    return 1 + int((values > values[i]).sum())


def _best(scores: Float[np.ndarray, "R"], numbers: Int[np.ndarray, "R"], k: int) -> list[int]:
    newest_first = np.argsort(-numbers)
    return newest_first[best(scores[newest_first], k)].tolist()
