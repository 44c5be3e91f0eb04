"""The network inside a neural memory, and the rule by which its tokens add up."""

import itertools

import pytest
import torch

from scrubjay.kernels.neural.network import (
    NetworkShape,
    backward_pass,
    clipped_step,
    error_share,
    flushed,
    forward_pass,
    pack,
    residual_gradient,
    rule,
    unpack,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(widths, residual=False, norm=False):
    weights = [normal(2, a, b, seed=i) for i, (a, b) in enumerate(itertools.pairwise(widths))]
    return weights, NetworkShape.of(weights, residual, norm)


def test_packing_is_undone_by_unpacking():
    weights, shape = network([3, 5, 4, 3])
    assert shape.size == pack(weights).shape[-1] == 3 * 5 + 5 * 4 + 4 * 3
    for packed, weight in zip(unpack(pack(weights), shape), weights, strict=True):
        assert torch.equal(packed, weight)


def test_layers_that_do_not_chain_make_no_network():
    with pytest.raises(ValueError, match="do not make a network"):
        NetworkShape.of([torch.zeros(1, 3, 4), torch.zeros(1, 5, 3)], residual=False, norm=False)
    with pytest.raises(ValueError, match="do not make a network"):
        NetworkShape.of([], residual=False, norm=False)


@pytest.mark.parametrize("widths", [[3, 3], [3, 5, 3], [3, 5, 4, 3]], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_the_backward_pass_by_hand_is_autograds(widths, residual, norm):
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
    share = error_share(torch.full((2, 6, 1), -0.5, dtype=torch.float64), chunk_size=4)
    torch.testing.assert_close(share, (1 - torch.full_like(share, -0.5).exp()) / 4)
    most = share * error.square().sum(-1, keepdim=True)
    for size in (1e-6, 10.0):
        step, squared = clipped_step(torch.full_like(share, size), share, error, error, inputs, deltas, shape)
        assert (step * squared <= most * (1 + 1e-12)).all()
        assert (step == size).all() == (size < 1)


@pytest.mark.parametrize("skipped", [False, True])
def test_the_closed_form_is_the_recurrence(skipped):
    retention, momentum = -normal(5).abs(), -normal(5, seed=1).abs()
    valid = torch.tensor([True, False, True, True, False]) if skipped else torch.ones(5, dtype=torch.bool)
    retention, momentum = retention * valid, momentum * valid
    steps = normal(5, seed=2) * valid
    first_delta, first_momentum = normal(2, seed=3)
    closed = rule(retention, momentum, valid)
    delta, speed = first_delta, first_momentum
    for t in range(5):
        if valid[t]:
            speed = momentum[t].exp() * speed - steps[t]
            delta = retention[t].exp() * delta + speed
        # Token j's step is in delta by row t of the mixture.
        found = closed.retained[t] * first_delta + closed.built[t] * first_momentum - closed.mixed[t] @ steps
        torch.testing.assert_close(found, delta)
    torch.testing.assert_close(closed.kept[-1] * first_momentum - closed.trace @ steps, speed)


def test_what_is_flushed_is_zero_and_its_gradient_passes():
    x = torch.tensor([1e-31, -1e-31, 1e-29, 2.0], requires_grad=True)
    y = flushed(x)
    assert y.tolist() == [0.0, 0.0, x[2].item(), 2.0]
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.tolist() == [1.0] * 4
