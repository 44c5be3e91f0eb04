"""The choice of chunks and records in a search."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.bank.search.choice import best_chunks, best_records


def test_chunks_that_are_not_allowed_or_have_no_score_are_not_chosen():
    scores = np.array([0.5, math.nan, 0.9, 0.5, -math.inf, 0.7])
    assert best_chunks(scores, 9).tolist() == [2, 5, 0, 3]
    allowed = np.array([True, True, False, True, True, True])
    assert best_chunks(scores, 2, allowed).tolist() == [5, 0]
    assert best_chunks(np.zeros(0), 2).tolist() == []


@given(
    scores=st.dictionaries(st.integers(1, 99), st.sampled_from([0.0, 0.25, 1.0]), max_size=30),
    count=st.integers(1, 40),
)
def test_of_equal_records_the_newest_come_first(scores, count):
    expected = sorted(scores, key=lambda number: (scores[number], number), reverse=True)[:count]
    assert best_records(scores, count) == expected
