"""The segment by hand against torch's own, once and twice differentiated."""

from __future__ import annotations

import pytest
import torch

from scrubjay.memory.gru import _by_hand, _by_torch


def case(rate: float, batch: int = 3, time: int = 7, dim: int = 4) -> tuple[torch.Tensor, list[torch.Tensor]]:
    cell = torch.nn.GRUCell(dim, dim).double()
    weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
    x = torch.randn(batch, time, dim, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(batch, dim, dtype=torch.float64, requires_grad=True)
    return torch.rand(batch, time) < rate, [x, hidden, *weights]


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_outputs_and_gradients_are_those_of_torch(rate):
    start, (x, *rest) = case(rate)
    ours, theirs = _by_hand(x, start, *rest), _by_torch(x, start, *rest)
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
        return _by_hand(x, start, *rest)

    assert torch.autograd.gradcheck(run, (x, *rest))
    assert torch.autograd.gradgradcheck(run, (x, *rest))


def test_what_came_before_a_start_reaches_nothing_after_it():
    start, (x, *rest) = case(0.0)
    start[0, 4] = True
    spoiled = x.detach().clone()
    spoiled[0, :4] = torch.nan
    torch.testing.assert_close(_by_hand(spoiled, start, *rest)[:, 4:], _by_hand(x, start, *rest)[:, 4:])


def test_gradients_may_come_in_batches():
    start, (x, *rest) = case(0.3)
    y = _by_hand(x, start, *rest)
    along = torch.randn(4, *y.shape, dtype=y.dtype)
    together = torch.autograd.grad(y, [x, *rest], along, is_grads_batched=True, retain_graph=True)
    for index, grad in enumerate(along):
        alone = torch.autograd.grad(y, [x, *rest], grad, retain_graph=True)
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[index], other, rtol=0, atol=1e-12)
