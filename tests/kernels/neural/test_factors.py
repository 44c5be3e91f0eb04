"""Coefficients of matrix memories: equal to the learning rule, with gradients equal to autograd."""

import pytest
import torch

from scrubjay.kernels.neural.factors import Factors
from scrubjay.kernels.neural.loop import compute_coefficients


def draw():
    torch.manual_seed(0)
    shape = (3, 2, 5)
    valid_tokens = torch.rand(shape) < 0.8
    valid_tokens[0, 0, 1] = valid_tokens[1, 1, 2] = True
    logs = [(-torch.rand(shape, dtype=torch.float64) * 2).masked_fill(~valid_tokens, 0) for _ in range(2)]
    # One gate of each kind is below the smallest log decay.
    logs[0][0, 0, 1] = logs[1][1, 1, 2] = -90
    return valid_tokens, logs[1], logs[0]


@pytest.mark.parametrize("read_before_write", [True, False])
def test_factors_and_their_gradients_equal_the_rule(read_before_write):
    valid_tokens, log_retention, log_momentum = draw()
    factors = Factors.from_gates(log_retention, log_momentum, valid_tokens, read_before_write)
    gates = log_retention, log_momentum
    logs = [x.clone().requires_grad_() for x in gates]
    rule = compute_coefficients(logs[0], logs[1], valid_tokens, read_before_write)
    ends = torch.stack([rule.end_retention, rule.end_momentum_retention], dim=-1)[..., 0, 0, :]
    expected = (rule.read_retention, rule.read_buildup, rule.end_mixing, rule.end_trace)
    coefficients = (factors.read_retention, factors.read_buildup, factors.end_mixing, factors.end_trace)
    for one, other in zip(coefficients, expected, strict=True):
        torch.testing.assert_close(one, other[..., 0])
    torch.testing.assert_close(factors.read_mixing, rule.read_mixing)
    torch.testing.assert_close(factors.ends, ends)
    torch.testing.assert_close(factors.end_buildup, rule.end_buildup[..., 0, 0])

    output_grads = [
        torch.randn_like(x) for x in (*coefficients[:2], factors.read_mixing, *coefficients[2:], factors.ends)
    ]
    buildup_grad = torch.randn_like(factors.end_buildup)
    outputs = (*(x[..., 0] for x in expected[:2]), rule.read_mixing, *(x[..., 0] for x in expected[2:]), ends)
    grad_ends = torch.zeros(*factors.ends.shape[:2], 2, 2, dtype=torch.float64)
    grad_ends[..., 0, 0], grad_ends[..., 1, 1], grad_ends[..., 0, 1] = (
        *output_grads[5].unbind(-1),
        buildup_grad,
    )
    expected_grads = torch.autograd.grad(
        [*outputs, rule.end_buildup[..., 0, 0]], [logs[1], logs[0]], [*output_grads, buildup_grad]
    )
    retention, buildup, mixing, end_mixing, trace = output_grads[:5]
    log_grads = factors.backward(
        *gates, read_before_write, retention, buildup, mixing, end_mixing, trace, grad_ends
    )
    torch.testing.assert_close(log_grads, list(expected_grads), rtol=1e-12, atol=1e-12)
