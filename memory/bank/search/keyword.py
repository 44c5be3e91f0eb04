"""Keyword search: the share of a query's words that a record contains, by BM25F.

    score = sum over words of idf * (k + 1) t / (t + k)
    t = sum over fields f of weight_f * count_f / (1 - b_f + b_f * length_f / mean length_f)

BM25F (Robertson, Zaragoza and Taylor 2004; Robertson and Zaragoza 2009, section 3.6) adds the counts of a
word in the fields of a record before it saturates them. The sum is divided by the sum of the words' inverse
document frequencies (rarities), so that scores of short and long queries are comparable.
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

_SATURATION = 1.2
_LENGTH_SHARE = 0.75  # of a text's length in the weight of its words
_FIELDS = {Field.TEXT: 1.0, Field.DATE: 0.8}
"""Weights of the fields that a search reads. A text that names a day is nearer to it than one of that day."""
NEIGHBOUR_SHARE = 0.5
"""Share of the words of the previous and of the next record that counts for a record."""
_MIN_RARITY = 1e-6  # rarity of a word in more than half of the records


class KeywordMatches(NamedTuple):
    """Keyword scores of the records that contain words of a query."""

    numbers: Int[np.ndarray, "M"]
    """Numbers of the records that contain a word, ascending."""
    coverage: Float[np.ndarray, "M"]
    """Share of the query's words that a record contains, weighted by rarity."""
    neighbour_coverage: Float[np.ndarray, "M"]
    """The same share without words in the date of a record. A fraction of it is added to the scores of the
    records right before and after, about which the date says nothing."""
    rows: list[Row]
    """Rows of the best matches, and of the best sums of a match and its neighbours, in any order."""

    def of(self, numbers: Int[np.ndarray, "R"]) -> Float[np.ndarray, "2 R"]:
        """Return `coverage` and `neighbour_coverage` of records; 0 for a record without a word."""
        if not len(self.numbers):
            return np.zeros((2, len(numbers)))
        places = np.minimum(np.searchsorted(self.numbers, numbers), len(self.numbers) - 1)
        scores = np.stack([self.coverage[places], self.neighbour_coverage[places]])
        return np.where(self.numbers[places] == numbers, scores, 0.0)


def match_keywords(
    connection: sqlite3.Connection, query: str, filter: Filter, count: int, min_rarity: float
) -> KeywordMatches:
    """Return the keyword scores of a query, and the rows of the best valid matches.

    At least `count` rows are returned, or all valid matches if there are fewer. Of records with equal scores
    the newest are returned. Scores are divided by the sum of the rarities of the query's words, or by
    `min_rarity` if this sum is smaller.
    """
    index = WordIndex(connection)
    denominators = {
        Field.TEXT: 1 - _LENGTH_SHARE + _LENGTH_SHARE * LENGTHS / index.mean_length,
        Field.DATE: np.ones_like(LENGTHS),
    }
    scores = np.zeros((2, index.size))  # of all fields, and without dates
    total_rarity = 0.0
    for term in query_terms(query):
        postings = {field: entries for field, entries in index.read(term).items() if field in _FIELDS}
        positions, *frequencies = _weigh(postings, denominators)
        rarity = _rarity(len(positions), index.records)
        total_rarity += rarity
        for one, frequency in zip(scores, frequencies, strict=True):
            one[positions] += rarity * (_SATURATION + 1) * frequency / (frequency + _SATURATION)
    is_accepted = _scope_mask(index, filter)
    positions = np.flatnonzero(scores[0] if is_accepted is None else (scores[0] > 0) & is_accepted)
    numbers = index.numbers(positions)
    shares = scores[:, positions] / max(total_rarity, min_rarity)
    newest_first = numbers[::-1]
    # Most neighbours have the previous or the next number. A search reads the rows of the others, too.
    sums = scores[0, positions].copy()
    for step in (-1, 1):
        sums += NEIGHBOUR_SHARE * scores[1].take(positions + step, mode="clip")

    def find_best(depth: int) -> list[int]:
        ranking = [best(values[::-1], depth) for values in (scores[0, positions], sums)]
        return newest_first[np.unique(np.concatenate(ranking))].tolist()

    rows = select_enough(connection, find_best, filter, count)
    return KeywordMatches(numbers, shares[0], shares[1], rows)


def _weigh(
    postings: Mapping[Field, Postings], denominators: Mapping[Field, Float[np.ndarray, "256"]]
) -> tuple[Int[np.ndarray, "R"], Float[np.ndarray, "R"], Float[np.ndarray, "R"]]:
    """Return the positions of a term's records, and its weighted counts in all fields and without the date.

    `denominators` has the divisor of a count for each code of a length, by field.
    """
    if not postings:
        return np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros(0)
    frequencies = [
        _FIELDS[field] * entries.counts / denominators[field][entries.lengths]
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
