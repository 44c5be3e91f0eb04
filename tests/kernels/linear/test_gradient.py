"""The gradient of linear memory by hand: exact, differentiable again, the same by parts."""

import pytest
import torch

from scrubjay.kernels import linear_memory
from scrubjay.kernels.linear import gradient

TENSORS = ("query", "key", "value", "log_decay", "step", "state")
WAYS = [(rule, channel) for rule in ("hebbian", "delta") for channel in (False, True)]


def of_tensors(arguments, **options):
    rest = {name: value for name, value in arguments.items() if name not in TENSORS} | options
    return lambda *given: linear_memory(*given, **rest)


def leaves(arguments):
    return [arguments[name].clone().requires_grad_() for name in TENSORS]


@pytest.mark.parametrize(("rule", "channel"), WAYS)
def test_first_and_second_derivatives(draw, rule, channel):
    arguments = draw(1, 1, 5, 1, 2, 2, channel, starts=0.3, rule=rule, chunk_size=4)
    run = of_tensors(arguments)
    assert torch.autograd.gradcheck(run, leaves(arguments))
    assert torch.autograd.gradgradcheck(run, leaves(arguments))


@pytest.mark.parametrize(("rule", "channel"), WAYS)
def test_the_second_derivative_is_that_of_the_definition(draw, rule, channel):
    arguments = draw(2, time=19, channel=channel, starts=0.1, rule=rule, chunk_size=8)
    found = []
    for implementation in ("reference", "torch"):
        given = leaves(arguments)
        y, after = of_tensors(arguments, implementation=implementation)(*given)
        grads = torch.autograd.grad(y.square().sum() + after.square().sum(), given, create_graph=True)
        squares = torch.stack([grad.square().sum() for grad in grads])
        found.append(torch.autograd.grad(squares.sum(), given))
    for ours, right in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("rule", "channel"), WAYS)
def test_forward_mode_and_batches_take_operations_that_have_them(draw, rule, channel):
    arguments = draw(3, time=6, channel=channel, starts=0.2, rule=rule)
    given = leaves(arguments)
    along = [torch.randn_like(x) for x in given]
    found, right = (
        torch.func.jvp(of_tensors(arguments, implementation=way), tuple(given), tuple(along))[1]
        for way in ("torch", "reference")
    )
    for ours, exact in zip(found, right, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)
    many = [torch.stack([x, 2 * x]).detach() for x in given]
    y, _ = torch.func.vmap(of_tensors(arguments))(*many)
    torch.testing.assert_close(y[1], of_tensors(arguments)(*(x[1] for x in many))[0], rtol=1e-10, atol=1e-10)


def test_only_what_is_read_or_only_the_state_may_be_wanted(draw):
    arguments = draw(4, time=20)
    for place in (0, 1):
        found, right = (
            torch.autograd.grad(
                of_tensors(arguments, implementation=way)(*(given := leaves(arguments)))[place].sum(),
                given,
                allow_unused=True,
                materialize_grads=True,
            )
            for way in ("torch", "reference")
        )
        for ours, exact in zip(found, right, strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


def test_the_graph_may_be_gone_through_twice(draw):
    arguments = draw(5, time=20, channel=True)
    given = leaves(arguments)
    y, _ = of_tensors(arguments)(*given)
    first, second = (torch.autograd.grad(y.sum(), given[:5], retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_parts_are_as_large_as_is_said(draw, monkeypatch):
    """Of every size of parts the same comes."""
    arguments = draw(6, 5, time=70, channel=True, starts=0.05, chunk_size=16)
    given = leaves(arguments)
    found = []
    for most in (1, 600, 2**20):
        monkeypatch.setattr(gradient, "_MOST_NUMBERS", most)
        y, after = of_tensors(arguments)(*given)
        found.append([y, after, *torch.autograd.grad(y.sum() + after.sum(), given)])
    for other in found[1:]:
        for ours, right in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-11, atol=1e-11)
