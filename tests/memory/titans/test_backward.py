"""Tests of the custom backward pass of a segment against autograd, for all orders."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

SEGMENTS = {
    "dim": st.sampled_from([8, 12, 24]),
    "chunk_size": st.sampled_from([1, 2, 5, 8]),
    "num_persistent": st.sampled_from([0, 3]),
    "num_heads": st.sampled_from([1, 2]),
    "bptt_chunks": st.sampled_from([None, None, 1, 2]),
    "num_layers": st.sampled_from([1, 2]),
    "read_before_write": st.booleans(),
    "time": st.sampled_from([1, 2, 7, 20]),
    "lengths": st.lists(st.sampled_from([1, 3, 8]), max_size=2),
    "rate": st.sampled_from([0, 0.05, 0.3]),
    "seed": st.integers(0, 1000),
}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(**SEGMENTS)
def test_gradients_are_those_of_plain_operations(trial, plainly, close, **fields):
    case = trial(**fields)
    close(case.gradients(), plainly(case.gradients))


@pytest.mark.parametrize("output", ["y", "delta_0", "momentum_0", "anchor_0", "keys_0", "values_0"])
def test_gradients_of_one_output_alone(trial, plainly, close, output):
    case = trial([3], 11, 0.1, 5, dim=8, chunk_size=4)
    close(case.gradients(outputs=output), plainly(case.gradients, outputs=output))


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 3])
def test_further_derivatives_go_the_plain_way(trial, plainly, close, order):
    case = trial([3], 6, 0.2, 3, dim=8, chunk_size=4, num_persistent=1)
    close(case.gradients(order), plainly(case.gradients, order), 1e-8)


@pytest.mark.slow
def test_gradients_equal_finite_differences(trial):
    case = trial([3], 6, 0.2, 4, dim=8, chunk_size=4, num_persistent=1)

    def function(x, keys, delta):
        y, after = case.module(x, case.state | {"keys_0": keys, "delta_0": delta}, case.start)
        return y, after["anchor_0"], after["values_0"]

    inputs = [case.x, case.state["keys_0"], case.state["delta_0"]]
    inputs = [x.clone().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_gradients_come_again(trial):
    case = trial([3], 11, 0.1, 4, dim=8, chunk_size=4)
    x = case.x.requires_grad_()
    y, _ = case.module(x, case.state, case.start)
    grads = [torch.autograd.grad(y, x, y.detach(), retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*grads)


def test_transforms_of_functions_pass(trial):
    case = trial([3], 11, 0.1, 6, dim=8, chunk_size=4)

    def loss(x):
        return case.module(x, case.state, case.start)[0].square().sum()

    (expected,) = torch.autograd.grad(loss(case.x.requires_grad_()), case.x)
    x = case.x.detach()
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    direction = torch.ones_like(x)
    jvp = torch.func.jvp(loss, (x,), (direction,))
    torch.testing.assert_close(jvp[1], (expected * direction).sum())
