"""Products of decays inside a chunk, against their definition."""

import pytest
import torch

from scrubjay.kernels.linear.fading import fade, pairs, pull_back, ties


def between(decay):
    """Return `[N, R, C, C, F]`: the product of decays behind j up to i, zero where j is behind i."""
    length = decay.shape[2]
    whole = torch.zeros(*decay.shape[:2], length, length, decay.shape[-1], dtype=decay.dtype)
    for i in range(length):
        for j in range(i + 1):
            whole[:, :, i, j] = decay[:, :, j + 1 : i + 1].prod(dim=2)
    return whole


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
def test_what_is_left_of_all_there_was_at_all_times(length):
    decay, *_ = draw(length, 1, 1)
    fading, right = fade(decay), between(decay)
    torch.testing.assert_close(ties(fading), right[..., 0])
    torch.testing.assert_close(fading.until, right[:, :, -1])
    torch.testing.assert_close(fading.since, decay.cumprod(2))
    torch.testing.assert_close(fading.whole[..., 0], decay.prod(2))
    if length > 1:
        half = length // 2
        assert not ties(fading)[1, :, half:, :half].any()


@pytest.mark.parametrize("length", [1, 2, 8, 32])
@pytest.mark.parametrize("factors", [1, 4])
def test_faded_products_and_their_gradients(length, factors):
    decay, x, y, grad = draw(length, 4, factors)
    z = x.flip(2)
    fading = fade(decay)
    tied = ties(fading) if factors == 1 else None
    lefts = [part.requires_grad_() for part in (x, z)]
    y.requires_grad_()
    found = pairs(fading, tied, lefts, y)
    for matrix, left in zip(found, lefts, strict=True):
        right = (left[..., :, None, :] * y[..., None, :, :] * between(decay)).sum(-1)
        torch.testing.assert_close(matrix, right)
    owed = [grad, grad.mT.clone()]
    expected = torch.autograd.grad(found, [*lefts, y], owed)
    with torch.no_grad():
        of_lefts, of_right = pull_back(fading, tied, owed, lefts, y)
    for ours, exact in zip([*of_lefts, of_right], expected, strict=True):
        torch.testing.assert_close(ours, exact)


def test_faint_factors_are_none():
    fading = fade(torch.full((1, 1, 32, 1), 1e-3))
    for factors in (ties(fading), fading.since, fading.until):
        assert not ((factors != 0) & (factors < 1e-30)).any()
        assert (factors == 0).any()
