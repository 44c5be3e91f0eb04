"""The custom backward pass of linear memory: exact, differentiable again, independent of the parts."""

import pytest
import torch

from scrubjay.kernels import linear_memory
from scrubjay.kernels.linear import gradient

TENSORS = ("query", "key", "value", "log_decay", "step", "state", "erase_key")
CASES = [(rule, channel) for rule in ("hebbian", "delta", "erase") for channel in (False, True)]


def tensor_names(arguments):
    return [name for name in TENSORS if name in arguments]


def bind_options(arguments, **options):
    rest = {name: value for name, value in arguments.items() if name not in TENSORS} | options
    names = tensor_names(arguments)
    return lambda *inputs: linear_memory(**dict(zip(names, inputs, strict=True)), **rest)


def leaves(arguments):
    return [arguments[name].clone().requires_grad_() for name in tensor_names(arguments)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("rule", "channel"), CASES)
def test_first_and_second_derivatives(draw, rule, channel):
    arguments = draw(1, 1, 5, 1, 2, 2, channel, starts=0.3, rule=rule, chunk_size=4)
    run = bind_options(arguments)
    assert torch.autograd.gradcheck(run, leaves(arguments))
    assert torch.autograd.gradgradcheck(run, leaves(arguments))


@pytest.mark.parametrize(("rule", "channel"), CASES)
def test_the_second_derivative_is_that_of_the_definition(draw, rule, channel):
    arguments = draw(2, time=19, channel=channel, starts=0.1, rule=rule, chunk_size=8)
    results = []
    for implementation in ("reference", "torch"):
        inputs = leaves(arguments)
        y, after = bind_options(arguments, implementation=implementation)(*inputs)
        grads = torch.autograd.grad(y.square().sum() + after.square().sum(), inputs, create_graph=True)
        squares = torch.stack([grad.square().sum() for grad in grads])
        results.append(torch.autograd.grad(squares.sum(), inputs))
    for actual, right in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(actual, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("rule", "channel"), CASES)
def test_forward_mode_and_vmap_work(draw, rule, channel):
    arguments = draw(3, time=6, channel=channel, starts=0.2, rule=rule)
    inputs = leaves(arguments)
    tangents = [torch.randn_like(x) for x in inputs]
    results, right = (
        torch.func.jvp(
            bind_options(arguments, implementation=implementation), tuple(inputs), tuple(tangents)
        )[1]
        for implementation in ("torch", "reference")
    )
    for actual, exact in zip(results, right, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-10)
    many = [torch.stack([x, 2 * x]).detach() for x in inputs]
    y, _ = torch.func.vmap(bind_options(arguments))(*many)
    torch.testing.assert_close(
        y[1], bind_options(arguments)(*(x[1] for x in many))[0], rtol=1e-10, atol=1e-10
    )


def test_the_gradient_of_only_the_outputs_or_only_the_state(draw):
    arguments = draw(4, time=20)
    for place in (0, 1):
        results, right = (
            torch.autograd.grad(
                bind_options(arguments, implementation=implementation)(*(inputs := leaves(arguments)))[
                    place
                ].sum(),
                inputs,
                allow_unused=True,
                materialize_grads=True,
            )
            for implementation in ("torch", "reference")
        )
        for actual, exact in zip(results, right, strict=True):
            torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-10)


def test_backward_twice_with_a_retained_graph(draw):
    arguments = draw(5, time=20, channel=True)
    inputs = leaves(arguments)
    y, _ = bind_options(arguments)(*inputs)
    first, second = (torch.autograd.grad(y.sum(), inputs[:5], retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_results_do_not_depend_on_the_size_of_the_parts(draw, monkeypatch):
    arguments = draw(6, 5, time=70, channel=True, starts=0.05, chunk_size=16)
    inputs = leaves(arguments)
    results = []
    for most in (1, 600, 2**20):
        monkeypatch.setattr(gradient, "_MOST_NUMBERS", most)
        y, after = bind_options(arguments)(*inputs)
        results.append([y, after, *torch.autograd.grad(y.sum() + after.sum(), inputs)])
    for other in results[1:]:
        for actual, right in zip(other, results[0], strict=True):
            torch.testing.assert_close(actual, right, rtol=1e-11, atol=1e-11)
