from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs.random_streams import RowStreams

ALL = np.arange(4)


def streams_at(positions):
    streams = RowStreams(len(positions), np.random.default_rng(0))
    streams.position[:] = positions
    return streams


def test_published_splitmix64_sequence():
    words = streams_at(np.array([1234567], dtype=np.uint64)).words(np.array([0]), 5)[0]
    assert words.tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), cut=st.integers(1, 19))
def test_draws_of_a_row_do_not_depend_on_calls_or_other_rows(seed, cut):
    whole, cut_up = (RowStreams(4, np.random.default_rng(seed)) for _ in range(2))
    expected = whole.words(ALL, 20)
    first = cut_up.words(np.array([2]), cut)
    cut_up.words(np.array([0, 3]), 7)
    second = cut_up.words(np.array([2, 1]), 20 - cut)
    np.testing.assert_array_equal(np.concatenate([first[0], second[0]]), expected[2])
    np.testing.assert_array_equal(second[1], expected[1, : 20 - cut])


@pytest.mark.parametrize("high", [1, 2, 3, 10, 52])
def test_integers_are_uniform(high):
    draws = RowStreams(4, np.random.default_rng(1)).integers(ALL, high, 20_000)
    counts = np.bincount(draws.ravel(), minlength=high)
    assert len(counts) == high
    # Five standard deviations of a binomial count, and chance is fixed by the seed.
    p = 1 / high
    assert np.abs(counts - 80_000 * p).max() <= 5 * np.sqrt(80_000 * p * (1 - p))


def test_permutations_are_permutations_and_uniform():
    streams = RowStreams(1000, np.random.default_rng(2))
    rows = np.arange(1000)
    draws = np.concatenate([streams.permutations(rows, 3) for _ in range(12)])
    assert (np.sort(draws, axis=1) == np.arange(3)).all()
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert np.abs(counts - 2000).max() <= 5 * np.sqrt(12_000 * (1 / 6) * (5 / 6))


def test_neighbouring_rows_are_uncorrelated():
    words = RowStreams(4, np.random.default_rng(3)).words(ALL, 50_000)
    uniform = words.astype(np.float64) / 2**64 - 0.5
    correlation = np.corrcoef(uniform) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(50_000)
