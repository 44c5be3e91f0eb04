"""Tests of the Taylor features."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.linear.taylor import Taylor
from scrubjay.memory.parts.layers import normalize_vectors


@given(width=st.integers(1, 20), scale=st.floats(0, 30), seed=st.integers(0, 2**31))
def test_products_of_features_are_the_series_up_to_the_second_order(width, scale, seed):
    """The series is 1 + s + s^2 / 2, at least 1/2 for any query and key."""
    generator = torch.Generator().manual_seed(seed)
    query, key = scale * torch.randn(2, 5, width, generator=generator, dtype=torch.float64)
    features = Taylor(width)
    result = features(query) @ features(key).T
    s = query @ key.T / width**0.5
    torch.testing.assert_close(result, 1 + s + s.square() / 2, rtol=1e-10, atol=1e-10 * (1 + scale**4))
    assert (1 + s + s.square() / 2 >= 0.5).all()
    assert (result >= 0.5 - 1e-10 * (1 + scale**4)).all()


@pytest.mark.parametrize(("width", "count"), [(1, 3), (2, 6), (8, 45), (16, 153)])
def test_no_feature_is_there_twice(width, count):
    features = Taylor(width)
    assert features.count == count
    result = features(torch.randn(400, width, dtype=torch.float64))
    assert result.shape == (400, count)
    assert torch.linalg.matrix_rank(result) == count


def test_features_keep_their_digits_under_autocast():
    features, x = Taylor(16), torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(x), features(x.clone()))
        result = features(x)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, features(x), rtol=0, atol=0)


@given(scale=st.floats(0, 1e6), seed=st.integers(0, 2**31))
def test_unit_vectors_are_as_long_as_one_or_shorter(scale, seed):
    x = scale * torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    length = normalize_vectors(x).norm(dim=-1)
    assert (length <= 1 + 1e-12).all()
    assert ((length > 0.999) | (x.norm(dim=-1) < 0.03)).all()
