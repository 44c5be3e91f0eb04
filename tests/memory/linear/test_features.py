"""What features multiply to."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.linear.features import Taylor
from scrubjay.memory.parts.unit import unit


@given(width=st.integers(1, 20), scale=st.floats(0, 30), seed=st.integers(0, 2**31))
def test_products_of_features_are_the_series_up_to_the_second_order(width, scale, seed):
    """1 + s + s^2 / 2, which is 1/2 at least, whatever query and key are."""
    generator = torch.Generator().manual_seed(seed)
    query, key = scale * torch.randn(2, 5, width, generator=generator, dtype=torch.float64)
    features = Taylor(width)
    found = features(query) @ features(key).T
    s = query @ key.T / width**0.5
    torch.testing.assert_close(found, 1 + s + s.square() / 2, rtol=1e-10, atol=1e-10 * (1 + scale**4))
    assert (1 + s + s.square() / 2 >= 0.5).all()
    assert (found >= 0.5 - 1e-10 * (1 + scale**4)).all()


@pytest.mark.parametrize(("width", "count"), [(1, 3), (2, 6), (8, 45), (16, 153)])
def test_no_feature_is_there_twice(width, count):
    features = Taylor(width)
    assert features.count == count
    found = features(torch.randn(400, width, dtype=torch.float64))
    assert found.shape == (400, count)
    assert torch.linalg.matrix_rank(found) == count


def test_features_keep_their_digits_under_autocast():
    features, x = Taylor(16), torch.randn(3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(x), features(x.clone()))
        found = features(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, features(x), rtol=0, atol=0)


@given(scale=st.floats(0, 1e6), seed=st.integers(0, 2**31))
def test_unit_vectors_are_as_long_as_one_or_shorter(scale, seed):
    x = scale * torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    length = unit(x).norm(dim=-1)
    assert (length <= 1 + 1e-12).all()
    assert ((length > 0.999) | (x.norm(dim=-1) < 0.03)).all()
