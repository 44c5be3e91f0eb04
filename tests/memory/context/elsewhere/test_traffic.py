"""Traffic and break-even length in numbers that can be checked by hand."""

import math

import pytest

from scrubjay.memory.context.elsewhere import (
    Link,
    count_break_even_tokens,
    count_traffic,
    estimate_seconds,
)
from scrubjay.memory.context.policies.base import CacheShape

SHAPE = CacheShape(layers=3, batch=1, heads=4, key_heads=2, key_width=8, value_width=8, itemsize=2)


def test_a_token_sends_its_queries_to_each_store_and_its_keys_once():
    one = 3 * (4 * 8 * 2 + 4 * (8 + 1) * 4)
    assert count_traffic(SHAPE, 1) == one + 3 * 2 * 16 * 2
    assert count_traffic(SHAPE, 5) == 5 * one + 3 * 2 * 16 * 2


def test_at_the_break_even_length_both_places_take_the_same_time():
    link = Link(round_trip=1e-4, bandwidth=1e9, model_bandwidth=1e9, store_bandwidth=1e9)
    tokens = count_break_even_tokens(SHAPE, 4, link)
    here = tokens * SHAPE.token_bytes / link.model_bandwidth
    there = (
        3 * link.round_trip
        + count_traffic(SHAPE, 4) / link.bandwidth
        + tokens * SHAPE.token_bytes / (4 * link.store_bandwidth)
    )
    assert here == pytest.approx(there)
    assert estimate_seconds(SHAPE, 4, link, int(tokens)) == pytest.approx((here, there), rel=1e-3)
    assert count_break_even_tokens(SHAPE, 1, link) == math.inf
