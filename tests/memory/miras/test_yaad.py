"""Tests of Yaad: a token moves the memory by at most step size times threshold."""

from typing import Any

import pytest
import torch

from scrubjay import memory


@pytest.mark.parametrize("measure", ["norm", "coordinate"])
@pytest.mark.parametrize("bound_steps", [False, True])
def test_one_outlier_of_a_million_moves_weights_no_further_than_its_threshold(measure, bound_steps):
    torch.manual_seed(0)
    module: Any = memory.make("yaad", dim=16, num_heads=2, measure=measure, bound_steps=bound_steps)
    layer = module.layers[0].memory
    with torch.no_grad():
        layer.gates.weight.zero_()
        # Disable forgetting.
        layer.gates.bias.view(3, 2)[1] = -200.0
        state = layer.initial_state(3, torch.float32, torch.device("cpu"))
        for t in range(20):
            _, _, state = layer.step(torch.randn(3, 16), state, torch.tensor([t] * 3))
        outlier = 1e6 * torch.randn(3, 16)
        _, surprise, after = layer.step(outlier, state, torch.tensor([20] * 3))
    step, _, threshold = layer.gates.bias.view(3, 2)
    step = torch.sigmoid(step) / (layer.chunk_size if bound_steps else 1)
    threshold = torch.nn.functional.softplus(threshold) * (1 if measure == "norm" else 8**0.5)
    change = torch.linalg.vector_norm(after["delta"] - state["delta"], dim=-1)
    assert (change <= step * threshold * (1 + 1e-4)).all()
    assert (change > 0.5 * step * threshold).all()
    assert (surprise <= threshold.mean() * (1 + 1e-4)).all()


def test_thresholds_are_learned():
    torch.manual_seed(0)
    module: Any = memory.make("yaad", dim=16)
    with torch.no_grad():
        module.layers[0].memory.gates.bias[2] = 0.0
    y, _ = module(3 * torch.randn(4, 40, 16), module.initial_state(4))
    y.square().sum().backward()
    assert module.layers[0].memory.gates.weight.grad[2].any()
