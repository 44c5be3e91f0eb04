"""Attention outputs merged by their log-sum-exp equal one softmax over all keys."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.kernels import merge
from scrubjay.kernels.normalisers import log_normaliser, softmax_or_zero


def read(scores, values):
    return softmax_or_zero(scores) @ values, log_normaliser(scores)


@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    absent=st.floats(0, 1),
)
def test_parts_of_a_set_merge_to_the_whole(seed, sizes, absent):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, sum(sizes), generator=generator, dtype=torch.float64) * 4
    scores = scores.masked_fill(torch.rand(scores.shape, generator=generator) < absent, -math.inf)
    values = torch.randn(sum(sizes), 2, generator=generator, dtype=torch.float64)
    parts = [read(s, v) for s, v in zip(scores.split(sizes, 1), values.split(sizes, 0), strict=True)]
    whole, lse = read(scores, values)
    torch.testing.assert_close(merge(parts), whole)
    # Parts of parts: the normaliser of a merged pair is the logarithm of the sum.
    if len(parts) > 2:
        pair = (merge(parts[:2]), torch.logaddexp(parts[0][1], parts[1][1]))
        torch.testing.assert_close(merge([pair, *parts[2:]]), whole)
    torch.testing.assert_close(log_normaliser(torch.stack([part[1] for part in parts], dim=-1)), lse)


def test_all_parts_empty_give_exact_zeros_and_no_gradient():
    outs = [torch.full((2, 3), math.nan, requires_grad=True), torch.ones(2, 3, requires_grad=True)]
    lses = [torch.full((2,), -math.inf, requires_grad=True), torch.full((2,), -math.inf, requires_grad=True)]
    output = merge(list(zip(outs, lses, strict=True)))
    assert (output == 0).all()
    output.sum().backward()
    assert all((tensor.grad == 0).all() for tensor in (*outs, *lses))


def test_gradients_flow_through_read_outs_and_normalisers():
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in [(2, 3), (2,), (2, 3), (2,)]
    ]

    def merge_parts(first, its_lse, second, other_lse):
        empty = (torch.zeros_like(first), torch.full_like(its_lse, -math.inf))
        return merge([(first, its_lse), (second, other_lse), empty])

    assert torch.autograd.gradcheck(merge_parts, tensors)
    assert torch.autograd.gradgradcheck(merge_parts, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_keep_their_dtype(dtype):
    parts = [
        (torch.ones(4, 8, dtype=dtype), torch.zeros(4)),
        (torch.zeros(4, 8, dtype=dtype), torch.zeros(4)),
    ]
    assert merge(parts).dtype == dtype
    assert (merge(parts) == 0.5).all()


def test_invalid_parts_are_named():
    with pytest.raises(ValueError, match="no parts"):
        merge([])
    with pytest.raises(ValueError, match=r"lse of \(3,\)"):
        merge([(torch.zeros(2, 4), torch.zeros(3))])
    with pytest.raises(ValueError, match=r"shape \(2, 5\)"):
        merge([(torch.zeros(2, 4), torch.zeros(2)), (torch.zeros(2, 5), torch.zeros(2))])
