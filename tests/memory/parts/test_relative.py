"""Window attention's custom backward pass against autograd, over many layouts, up to second order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts import relative
from scrubjay.memory.parts.window import WindowAttention


def build(dim: int, heads: int, window: int) -> WindowAttention:
    torch.manual_seed(0)
    module = WindowAttention(dim, heads, window).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def draw(module: WindowAttention, dim: int, time: int, rate: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, time, dim, dtype=torch.float64, generator=generator, requires_grad=True)
    recent = torch.randn(3, module.window, dim, dtype=torch.float64, generator=generator, requires_grad=True)
    age = torch.tensor([0, module.window // 2, module.window + 5])
    return x, recent, Clock.from_starts(age, torch.rand(3, time, generator=generator) < rate)


def both_ways(module, x, recent, clock):
    return module(x, recent, clock), module._run_torch(clock, x, recent, *module._weights())


def gradients(y, leaves, **options):
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad((y * weights).sum(), leaves, **options)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.sampled_from([(8, 1), (12, 3), (16, 4)]),
    window=st.integers(1, 40),
    time=st.integers(2, 90),
    rate=st.sampled_from([0, 0.05, 0.5]),
    seed=st.integers(0, 1000),
)
def test_outputs_and_gradients_are_those_of_plain_operations(sizes, window, time, rate, seed):
    module = build(sizes[0], sizes[1], window)
    x, recent, clock = draw(module, sizes[0], time, rate, seed)
    actual, expected = both_ways(module, x, recent, clock)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    leaves = [x, recent, *module.parameters()]
    for one, other in zip(gradients(actual, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_short_segments_use_the_custom_backward_and_long_ones_of_a_narrow_window_do_not(monkeypatch):
    module, calls = build(8, 2, 4), []
    by_hand = relative._forward
    monkeypatch.setattr(relative, "_forward", lambda *args: (calls.append(args), by_hand(*args))[1])
    for time, count in ((20, 1), (300, 0)):
        calls.clear()
        module(*draw(module, 8, time, 0.1, 0))
        assert len(calls) == count


def test_second_derivatives_use_autograd():
    module = build(8, 2, 5)
    x, recent, clock = draw(module, 8, 20, 0.1, 1)
    leaves = [x, recent, *module.parameters()]
    results = []
    for y in both_ways(module, x, recent, clock):
        first = gradients(y, leaves, create_graph=True)
        loss = torch.stack([grad.square().sum() for grad in first]).sum()
        results.append(torch.autograd.grad(loss, leaves, materialize_grads=True))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_gradients_come_in_batches_and_only_where_they_are_needed():
    module = build(8, 2, 5)
    x, recent, clock = draw(module, 8, 20, 0.1, 2)
    y = module(x, recent.detach(), clock)
    ways = torch.stack([torch.ones_like(y), y.detach()])
    each = [torch.autograd.grad(y, x, way, retain_graph=True)[0] for way in ways]
    (batched,) = torch.autograd.grad(y, x, ways, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, torch.stack(each))
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(y.sum(), recent)
