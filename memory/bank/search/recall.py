"""Ranking of records by keywords, embedding similarity, and the scores of adjacent turns.

    s = w + 0.65 a z
    a = mean length / 125, at least 1 and at most 2
    score = s + 0.3 (max(0, s1 - h) + max(0, s2 - h))

- w is the keyword score of the record divided by the root of its largest value for the query
  (`memory/bank/search/keyword.py`).
- z is the z-score of the record's cosine among all N accepted records. A z-score is used because the range of
  cosines depends on the model: 0 to 1 for some, above 0.7 for others. z is multiplied by the bank's
  `dense_weight` and by the model's fluency in the query's script (`memory/bank/embedding_model.py`). w and z
  are added, since convex combinations outperform rank fusion (Bruch, Gai and Ingber 2023, arXiv 2210.11934).
- a is larger in a bank of long texts, where words match by chance. Lengths are in words.
- s1 and s2 belong to the previous and the next turn of the same conversation. They count because a reply need
  not repeat the words of its question. They leave out words of the date, since each record has the words of
  its own date. Passages of documents and records of other kinds have no adjacent turns.
- Recency and importance each change the score by at most 0.02: they break ties. With a `half_life` the score
  of a record also halves with each such time since its last statement.

The constants were chosen on eleven public data sets with two embedding models, and compared on twelve others.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels.select import best
from scrubjay.memory.bank.record import DAY, Explanation
from scrubjay.memory.bank.search.candidates import Candidates, Filter, Row, neighbours, select_enough
from scrubjay.memory.bank.search.dense import Scan
from scrubjay.memory.bank.search.keyword import NEIGHBOUR_SHARE, match_keywords
from scrubjay.memory.bank.search.relevance import MIN_RECORDS, QuestionLevel, relevance

_MEANING_WEIGHT = 0.65
_SHORT_TEXT = 125  # words; the weight of embeddings grows with the mean length above this one
_MAX_LENGTH_FACTOR = 2.0
_MIN_RARITY = 0.1  # with embeddings; words in most records then count as no match
_MAX_BONUS = 0.02
_HALF_LIFE = 30 * DAY  # seconds in which recency halves
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
    relevance: float | None = None
    """Relevance from 0 to 1; None unless requested."""


def recall(
    connection: sqlite3.Connection,
    query: str,
    scan: Scan | None,
    dense_weight: float,
    filter: Filter,
    now: float,
    k: int,
    explain: bool,
    extra: int = 0,
    level: QuestionLevel | None = None,
    half_life: float | None = None,
    deeper: int = 1,
) -> list[RankedRecord]:
    """Return the `k` best records and the `extra` next ones, best first; ties: newest first.

    Args:
        connection: Connection to the bank's file.
        query: Words or a question.
        scan: Similarities of records to the query; None for keywords alone.
        dense_weight: Factor of the z-scores of cosine similarities.
        filter: Filter on records.
        now: Current time in seconds, from which the age of records is computed.
        k: Maximum number of records.
        explain: Return the parts of each score.
        extra: Number of further records. They do not change the `k` best ones.
        level: Level of cosines from which the relevance of each record is computed; None computes none.
        half_life: Seconds in which the score of a record halves; None for no decay.
        deeper: Factor of the number of candidates.
    """
    depth = deeper * max(_DEPTH * k, _MIN_DEPTH)
    min_rarity = 0.0 if scan is None else _MIN_RARITY
    count, min_records = deeper * max(_MATCHES * k, _MIN_MATCHES), 0 if level is None else MIN_RECORDS
    matches = match_keywords(connection, query, filter, count, min_rarity, min_records)
    rows = matches.rows
    lenders = list(rows)
    # Largest score of a record that is no candidate, without those of adjacent turns.
    bound = 0.0
    if half_life is not None and len(rows) >= count:
        bound = np.sort(matches.of(_numbers(rows))[0])[-count] + 2 * _MAX_BONUS
    z_weight = _MEANING_WEIGHT * dense_weight
    z_weight *= min(max(matches.mean_length / _SHORT_TEXT, 1.0), _MAX_LENGTH_FACTOR)
    if scan is not None:
        near_rows = _nearest_rows(connection, scan, filter, depth)
        z = z_weight * scan.deviations(scan.cosines(_numbers(near_rows)))
        lenders += [row for row, value in zip(near_rows, z, strict=True) if value > z.max() / 2]
        bound += 0.0 if len(near_rows) < depth else max(z[-1], 0.0) + 2 * _MAX_BONUS
        rows += near_rows
    candidates = Candidates.from_rows([*rows, *neighbours(connection, lenders, rows, filter)])
    numbers = candidates.numbers.tolist()
    w, w_without_date, evidence = matches.of(candidates.numbers)
    cosines = np.full(len(w), np.nan) if scan is None else scan.cosines(candidates.numbers)
    z = np.zeros(len(w))
    if scan is not None:
        z = z_weight * np.nan_to_num(scan.deviations(cosines))
    excess = np.maximum(w_without_date + z - (w + z).max(initial=0.0) / 2, 0.0)
    from_neighbours = NEIGHBOUR_SHARE * candidates.neighbour_values(excess).sum(axis=0)
    age = np.maximum(now - candidates.renewed, 0.0)
    recency = _MAX_BONUS * (2 * 0.5 ** (age / _HALF_LIFE) - 1)
    importance = _MAX_BONUS * (2 * candidates.importance - 1)
    score = w + z + from_neighbours + recency + importance
    if half_life is not None:
        decay = np.maximum(score, 0.0) * (0.5 ** (age / half_life) - 1)
        recency, score = recency + decay, score + decay
        # A new record may overtake more old ones than there are candidates.
        if bound > 0.0 and (len(score) < k or np.sort(score)[-k] < bound):
            return recall(
                connection,
                query,
                scan,
                dense_weight,
                filter,
                now,
                k,
                explain,
                extra,
                level,
                half_life,
                4 * deeper,
            )
    best_indices = _best_indices(score, candidates.numbers, k + extra)
    relevances = None if level is None else relevance(evidence, None if scan is None else cosines, level)
    if not explain and relevances is None:
        return [RankedRecord(numbers[i], float(score[i]), None) for i in best_indices]
    return [
        RankedRecord(
            numbers[i],
            float(score[i]),
            Explanation(
                keyword_rank=_rank(matches.scores, w[i]) if w[i] else None,
                dense_rank=None if np.isnan(cosines[i]) else _rank(cosines, cosines[i]),
                cosine=None if np.isnan(cosines[i]) else float(cosines[i]),
                from_words=float(w[i]),
                from_embeddings=float(z[i]),
                from_neighbours=float(from_neighbours[i]),
                recency=float(recency[i]),
                importance=float(importance[i]),
            )
            if explain
            else None,
            None if relevances is None else float(relevances[i]),
        )
        for i in best_indices
    ]


def rank_by_cosine(
    connection: sqlite3.Connection, scan: Scan, filter: Filter, k: int, level: QuestionLevel | None = None
) -> list[RankedRecord]:
    """Return the `k` records with the largest cosines; ties: newest first. The cosines are the scores.

    The relevance is computed if `level` is not None.
    """
    near_numbers = _numbers(_nearest_rows(connection, scan, filter, k)[:k])
    cosines = scan.cosines(near_numbers)
    relevances = [None] * len(cosines) if level is None else relevance(None, cosines, level).tolist()
    return [
        RankedRecord(number, cosine, Explanation(None, rank, cosine, 0.0, cosine, 0.0, 0.0, 0.0), one)
        for rank, (number, cosine, one) in enumerate(
            zip(near_numbers.tolist(), cosines.tolist(), relevances, strict=True), 1
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
