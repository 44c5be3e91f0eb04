"""Tests of the blockwise convolution and its backward pass against autograd."""

import pytest
import torch

from scrubjay.memory.titans import heads as heads_module
from scrubjay.memory.titans.heads import Convolution, compute_heads


def draw(taps, dtype=torch.float64):
    torch.manual_seed(0)
    projections = torch.randn(2, 23, 12, dtype=dtype, requires_grad=True)
    if not taps:
        return projections, None
    # The first row continues an episode and has one start just before and one just after a block boundary.
    step = torch.stack([torch.arange(23) + 9, torch.arange(23)])
    step[0, 4:], step[0, 11:] = torch.arange(19), torch.arange(12)
    weight = torch.randn(taps, 12, dtype=dtype, requires_grad=True)
    tail = torch.randn(2, taps - 1, 12, dtype=dtype, requires_grad=True)
    return projections, Convolution(weight, tail, step)


def run(monkeypatch, numbers, taps):
    monkeypatch.setattr(heads_module, "_BLOCK", numbers)
    projections, convolution = draw(taps)
    outputs = compute_heads(projections, 2, convolution).unbind(2)
    inputs = [projections, *(convolution or ())[:2]]
    weights = [torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out) for out in outputs]
    return outputs, torch.autograd.grad(outputs, inputs, weights)


@pytest.mark.parametrize("taps", [0, 2, 4])
@pytest.mark.parametrize("steps", [1, 2, 5, 23])
def test_blocks_equal_plain_operations(steps, taps, monkeypatch):
    result, gradients = run(monkeypatch, steps * 24, taps)
    monkeypatch.setattr(heads_module, "needs_plain_autograd", lambda *_: True)
    expected, expected_gradients = run(monkeypatch, 1, taps)
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("taps", [0, 2])
def test_second_derivatives_equal_finite_differences(taps, monkeypatch):
    monkeypatch.setattr(heads_module, "_BLOCK", 12 * 2)
    projections, convolution = draw(taps)
    inputs = [x.detach()[:1, :5].requires_grad_() for x in (projections, *(convolution or ())[1:2])]
    if convolution is not None:
        inputs.append(convolution.taps)

    def function(x, *filters):
        if convolution is None:
            return compute_heads(x, 2).unbind(2)
        tail, weight = filters
        return compute_heads(x, 2, Convolution(weight, tail, convolution.step[:1, :5])).unbind(2)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_half_precision_taps_have_gradients_of_their_own_type():
    projections, convolution = draw(4, torch.float32)
    assert convolution is not None
    weight = convolution.taps.detach().bfloat16().requires_grad_()
    outputs = compute_heads(projections, 2, convolution._replace(taps=weight))
    outputs.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.isfinite().all()
