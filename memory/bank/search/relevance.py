"""Relevance of a hit, from 0 to 1: how probably the record answers the query, comparable between searches.

    relevance = 1 / (1 + exp(4.52 - 1.03 e - 0.215 t))     words and embeddings
    relevance = 1 / (1 + exp(4.52 - 1.25 e))               words alone
    relevance = 1 / (1 + exp(3.27 - 0.421 t))              embeddings alone
    t = (cosine - top) / deviation

- e is the keyword score of a record (`memory/bank/search/keyword.py`) with rarities as in a bank of at least
  200 records, so that a word is no less rare in a small bank.
- top and deviation calibrate the model on the bank: they come from the cosines of twelve fixed questions of
  the query's script, which the bank does not answer. top is the mean of their largest cosines, and deviation
  that of all their cosines.

The numbers are logistic regressions on 23 sets with two models. Half of the queries belong to another set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from scrubjay.memory.bank.search.dense import Scan

MIN_RECORDS = 200
"""Least number of records of which the rarities of words are computed."""
_MIN_DEVIATION = 0.01  # cosines of the questions in a bank of few records


class QuestionLevel(NamedTuple):
    """Cosines of questions that a bank does not answer."""

    top: float
    """Mean of the largest cosine of each question."""
    deviation: float
    """Standard deviation of all cosines."""


def question_level(scans: Iterable[Scan]) -> QuestionLevel:
    """Return the level of the questions' scans."""
    tops, means, squares = [], [], []
    for scan in scans:
        if scan.count:
            tops.append(float(scan.cosines(scan.nearest(1))[0]))
            means.append(scan.mean)
            squares.append(scan.deviation**2 + scan.mean**2)
    if not tops:
        return QuestionLevel(0.0, 1.0)
    variance = float(np.mean(squares) - np.mean(means) ** 2)
    return QuestionLevel(float(np.mean(tops)), max(math.sqrt(max(variance, 0.0)), _MIN_DEVIATION))


def relevance(
    evidence: Float[np.ndarray, "R"] | None, cosines: Float[np.ndarray, "R"] | None, level: QuestionLevel
) -> Float[np.ndarray, "R"]:
    """Return the relevance of records.

    Args:
        evidence: Keyword scores of the records; None for a search by meaning alone.
        cosines: Cosines of the records, NaN for a record without an embedding; None for a search by words.
        level: Level of the cosines.
    """
    if cosines is None:
        cosines = np.full_like(evidence, np.nan)
    excess = (cosines - level.top) / level.deviation
    if evidence is None:
        logits = 0.421 * np.nan_to_num(excess, nan=-np.inf) - 3.27
    else:
        with_embeddings = 1.03 * evidence + 0.215 * excess - 4.52
        logits = np.where(np.isnan(excess), 1.25 * evidence - 4.52, with_embeddings)
    return 1 / (1 + np.exp(-np.clip(logits, -50.0, 50.0)))
