"""Ranking of records by embedding similarity, keyword coverage, and the scores of their neighbours.

    score = z + 5 (w + (w1 + w2) / 2) + 1.5 max(0, max(z1, z2) - sqrt(2 ln N))

- z is the embedding similarity: the z-score of the record's cosine among all N accepted records. A z-score is
  used because the range of cosines depends on the model: 0 to 1 for some, above 0.7 for others. z is
  multiplied by the bank's `dense_weight` and by the model's fluency in the query's script
  (`memory/bank/embedding_model.py`).
- w is the share of the query's words that the record contains (`memory/bank/search/keyword.py`), about 1 for
  all words. z and w are added, since convex combinations outperform rank fusion (Bruch, Gai and Ingber 2023,
  arXiv 2210.11934).
- w1, w2, z1 and z2 belong to the neighbours: the previous and the next record of the same chunk. Neighbours
  count because a reply need not repeat the words of its question. w1 and w2 leave out date words, since each
  record contains the words of its own date. z1 and z2 count only above sqrt(2 ln N), the expected maximum of
  N random z-scores.
- Recency and importance each change the score by at most 0.02: they break ties.

The weights were tuned on the development parts of `experiments/answers/parts.json`.
"""

from __future__ import annotations

import math
import sqlite3
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels.select import best
from scrubjay.memory.bank.record import Explanation
from scrubjay.memory.bank.search.candidates import Candidates, Filter, Row, neighbours, select_enough
from scrubjay.memory.bank.search.dense import Scan
from scrubjay.memory.bank.search.keyword import NEIGHBOUR_SHARE, match_keywords

_WORD_WEIGHT = 5.0
_NEIGHBOUR_MEANING = 1.5
_MIN_RARITY = 0.1  # with embeddings; words in most records then count as no match
_MAX_BONUS = 0.02
_HALF_LIFE = 30 * 86400.0  # seconds in which recency halves
_DEPTH = 4  # nearest records per requested record
_MIN_DEPTH = 64  # nearest records, before neighbours are added
_MATCHES = 2  # best matches of words, and best sums with their neighbours, per requested record
_MIN_MATCHES = 24


class RankedRecord(NamedTuple):
    """Search result: the number of a record and its score."""

    number: int
    score: float
    explanation: Explanation | None
    """Parts of the score; None unless requested."""


def recall(
    connection: sqlite3.Connection,
    query: str,
    scan: Scan | None,
    dense_weight: float,
    filter: Filter,
    now: float,
    k: int,
    explain: bool,
) -> list[RankedRecord]:
    """Return the `k` best records, best first; ties: newest first.

    Args:
        connection: Connection to the bank's file.
        query: Words or a question.
        scan: Similarities of records to the query; None for keywords alone.
        dense_weight: Factor of the z-scores of cosine similarities.
        filter: Filter on records.
        now: Current time in seconds, from which the age of records is computed.
        k: Maximum number of records.
        explain: Return the parts of each score.
    """
    depth = max(_DEPTH * k, _MIN_DEPTH)
    min_rarity = 0.0 if scan is None else _MIN_RARITY
    matches = match_keywords(connection, query, filter, max(_MATCHES * k, _MIN_MATCHES), min_rarity)
    rows = matches.rows
    lenders = list(rows)
    chance = 0.0
    if scan is not None:
        near_rows = _nearest_rows(connection, scan, filter, depth)
        chance = math.sqrt(2 * math.log(max(scan.count, 1)))
        z = dense_weight * scan.deviations(scan.cosines(_numbers(near_rows)))
        lenders += [row for row, row_score in zip(near_rows, z, strict=True) if row_score > chance]
        rows += near_rows
    candidates = Candidates.from_rows([*rows, *neighbours(connection, lenders, rows, filter)])
    numbers = candidates.numbers.tolist()
    w, w_for_neighbours = matches.of(candidates.numbers)
    cosines = np.full(len(w), np.nan) if scan is None else scan.cosines(candidates.numbers)
    z = np.zeros(len(w)) if scan is None else dense_weight * np.nan_to_num(scan.deviations(cosines))
    neighbour_excess = candidates.neighbour_values(z).max(axis=0) - chance
    from_words, from_embeddings = _WORD_WEIGHT * w, z
    neighbour_words = candidates.neighbour_values(w_for_neighbours).sum(axis=0)
    from_neighbours = _WORD_WEIGHT * NEIGHBOUR_SHARE * neighbour_words
    from_neighbours += _NEIGHBOUR_MEANING * np.maximum(neighbour_excess, 0.0)
    recency = _MAX_BONUS * (2 * 0.5 ** (np.maximum(now - candidates.renewed, 0.0) / _HALF_LIFE) - 1)
    importance = _MAX_BONUS * (2 * candidates.importance - 1)
    score = from_words + from_embeddings + from_neighbours + recency + importance
    best_indices = _best_indices(score, candidates.numbers, k)
    if not explain:
        return [RankedRecord(numbers[i], float(score[i]), None) for i in best_indices]
    return [
        RankedRecord(
            numbers[i],
            float(score[i]),
            Explanation(
                keyword_rank=_rank(matches.coverage, w[i]) if w[i] else None,
                dense_rank=None if np.isnan(cosines[i]) else _rank(cosines, cosines[i]),
                cosine=None if np.isnan(cosines[i]) else float(cosines[i]),
                from_words=float(from_words[i]),
                from_embeddings=float(from_embeddings[i]),
                from_neighbours=float(from_neighbours[i]),
                recency=float(recency[i]),
                importance=float(importance[i]),
            ),
        )
        for i in best_indices
    ]


def rank_by_cosine(connection: sqlite3.Connection, scan: Scan, filter: Filter, k: int) -> list[RankedRecord]:
    """Return the `k` records with the largest cosines; ties: newest first. The cosines are the scores."""
    near_numbers = _numbers(_nearest_rows(connection, scan, filter, k)[:k])
    return [
        RankedRecord(number, cosine, Explanation(None, rank, cosine, 0.0, cosine, 0.0, 0.0, 0.0))
        for rank, (number, cosine) in enumerate(
            zip(near_numbers.tolist(), scan.cosines(near_numbers).tolist(), strict=True), 1
        )
    ]


def _nearest_rows(connection: sqlite3.Connection, scan: Scan, filter: Filter, count: int) -> list[Row]:
    """Return the rows of at least the `count` nearest valid records, nearest first."""
    return select_enough(connection, lambda depth: scan.nearest(depth).tolist(), filter, count)


def _numbers(rows: list[Row]) -> Int[np.ndarray, "R"]:
    return np.array([number for number, *_ in rows], dtype=np.int64)


def _rank(values: Float[np.ndarray, "R"], value: float) -> int:
    return 1 + int((values > value).sum())


def _best_indices(scores: Float[np.ndarray, "R"], numbers: Int[np.ndarray, "R"], k: int) -> list[int]:
    newest_first = np.argsort(-numbers)
    return newest_first[best(scores[newest_first], k)].tolist()
