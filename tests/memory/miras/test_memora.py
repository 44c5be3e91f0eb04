"""Tests of Memora: weights are distributions, and decay to the configured target."""

from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.kernels.neural.network import NetworkShape, mirror_weights, unpack


def weights_of(module, state):
    layer = module.layers[0].memory
    weights = list(layer.weights)
    shape = NetworkShape.from_weights(weights, False, False, learning=layer.learning)
    return mirror_weights(weights, unpack(state["anchor_0"], shape), shape)


@pytest.mark.parametrize("forgets_to", ["born", "uniform"])
@pytest.mark.parametrize("net", [{}, {"depth": 2, "residual": True, "norm": True}], ids=["matrix", "paper"])
def test_weights_to_an_output_are_positive_and_sum_up_to_the_root_of_the_width(net, forgets_to):
    torch.manual_seed(0)
    module: Any = memory.make("memora", dim=16, num_heads=1, forgets_to=forgets_to, **net)
    with torch.no_grad():
        state = module.initial_state(3)
        for _ in range(5):
            _, state = module(10 * torch.randn(3, 200, 16), state)
        for weight in weights_of(module, state):
            assert (weight >= 0).all()
            torch.testing.assert_close(weight.sum(-2), torch.full_like(weight.sum(-2), 4.0))
    assert state["anchor_0"].any()


@pytest.mark.slow
@pytest.mark.parametrize("forgets_to", ["born", "uniform"])
@pytest.mark.parametrize("net", [{}, {"depth": 2, "residual": True, "norm": True}], ids=["matrix", "paper"])
@torch.no_grad()
def test_weights_are_distributions_after_100_000_steps(net, forgets_to):
    """Inputs are large and random, constant, or of alternating sign."""
    torch.manual_seed(0)
    module: Any = memory.make("memora", dim=8, num_heads=1, forgets_to=forgets_to, **net)
    state, constant = module.initial_state(3), torch.randn(1, 1, 8).expand(1, 1000, 8)
    alternating = constant * (-1) ** torch.arange(1000)[:, None]
    for _ in range(100):
        _, state = module(torch.cat([10 * torch.randn(1, 1000, 8), constant, alternating]), state)
    assert state["anchor_0"].flatten(1).any(dim=1).all()
    for weight in weights_of(module, state):
        assert (weight >= 0).all()
        torch.testing.assert_close(weight.sum(-2), torch.full_like(weight.sum(-2), 8**0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("forgets_to", ["born", "uniform"])
def test_what_is_not_written_goes_where_the_config_says(forgets_to):
    torch.manual_seed(0)
    module: Any = memory.make("memora", dim=16, num_heads=1, forgets_to=forgets_to)
    with torch.no_grad():
        torch.nn.init.normal_(module.layers[0].memory.weights[0])
        initial = weights_of(module, module.initial_state(1))[0]
        _, state = module(torch.randn(1, 64, 16), module.initial_state(1))
        gates = module.layers[0].memory.gates
        gates.weight.zero_()
        gates.bias.copy_(torch.tensor([-200.0, -2.0]))
        for _ in range(4):
            _, state = module(torch.randn(1, 128, 16), state)
        final = weights_of(module, state)[0]
    expected = initial if forgets_to == "born" else torch.full_like(initial, 1 / 4)
    torch.testing.assert_close(final, expected, rtol=1e-5, atol=1e-6)
    assert (initial - 1 / 4).abs().max() > 0.1


def test_a_matrix_is_born_with_equal_weights():
    module: Any = memory.make("memora", dim=16, num_heads=1)
    weights = weights_of(module, module.initial_state(1))[0]
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 4))
