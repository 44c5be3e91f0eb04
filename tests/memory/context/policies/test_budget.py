"""Budget split: it uses the whole total in proportion, and budgets only fall when layers are added."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.context.policies.budget import split_budget


@st.composite
def layers(draw):
    """Draw a total, preferences, columns and the least budget."""
    count, least = draw(st.integers(1, 8)), draw(st.integers(0, 6))
    preference = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 1e6), st.floats(0, 1e-3))
    preferences = draw(st.lists(preference, min_size=count, max_size=count))
    columns = draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
    total = least * count + draw(st.integers(0, 40 * count))
    return total, preferences, columns, least


@given(layers())
def test_the_total_is_split_within_bounds(case):
    total, _, columns, least = case
    shares = split_budget(*case)
    assert sum(shares) == total
    most = [max(count, least) for count in columns]
    assert all(least <= each for each in shares)
    if total <= sum(most):
        assert all(each <= bound for each, bound in zip(shares, most, strict=True))
    else:
        over = [each - bound for each, bound in zip(shares, most, strict=True)]
        assert max(over) - min(over) <= 1


@given(layers())
def test_no_layer_keeps_more_when_another_joins_in(case):
    total, preferences, columns, least = case
    before = columns
    for prefix in range(1, len(columns) + 1):
        shares = split_budget(total, preferences[:prefix], columns[:prefix], least)
        assert all(new <= max(old, least) for new, old in zip(shares, before[:prefix], strict=True)) or (
            total > sum(max(count, least) for count in columns[:prefix])
        )
        before = [min(pair) for pair in zip(shares, columns, strict=False)] + columns[prefix:]


@given(
    preferences=st.lists(st.integers(1, 1000), min_size=1, max_size=6),
    least=st.integers(0, 5),
    more=st.integers(0, 60),
)
def test_no_token_would_be_better_kept_by_another_layer(preferences, least, more):
    columns = [60 - 7 * index for index in range(len(preferences))]
    total = min(least * len(preferences) + more, sum(columns))
    shares = split_budget(total, preferences, columns, least)
    # Webster's method: the next token of a layer gains its preference divided by its tokens plus a half.
    next_gains = [
        want / (has + 0.5)
        for want, has, bound in zip(preferences, shares, columns, strict=True)
        if has < bound
    ]
    last_gains = [want / (has - 0.5) for want, has in zip(preferences, shares, strict=True) if has > least]
    assert max(next_gains, default=0) <= min(last_gains, default=float("inf")) * (1 + 1e-9)


def test_equal_and_zero_preferences():
    for preference in (0.0, 0.3, 1e-320, 1e300):
        assert split_budget(4 * 13, [preference] * 4, [50] * 4, 3) == [13] * 4
    assert split_budget(40, [0.0, 1.0, 0.0], [30, 20, 30], 2) == [10, 20, 10]
    assert split_budget(100, [1.0, 3.0], [200, 200], 4) == [25, 75]


def test_invalid_totals_and_preferences_are_reported():
    with pytest.raises(ValueError, match="total=11: must be at least 12, since each of the 3 layers needs"):
        split_budget(11, [1.0] * 3, [50] * 3, 4)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            split_budget(40, [1.0, wrong], [50, 50], 4)
