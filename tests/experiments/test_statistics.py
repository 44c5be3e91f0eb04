from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.experiments.statistics import (
    bootstrap_interval,
    format_spread,
    interquartile_mean,
    normal_interval,
    wilson_interval,
)


def test_interquartile_mean_by_hand():
    assert interquartile_mean([100, 1, 2, 3, 4, 5, 6, -50]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean([0, 0, 3]) == pytest.approx(1)
    assert np.isnan(interquartile_mean([np.nan, 0, 0, 3]))
    with pytest.raises(ValueError, match="no scores"):
        interquartile_mean([])


def test_a_spread_in_words_is_the_mean_of_few_with_the_least_and_the_most():
    assert format_spread([0.25, 1.0, 0.5]) == "0.583 [0.250, 1.000]"


@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=40), st.floats(-10, 10), st.floats(0.1, 10))
def test_interquartile_mean_moves_and_scales_with_its_scores(scores, shift, scale):
    scaled_mean = interquartile_mean(np.array(scores) * scale + shift)
    assert scaled_mean == pytest.approx(interquartile_mean(scores) * scale + shift, abs=1e-6)


def test_bootstrap_of_the_mean_has_the_standard_error_of_the_mean():
    scores = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(scores, statistic=lambda values: float(values.mean()))
    error = scores.std() / np.sqrt(len(scores))
    assert low == pytest.approx(scores.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(scores.mean() + 1.96 * error, abs=0.15 * error)


def test_bootstrap_is_stratified():
    # Each task's runs agree, so within-task resampling cannot move the mean; pooled resampling would.
    scores = np.array([[0.0, 1.0, 5.0]] * 4)
    mean = pytest.approx(2.0)
    assert bootstrap_interval(scores, statistic=lambda values: float(values.mean())) == (mean, mean)


def test_wilson_by_hand():
    low, high = wilson_interval(0, 10)
    assert (low, high) == (0, pytest.approx(1.959964**2 / (10 + 1.959964**2)))
    assert wilson_interval(10, 10) == (pytest.approx(1 - high), 1)
    with pytest.raises(ValueError, match="11 successes in 10"):
        wilson_interval(11, 10)


@given(st.integers(1, 500), st.data())
def test_wilson_solves_its_quadratic_and_contains_the_share(trials, data):
    successes = data.draw(st.integers(0, trials))
    share = successes / trials
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert (share - end) ** 2 == pytest.approx(
                1.959964**2 * end * (1 - end) / trials, rel=1e-4, abs=1e-9
            )


def test_normal_interval_by_hand():
    low, high = normal_interval([1, 2, 3, 4])
    half = 1.959964 * np.sqrt(5 / 3) / 2
    assert (low, high) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))
    assert normal_interval([7]) == (7, 7)
