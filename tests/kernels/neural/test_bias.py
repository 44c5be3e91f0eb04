"""Losses of neural memories: their gradients compared with autograd, and their limits."""

from typing import Any

import pytest
import torch

from scrubjay.kernels.neural.bias import Huber, Power, SquaredError


def errors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(size, threshold):
    """Return the Huber loss: half the square of `size` up to the threshold, then linear with equal slope."""
    return torch.where(size <= threshold, size.square() / 2, threshold * (size - threshold / 2))


LOSSES: dict[Any, Any] = {
    SquaredError(): lambda e, d: e.square().sum() / 2,
    Power(2.0): lambda e, d: e.square().sum(),
    Huber(): lambda e, d: huber(torch.linalg.vector_norm(e, dim=-1, keepdim=True), d).sum(),
    Huber("coordinate"): lambda e, d: huber(e.abs(), d).sum(),
}


@pytest.mark.parametrize("bias", LOSSES, ids=str)
def test_the_gradient_is_that_of_the_loss(bias):
    error, threshold = errors(50, 3), errors(50, 1, seed=1).abs() + 0.5
    gradient = bias.gradient(error, threshold)
    torch.testing.assert_close(
        gradient, torch.func.grad(LOSSES[bias])(error, threshold), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("exponent", [1.0, 1.5, 3.0, 4.0])
def test_a_power_is_smooth_and_exact_away_from_zero(exponent):
    error = errors(50, 3)
    error = error.sign() * (error.abs() + 1)
    exact = torch.func.grad(lambda e: e.abs().pow(exponent).sum())(error)
    torch.testing.assert_close(Power(exponent, 100.0).gradient(error, None), exact, rtol=1e-5, atol=0)
    assert torch.autograd.gradcheck(
        lambda e: Power(exponent).gradient(e, None), (errors(5, 3).mul(1e-2).requires_grad_(),)
    )
    assert not Power(exponent).gradient(torch.zeros(3), None).any()


@pytest.mark.parametrize("measure", ["norm", "coordinate"])
def test_no_gradient_exceeds_its_threshold(measure):
    error, threshold = errors(50, 3) * 1e6, errors(50, 1, seed=1).abs()
    pull = Huber(measure).gradient(error, threshold)
    if measure == "norm":
        length = torch.linalg.vector_norm(pull, dim=-1, keepdim=True)
        torch.testing.assert_close(length, threshold)
        torch.testing.assert_close(pull * error.norm(dim=-1, keepdim=True), error * threshold)
    else:
        torch.testing.assert_close(pull, error.sign() * threshold)


@pytest.mark.parametrize("measure", ["norm", "coordinate"])
def test_an_infinite_threshold_changes_nothing_and_gradients_are_finite(measure):
    error = torch.cat([errors(5, 3), torch.zeros(1, 3, dtype=torch.float64)]).requires_grad_()
    infinite = torch.full((6, 1), torch.inf, dtype=torch.float64, requires_grad=True)
    pull = Huber(measure).gradient(error, infinite)
    assert torch.equal(pull, error)
    gradients = torch.autograd.grad(pull.square().sum() / 2, [error, infinite])
    assert torch.equal(gradients[0], error)
    assert not gradients[1].any()


def test_derivatives_of_huber_equal_finite_differences_twice():
    error, threshold = errors(8, 3).requires_grad_(), errors(8, 1, seed=1).abs().add(0.5).requires_grad_()
    for measure in ("norm", "coordinate"):
        assert torch.autograd.gradcheck(Huber(measure).gradient, (error, threshold))
        assert torch.autograd.gradgradcheck(Huber(measure).gradient, (error, threshold))


def test_impossible_biases_are_named():
    for exponent in (0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"exponent={exponent}: must be at least 1 and finite"):
            Power(exponent)
    for sharpness in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"sharpness={sharpness}: must be positive and finite"):
            Power(sharpness=sharpness)
    with pytest.raises(ValueError, match="measure='max'; choose from norm, coordinate"):
        Huber("max")  # pyright: ignore[reportArgumentType]
