"""Units of values, and the steps that they cost."""

import pytest
from jinja2.utils import Namespace

from scrubjay.memory.context.foreign.meter import (
    MAX_BITS,
    MAX_DEPTH,
    NODE,
    TemplateLimitError,
    measure,
    metering,
    size,
    spend,
    width,
)


def test_a_step_pays_for_64_units():
    with metering(10) as meter:
        spend()
        spend(63)
        spend(64)
        assert meter.remaining == 6
        with pytest.raises(TemplateLimitError, match="more than 10 steps"):
            spend(1000)


def test_nothing_is_spent_outside_a_rendering():
    with pytest.raises(LookupError):
        spend()


def test_a_value_counts_each_time_it_occurs():
    inner = ["abc", 1]
    with metering(1000):
        assert size("abc") == 3
        assert size(inner) == 2 * NODE * 2 + 3 + 1
        assert size([inner, inner]) == 2 * NODE * 2 + 2 * size(inner)
        assert size({"a": "bc"}) == NODE + 2 * NODE + 3
        assert size(Namespace(a="bc")) == 1 + 2 * NODE + 3
        assert measure([[[]]]) == (2 * NODE * 2, 3)
        assert width({"a": "bc"}) == NODE


def test_deep_and_huge_values_are_refused():
    deep: list = []
    for _ in range(MAX_DEPTH + 2):
        deep = [deep]
    with metering(10**9):
        with pytest.raises(TemplateLimitError, match="levels deep"):
            size(deep)
        with pytest.raises(TemplateLimitError, match="bits"):
            size([1 << MAX_BITS])
    with metering(10), pytest.raises(TemplateLimitError, match="more than 10 steps"):
        size([1] * 1000)
