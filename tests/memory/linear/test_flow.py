"""Tests of Flowformer: sums over whole episodes, and running means in long episodes."""

import itertools
from typing import Any

import pytest
import torch

from scrubjay.memory.linear.flow import FlowConfig

OPTIONS: list[dict[str, Any]] = [{}, {"num_heads": 4, "num_layers": 2}, {"num_heads": 1}]


def oracle(layer, x):
    """Return a layer's outputs of one episode, recomputing every sum over the past."""
    heads, width = layer.heads, layer.width
    tokens = layer.project_in(layer.norm(x)).view(len(x), 3, heads, width)
    queries, keys, values = tokens[:, 0].sigmoid(), tokens[:, 1].sigmoid(), tokens[:, 2]
    e, read = 1e-6, []
    arriving, leaving, source = (torch.zeros(len(x), heads, dtype=x.dtype) for _ in range(3))
    for t in range(len(x)):
        n, past = t + 1, slice(0, t + 1)
        for h in range(heads):
            a, c = queries[past, h], keys[past, h]
            arriving[t, h] = n / ((a[t] + e) @ (c.sum(0) + e))
            leaving[t, h] = n / ((c[t] + e) @ (a.sum(0) + e))
            sink = (a[t] + e) @ ((c * leaving[past, h, None]).sum(0) + e) / n
            source_flow = (c[t] + e) @ ((a * arriving[past, h, None]).sum(0) + e) / n
            source[t, h] = source_flow.clamp(-1, 1).exp()
            # Each step competes only against earlier steps.
            shares = [source[i, h] / source[: i + 1, h].sum() * (i + 1) for i in range(n)]
            flows = (c @ a[t]) * arriving[t, h] / n * torch.stack(shares)
            read.append(sink.sigmoid() * (flows @ values[past, h]))
    y = x + layer.out(torch.stack(read).view(len(x), -1))
    return y + layer.feed_forward(y)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_outputs_are_those_of_the_papers_sums(options):
    torch.manual_seed(0)
    module = FlowConfig(16, **options).build().double()
    x = 2 * torch.randn(2, 30, 16, dtype=torch.float64)
    start = torch.zeros(2, 30, dtype=torch.bool)
    start[0, [0, 11]] = start[1, [4, 5, 29]] = True
    y, _ = module(x, module.initial_state(2), start)
    for row in range(2):
        borders = sorted({0, *start[row].nonzero().flatten().tolist(), 30})
        for begin, end in itertools.pairwise(borders):
            expected = x[row, begin:end]
            for layer in module.layers:
                expected = oracle(layer, expected)
            torch.testing.assert_close(y[row, begin:end], expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_mean_stays_where_its_inputs_are():
    """The mean of a constant input is the input itself, in float32 as long as step counts are exact.

    A decay of 1 - 1/n would change the mean by a relative 2.6e-5 in 2,000 steps from the millionth on.
    """
    torch.manual_seed(0)
    module = FlowConfig(16).build()
    x = torch.randn(1, 1, 16)
    _, first_state = module(x, module.initial_state(1))
    old = first_state | {"time_0": torch.tensor([1_000_000])}
    for pieces in (1, 4, 2000):
        state = old
        for piece in x.expand(1, 2000, 16).chunk(pieces, dim=1):
            _, state = module(piece, state)
        assert state["time_0"].item() == 1_002_000
        for name in first_state.keys() - {"time_0", "mean_out", "mean_in"}:
            torch.testing.assert_close(state[name], first_state[name], rtol=5e-6, atol=5e-6)


@torch.no_grad()
def test_a_long_episode_is_that_of_wider_numbers():
    torch.manual_seed(0)
    module = FlowConfig(8).build()
    wide = FlowConfig(8).build()
    wide.load_state_dict(module.state_dict())
    wide.double()
    x = torch.randn(1, 20_000, 8) + 1
    y, after = module(x, module.initial_state(1))
    expected, expected_after = wide(x.double(), wide.initial_state(1))
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    for name, value in after.items():
        torch.testing.assert_close(value.double(), expected_after[name].double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stays", [True, False])
def test_gradients_of_inputs_that_stay_the_same_are_those_of_wider_numbers(stays):
    """The clamped value then equals its bound, where rounding would decide between two gradients."""
    torch.manual_seed(0)
    module = FlowConfig(16).build()
    first = torch.randn(2, 1, 16)
    x = first.expand(2, 41, 16) if stays else torch.cat([first, torch.randn(2, 40, 16)], dim=1)

    def gradient(module, x, cuts):
        x, state, outputs = x.clone().requires_grad_(), module.initial_state(2), []
        for piece in x.tensor_split(cuts, dim=1):
            y, state = module(piece, state)
            outputs.append(y)
        y = torch.cat(outputs, dim=1)
        (grad,) = torch.autograd.grad((y * torch.arange(16, dtype=y.dtype).cos()).sum(), x)
        return grad

    results = [gradient(module, x, cuts) for cuts in ([], [7], list(range(1, 41)))]
    expected = gradient(module.double(), x.double(), [])
    for one in results:
        torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
        ({"num_heads": 0}, "num_heads=0 does not divide dim=16"),
        ({"num_layers": 0}, "num_layers=0: must be at least 1"),
        ({"feed_forward_ratio": 0}, "feed_forward_ratio=0: must be at least 1"),
    ],
)
def test_sizes_that_cannot_work_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        FlowConfig(16, **fields)
