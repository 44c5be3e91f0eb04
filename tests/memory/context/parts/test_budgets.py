"""Shares of a total: all of it, in proportion, and only falling when layers join one after the other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.context.parts.budgets import share


@st.composite
def layers(draw):
    """Draw a total, preferences, columns and the least that a layer keeps."""
    count, least = draw(st.integers(1, 8)), draw(st.integers(0, 6))
    wanted = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 1e6), st.floats(0, 1e-3))
    preferences = draw(st.lists(wanted, min_size=count, max_size=count))
    columns = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
    total = least * count + draw(st.integers(0, 40 * count))
    return total, preferences, columns, least


@given(layers())
def test_all_is_shared_out_within_bounds(drawn):
    total, _, columns, least = drawn
    shares = share(*drawn)
    assert sum(shares) == total
    most = [max(count, least) for count in columns]
    assert all(least <= each for each in shares)
    if total <= sum(most):
        assert all(each <= bound for each, bound in zip(shares, most, strict=True))
    else:
        over = [each - bound for each, bound in zip(shares, most, strict=True)]
        assert max(over) - min(over) <= 1


@given(layers())
def test_no_layer_keeps_more_when_another_joins_in(drawn):
    total, preferences, columns, least = drawn
    before = columns
    for seen in range(1, len(columns) + 1):
        shares = share(total, preferences[:seen], columns[:seen], least)
        assert all(now <= max(then, least) for now, then in zip(shares, before[:seen], strict=True)) or (
            total > sum(max(count, least) for count in columns[:seen])
        )
        before = [min(pair) for pair in zip(shares, columns, strict=False)] + columns[seen:]


@given(
    preferences=st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    least=st.integers(0, 5),
    more=st.integers(0, 60),
)
def test_no_token_would_be_better_kept_by_another_layer(preferences, least, more):
    columns = [60 - 7 * index for index in range(len(preferences))]
    total = min(least * len(preferences) + more, sum(columns))
    shares = share(total, preferences, columns, least)
    # Webster's: a layer's next token is worth its preference by what it has, and a half.
    owed = [
        want / (has + 0.5)
        for want, has, bound in zip(preferences, shares, columns, strict=True)
        if has < bound
    ]
    got = [want / (has - 0.5) for want, has in zip(preferences, shares, strict=True) if has > least]
    assert max(owed, default=0) <= min(got, default=float("inf")) * (1 + 1e-9)


def test_equal_preferences_share_evenly_and_nothing_is_shared_like_something():
    for wanted in (0.0, 0.3, 1e-320, 1e300):
        assert share(4 * 13, [wanted] * 4, [50] * 4, 3) == [13] * 4
    assert share(40, [0.0, 1.0, 0.0], [30, 20, 30], 2) == [10, 20, 10]
    assert share(100, [1.0, 3.0], [200, 200], 4) == [25, 75]


def test_what_cannot_be_shared_is_told():
    with pytest.raises(ValueError, match="total=11: 3 layers need at least 4"):
        share(11, [1.0] * 3, [50] * 3, 4)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            share(40, [1.0, wrong], [50, 50], 4)
