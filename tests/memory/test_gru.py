"""The custom backward pass of a segment against torch's, up to second derivatives."""

from __future__ import annotations

import pytest
import torch

from scrubjay.memory.gru import _run_custom, _run_torch


def case(rate: float, batch: int = 3, time: int = 7, dim: int = 4) -> tuple[torch.Tensor, list[torch.Tensor]]:
    cell = torch.nn.GRUCell(dim, dim).double()
    weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
    x = torch.randn(batch, time, dim, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(batch, dim, dtype=torch.float64, requires_grad=True)
    return torch.rand(batch, time) < rate, [x, hidden, *weights]


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_outputs_and_gradients_are_those_of_torch(rate):
    start, (x, *rest) = case(rate)
    ours, theirs = _run_custom(x, start, *rest), _run_torch(x, start, *rest)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)
    along = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad(ours, [x, *rest], along),
        torch.autograd.grad(theirs, [x, *rest], along),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_gradients_and_their_gradients_are_finite_differences():
    start, (x, *rest) = case(0.3, batch=2, time=3, dim=2)
    start[1, 1] = True

    def run(x, *rest):
        return _run_custom(x, start, *rest)

    assert torch.autograd.gradcheck(run, (x, *rest))
    assert torch.autograd.gradgradcheck(run, (x, *rest))


def test_inputs_before_a_start_do_not_affect_outputs_after_it():
    start, (x, *rest) = case(0.0)
    start[0, 4] = True
    with_nan = x.detach().clone()
    with_nan[0, :4] = torch.nan
    torch.testing.assert_close(
        _run_custom(with_nan, start, *rest)[:, 4:], _run_custom(x, start, *rest)[:, 4:]
    )


def test_gradients_may_come_in_batches():
    start, (x, *rest) = case(0.3)
    y = _run_custom(x, start, *rest)
    along = torch.randn(4, *y.shape, dtype=y.dtype)
    together = torch.autograd.grad(y, [x, *rest], along, is_grads_batched=True, retain_graph=True)
    for index, grad in enumerate(along):
        alone = torch.autograd.grad(y, [x, *rest], grad, retain_graph=True)
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[index], other, rtol=0, atol=1e-12)
