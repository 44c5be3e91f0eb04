"""Keyword search by BM25F.

    score = sum over words of idf * (k + 1) t / (t + k) / sqrt(sum over words of idf)
    t = count / (1 - b + b * length / mean length) + .8 [word in date] + [word in title] + [word in speaker]

BM25F (Robertson, Zaragoza and Taylor 2004; Robertson and Zaragoza 2009, section 3.6) adds the counts of a
word in the fields of a record before it saturates them. k is .6 and b is .75. The sum is divided by the root
of the sum of the words' inverse document frequencies (rarities). A record with all words then has a score
near this root, so that a long query outweighs embeddings and a word that many records contain does not.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from scrubjay.kernels.select import best
from scrubjay.memory.bank.file.postings import LENGTHS, Field, Postings, WordIndex, scope_word
from scrubjay.memory.bank.file.words import Term, query_terms
from scrubjay.memory.bank.search.candidates import Filter, Row, select_enough

_SATURATION = 0.6
_LENGTH_SHARE = 0.75  # of a text's length in the weight of its words
_DATE_WEIGHT = 0.8  # below 1: a text that names a day is nearer to the day than one that was observed on it
_FIELDS = (Field.TEXT, Field.DATE, Field.TITLE, Field.SPEAKER)
NEIGHBOUR_SHARE = 0.3
"""Share of its score above half the best score that a turn adds to the previous and to the next turn."""
_MIN_EVIDENCE_RARITY = 0.1
_MIN_RARITY = 1e-6  # rarity of a word in more than half of the records


class KeywordMatches(NamedTuple):
    """Keyword scores of the records that contain words of a query."""

    numbers: Int[np.ndarray, "M"]
    """Numbers of the records that contain a word, ascending."""
    scores: Float[np.ndarray, "M"]
    """Scores by BM25F."""
    scores_without_date: Float[np.ndarray, "M"]
    """Scores without the words of a record's date, which say nothing of the turns before and after."""
    evidence: Float[np.ndarray, "M"]
    """Scores with the rarities of `min_records` records or more."""
    rows: list[Row]
    """Rows of the best matches, and of the best sums of a match and its neighbours, in any order."""
    mean_length: float
    """Mean number of words of a text in the bank."""

    def of(self, numbers: Int[np.ndarray, "R"]) -> Float[np.ndarray, "3 R"]:
        """Return `scores`, `scores_without_date` and `evidence` of records; 0 for a record without a word."""
        if not len(self.numbers):
            return np.zeros((3, len(numbers)))
        places = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        scores = np.stack([self.scores[places], self.scores_without_date[places], self.evidence[places]])
        return np.where(self.numbers[places] == numbers, scores, 0.0)


def match_keywords(
    connection: sqlite3.Connection,
    query: str,
    filter: Filter,
    count: int,
    min_rarity: float,
    min_records: int = 0,
) -> KeywordMatches:
    """Return the keyword scores of a query, and the rows of the best valid matches.

    At least `count` rows are returned, or all valid matches if there are fewer. Of records with equal scores
    the newest are returned. Scores are divided by the root of the sum of the rarities of the query's words. A
    sum below 1 divides without the root, and is at least `min_rarity`.

    Args:
        connection: Connection to the bank's file.
        query: Words or a question.
        filter: Filter on records.
        count: Least number of rows.
        min_rarity: Least sum of rarities.
        min_records: Least number of records for the rarities of `evidence`; 0 leaves the evidence at 0.
    """
    index = WordIndex(connection)
    denominators = 1 - _LENGTH_SHARE + _LENGTH_SHARE * LENGTHS / index.mean_length
    scores = np.zeros((2, index.size))  # of all fields, and without dates
    evidence = np.zeros(index.size if min_records else 0)
    total_rarity = evidence_rarity = 0.0
    for term in query_terms(query):
        postings = {field: entries for field, entries in index.read(term).items() if field in _FIELDS}
        positions, *frequencies = _weigh(postings, denominators)
        rarity = _rarity(len(positions), index.records)
        total_rarity += rarity
        for one, frequency in zip(scores, frequencies, strict=True):
            one[positions] += rarity * _saturate(frequency)
        if min_records:
            rarity = _rarity(len(positions), max(index.records, min_records))
            evidence_rarity += rarity
            evidence[positions] += rarity * _saturate(frequencies[0])
    is_accepted = _scope_mask(index, filter)
    positions = np.flatnonzero(scores[0] if is_accepted is None else (scores[0] > 0) & is_accepted)
    numbers = index.numbers(positions)
    # Where words are common, as in a bank of few records, scores must not vanish against recency.
    scores /= math.sqrt(total_rarity) if total_rarity > 1 else max(total_rarity, min_rarity, _MIN_RARITY)
    newest_first = numbers[::-1]
    # Most neighbours have the previous or the next number. A search reads the rows of the others, too.
    sums = scores[0, positions].copy()
    half = sums.max(initial=0.0) / 2
    for step in (-1, 1):
        excess = scores[1].take(positions + step, mode="clip") - half
        sums += NEIGHBOUR_SHARE * np.maximum(excess, 0.0)

    def find_best(depth: int) -> list[int]:
        ranking = [best(values[::-1], depth) for values in (scores[0, positions], sums)]
        return newest_first[np.unique(np.concatenate(ranking))].tolist()

    rows = select_enough(connection, find_best, filter, count)
    evidence = evidence[positions] if min_records else np.zeros(len(positions))
    evidence /= math.sqrt(max(evidence_rarity, _MIN_EVIDENCE_RARITY))
    every, without_date = scores[:, positions]
    return KeywordMatches(numbers, every, without_date, evidence, rows, index.mean_length)


def _weigh(
    postings: Mapping[Field, Postings], denominators: Float[np.ndarray, "256"]
) -> tuple[Int[np.ndarray, "R"], Float[np.ndarray, "R"], Float[np.ndarray, "R"]]:
    """Return the positions of a term's records, and its weighted counts in all fields and without the date.

    `denominators` has the divisor of a count in a text for each code of a length.
    """
    if not postings:
        return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)
    frequencies = [
        entries.counts / denominators[entries.lengths]
        if field is Field.TEXT
        else np.minimum(entries.counts, 1) * (_DATE_WEIGHT if field is Field.DATE else 1.0)
        for field, entries in postings.items()
    ]
    if len(postings) == 1 and (entries := next(iter(postings.values()))).are_distinct:
        frequency = frequencies[0]
        return entries.positions, frequency, np.zeros_like(frequency) if Field.DATE in postings else frequency
    positions, places = np.unique(
        np.concatenate([entries.positions for entries in postings.values()]), return_inverse=True
    )
    without_date = [
        np.zeros_like(values) if field is Field.DATE else values
        for field, values in zip(postings, frequencies, strict=True)
    ]
    all_fields, others = (np.bincount(places, np.concatenate(parts)) for parts in (frequencies, without_date))
    return positions, all_fields, others


def _saturate(frequency: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    return (_SATURATION + 1) * frequency / (frequency + _SATURATION)


def _scope_mask(index: WordIndex, filter: Filter) -> Bool[np.ndarray, "S"] | None:
    """Return True for the positions of records in the filter's kinds and namespace; None accepts all."""
    mask: np.ndarray | None = None
    for names in filter.scopes():
        kind_mask = np.zeros(index.size, dtype=bool)
        entries = index.read(Term(tuple(scope_word(name) for name in names))).get(Field.SCOPE)
        if entries is not None:
            kind_mask[entries.positions] = True
        mask = kind_mask if mask is None else mask & kind_mask
    return mask


def _rarity(count: int, records: int) -> float:
    return math.log((records - count + 0.5) / (count + 0.5)) if 2 * count < records else _MIN_RARITY
