"""Products of decays inside a chunk, compared with their definition."""

import pytest
import torch

from scrubjay.kernels.linear.decay import (
    backward_pair_products,
    compute_pair_decays,
    compute_pair_products,
    multiply_decays,
)


def between(decay):
    """Return `[N, R, C, C, F]`: the product of decays after j up to i, zero if j is after i."""
    length = decay.shape[2]
    chunk_decay = torch.zeros(*decay.shape[:2], length, length, decay.shape[-1], dtype=decay.dtype)
    for i in range(length):
        for j in range(i + 1):
            chunk_decay[:, :, i, j] = decay[:, :, j + 1 : i + 1].prod(dim=2)
    return chunk_decay


def draw(length, width, factors):
    generator = torch.Generator().manual_seed(length)
    decay = torch.rand(2, 3, length, factors, generator=generator, dtype=torch.float64)
    decay[1, :, length // 2] = 0
    x, y, grad = (
        torch.randn(2, 3, length, size, generator=generator, dtype=torch.float64)
        for size in (width, width, length)
    )
    return decay, x, y, grad


@pytest.mark.parametrize("length", [1, 2, 8, 32])
def test_decay_products_equal_their_definition(length):
    decay, *_ = draw(length, 1, 1)
    decay_products, right = multiply_decays(decay), between(decay)
    torch.testing.assert_close(compute_pair_decays(decay_products), right[..., 0])
    torch.testing.assert_close(decay_products.to_end, right[:, :, -1])
    torch.testing.assert_close(decay_products.from_start, decay.cumprod(2))
    torch.testing.assert_close(decay_products.chunk_decay[..., 0], decay.prod(2))
    if length > 1:
        half = length // 2
        assert not compute_pair_decays(decay_products)[1, :, half:, :half].any()


@pytest.mark.parametrize("length", [1, 2, 8, 32])
@pytest.mark.parametrize("factors", [1, 4])
def test_decayed_products_and_their_gradients(length, factors):
    decay, x, y, grad = draw(length, 4, factors)
    z = x.flip(2)
    decay_products = multiply_decays(decay)
    pair_decays = compute_pair_decays(decay_products) if factors == 1 else None
    lefts = [part.requires_grad_() for part in (x, z)]
    y.requires_grad_()
    products = compute_pair_products(decay_products, pair_decays, lefts, y)
    for matrix, left in zip(products, lefts, strict=True):
        right = (left[..., :, None, :] * y[..., None, :, :] * between(decay)).sum(-1)
        torch.testing.assert_close(matrix, right)
    grads = [grad, grad.mT.clone()]
    expected = torch.autograd.grad(products, [*lefts, y], grads)
    with torch.no_grad():
        grad_lefts, grad_right = backward_pair_products(decay_products, pair_decays, grads, lefts, y)
    for actual, exact in zip([*grad_lefts, grad_right], expected, strict=True):
        torch.testing.assert_close(actual, exact)


def test_negligible_factors_are_zero():
    decay_products = multiply_decays(torch.full((1, 1, 32, 1), 1e-3))
    for factors in (compute_pair_decays(decay_products), decay_products.from_start, decay_products.to_end):
        assert not ((factors != 0) & (factors < 1e-30)).any()
        assert (factors == 0).any()
