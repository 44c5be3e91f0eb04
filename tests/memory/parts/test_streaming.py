"""The custom backward pass of `Sink` against autograd, up to third order."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay import memory
from scrubjay.memory.parts import streaming
from scrubjay.memory.sink import Sink


def build(**fields) -> Sink:
    torch.manual_seed(0)
    module = cast(Sink, memory.make("sink", **fields)).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def draw_state(module: Sink, lengths: list[int], rate: float, seed: int) -> dict[str, torch.Tensor]:
    """Return the state after segments of these lengths, with episode starts at `rate`."""
    generator = torch.Generator().manual_seed(seed)
    state = module.initial_state(3)
    with torch.no_grad():
        for length in lengths:
            x = torch.randn(3, length, module.dim, generator=generator, dtype=torch.float64)
            _, state = module(x, state, torch.rand(3, length, generator=generator) < rate)
    return state


def draw(module: Sink, time: int, rate: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(3, time, module.dim, generator=generator, dtype=torch.float64)
    return x, torch.rand(3, time, generator=generator) < rate


def run(module: Sink, x, state, start, order=1):
    """Return outputs, the final state, and gradients of `order` of x, the state and all parameters."""
    x = x.clone().requires_grad_()
    state = {n: v.clone().requires_grad_() if v.is_floating_point() else v for n, v in state.items()}
    y, after = module(x, state, start)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    loss = (y * weights).sum() + after["keys"].square().sum() + after["values"].pow(3).sum()
    leaves = [x, state["keys"], state["values"], *module.parameters()]
    grads = torch.autograd.grad(loss, leaves, create_graph=order > 1)
    for _ in range(order - 1):
        loss = torch.stack([grad.square().sum() for grad in grads]).sum()
        grads = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
    return [y, *after.values(), *grads]


def run_by_autograd(monkeypatch, *args, **options):
    """Run `run` with torch's autograd."""
    with monkeypatch.context() as patch:
        patch.setattr(Sink, "_supports_custom_backward", lambda *_: False)
        return run(*args, **options)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    dim=st.sampled_from([8, 12, 16]),
    window=st.sampled_from([2, 3, 8, 40]),
    num_sinks=st.sampled_from([0, 1, 4]),
    time=st.sampled_from([2, 5, 31, 64]),
    lengths=st.lists(st.sampled_from([1, 3, 50]), max_size=3),
    rate=st.sampled_from([0, 0.03, 0.3]),
    seed=st.integers(0, 1000),
)
def test_outputs_and_gradients_are_those_of_plain_operations(
    dim, window, num_sinks, time, lengths, rate, seed
):
    module = build(dim=dim, window=window, num_sinks=num_sinks)
    state, (x, start) = draw_state(module, lengths, rate, seed), draw(module, time, rate, seed)
    expected = run_by_autograd(pytest.MonkeyPatch(), module, x, state, start)
    for actual, expected_value in zip(run(module, x, state, start), expected, strict=True):
        torch.testing.assert_close(actual, expected_value, rtol=1e-9, atol=1e-9)


def test_the_custom_backward_is_used_only_where_it_is_supported(monkeypatch):
    module = build(dim=16, window=8)
    calls = []
    by_hand = streaming._forward
    monkeypatch.setattr(streaming, "_forward", lambda *args: (calls.append(args), by_hand(*args))[1])
    x, start = draw(module, 20, 0.1, 0)
    state = draw_state(module, [], 0.1, 0)
    module(x, state, start)
    assert len(calls) == len(module.layers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module(x, state, start)
    module.bfloat16()(x.bfloat16(), {n: v.float() if n != "time" else v for n, v in state.items()}, start)
    assert len(calls) == len(module.layers)


def test_second_and_third_derivatives_use_autograd(monkeypatch):
    module = build(dim=8, window=4, num_sinks=2)
    state, (x, start) = draw_state(module, [9], 0.1, 3), draw(module, 12, 0.1, 3)
    for order in (2, 3):
        expected = run_by_autograd(monkeypatch, module, x, state, start, order)
        for actual, expected_value in zip(run(module, x, state, start, order), expected, strict=True):
            torch.testing.assert_close(actual, expected_value, rtol=1e-8, atol=1e-8)


def test_gradients_come_again_and_in_batches():
    module = build(dim=8, window=4)
    state, (x, start) = draw_state(module, [9], 0.1, 4), draw(module, 12, 0.1, 4)
    x.requires_grad_()
    y, _ = module(x, state, start)
    ways = torch.stack([torch.ones_like(y), y.detach()])
    each = [torch.autograd.grad(y, x, way, retain_graph=True)[0] for way in ways]
    again = [torch.autograd.grad(y, x, way, retain_graph=True)[0] for way in ways]
    assert all(torch.equal(one, other) for one, other in zip(each, again, strict=True))
    (batched,) = torch.autograd.grad(y, x, ways, is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack(each))


def test_transforms_of_functions_pass():
    module = build(dim=8, window=4)
    state, (x, start) = draw_state(module, [9], 0.1, 5), draw(module, 12, 0.1, 5)

    def loss(x):
        return module(x, state, start)[0].square().sum()

    (expected,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)
    direction = torch.ones_like(x)
    tangent = torch.func.jvp(loss, (x,), (direction,))
    torch.testing.assert_close(tangent[1], (expected * direction).sum())


def test_tensors_cached_in_inference_mode_serve_training():
    module = build(dim=8, window=6)
    x, start = draw(module, 21, 0.1, 6)
    streaming._plan_sizes.cache_clear()
    with torch.inference_mode():
        expected, _ = module(x, module.initial_state(3), start)
    y, _ = module(x.requires_grad_(), module.initial_state(3), start)
    y.sum().backward()
    torch.testing.assert_close(y, expected.clone())
    assert x.grad is not None
