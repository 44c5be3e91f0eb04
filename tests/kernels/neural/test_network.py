"""The network inside a neural memory, and the closed form of its learning rule."""

import itertools

import pytest
import torch

from scrubjay.kernels.neural.factors import Factors
from scrubjay.kernels.neural.network import (
    NetworkShape,
    backward_pass,
    clip_step,
    compute_error_share,
    flush_denormals,
    forward_pass,
    pack,
    residual_gradient,
    unpack,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(widths, residual=False, norm=False):
    weights = [normal(2, a, b, seed=i) for i, (a, b) in enumerate(itertools.pairwise(widths))]
    return weights, NetworkShape.from_weights(weights, residual, norm)


def test_packing_is_undone_by_unpacking():
    weights, shape = network([3, 5, 4, 3])
    assert shape.size == pack(weights).shape[-1] == 3 * 5 + 5 * 4 + 4 * 3
    for layer, weight in zip(unpack(pack(weights), shape), weights, strict=True):
        assert torch.equal(layer, weight)


def test_widths_that_do_not_match_raise():
    with pytest.raises(ValueError, match="do not form a network"):
        NetworkShape.from_weights([torch.zeros(1, 3, 4), torch.zeros(1, 5, 3)], residual=False, norm=False)
    with pytest.raises(ValueError, match="do not form a network"):
        NetworkShape.from_weights([], residual=False, norm=False)


@pytest.mark.parametrize("widths", [[3, 3], [3, 5, 3], [3, 5, 4, 3]], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_the_backward_pass_equals_autograd(widths, residual, norm):
    weights, shape = network(widths, residual, norm)
    key, value = normal(2, 6, 3, seed=7), normal(2, 6, 3, seed=8)
    leaves = [weight.requires_grad_() for weight in weights]
    inputs, products, prediction = forward_pass(key, leaves, shape)
    exact = torch.autograd.grad(0.5 * (prediction - value).square().sum(), leaves)
    deltas = backward_pass(residual_gradient(prediction - value, None, shape), products, leaves, shape)
    for x, delta, gradient in zip(inputs, deltas, exact, strict=True):
        torch.testing.assert_close(x.mT @ delta, gradient)


def test_a_clipped_step_removes_no_more_than_its_share_of_the_error():
    weights, shape = network([3, 5, 3])
    inputs, products, prediction = forward_pass(normal(2, 6, 3, seed=7), weights, shape)
    error = prediction - normal(2, 6, 3, seed=8)
    deltas = backward_pass(error, products, weights, shape)
    share = compute_error_share(torch.full((2, 6, 1), -0.5, dtype=torch.float64), chunk_size=4)
    torch.testing.assert_close(share, (1 - torch.full_like(share, -0.5).exp()) / 4)
    bound = share * error.square().sum(-1, keepdim=True)
    for size in (1e-6, 10.0):
        step, squared_norm = clip_step(
            torch.full_like(share, size), share, error, error, inputs, deltas, shape
        )
        assert (step * squared_norm <= bound * (1 + 1e-12)).all()
        assert (step == size).all() == (size < 1)


@pytest.mark.parametrize("skips", [False, True])
def test_the_closed_form_is_the_recurrence(skips):
    log_retention, log_momentum = -normal(5).abs(), -normal(5, seed=1).abs()
    valid = torch.tensor([True, False, True, True, False]) if skips else torch.ones(5, dtype=torch.bool)
    log_retention, log_momentum = log_retention * valid, log_momentum * valid
    steps = normal(5, seed=2) * valid
    first_delta, first_momentum = normal(2, seed=3)
    factors = Factors.from_gates(log_retention, log_momentum, valid, read_before_write=False)
    delta, speed = first_delta, first_momentum
    for t in range(5):
        if valid[t]:
            speed = log_momentum[t].exp() * speed - steps[t]
            delta = log_retention[t].exp() * delta + speed
        # Row t of `mixing` holds the share of each token's step in delta.
        expected_delta = (
            factors.read_retention[t] * first_delta
            + factors.read_buildup[t] * first_momentum
            - factors.read_mixing[t] @ steps
        )
        torch.testing.assert_close(expected_delta, delta)
    torch.testing.assert_close(factors.ends[1] * first_momentum - factors.end_trace @ steps, speed)


def test_flushed_values_are_zero_and_their_gradient_passes():
    x = torch.tensor([1e-31, -1e-31, 1e-29, 2.0], requires_grad=True)
    y = flush_denormals(x)
    assert y.tolist() == [0.0, 0.0, x[2].item(), 2.0]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [1.0] * 4
