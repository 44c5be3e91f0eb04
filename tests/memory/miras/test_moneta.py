"""Tests of Moneta: weights as a function of the accumulated dual."""

from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.kernels.neural.network import NetworkShape, mirror_weights, unpack


@pytest.mark.parametrize("fields", [{}, {"depth": 2, "residual": True, "norm": True}, {"q": 2.5}], ids=str)
def test_weights_keep_the_norm_of_their_dual_however_long_it_lives(fields):
    torch.manual_seed(0)
    module: Any = memory.make("moneta", dim=16, num_heads=2, **fields)
    layer, q = module.layers[0].memory, module.config.q
    weights = list(layer.weights)
    shape = NetworkShape.from_weights(weights, False, False, learning=layer.learning)
    with torch.no_grad():
        state = module.initial_state(3)
        for _ in range(5):
            _, state = module(torch.randn(3, 200, 16), state)
        for state_delta in (torch.zeros_like(state["anchor_0"]), state["anchor_0"]):
            duals = [w + x for w, x in zip(weights, unpack(state_delta, shape), strict=True)]
            for weight, dual in zip(
                mirror_weights(weights, unpack(state_delta, shape), shape), duals, strict=True
            ):
                norms = [torch.linalg.vector_norm(x, q, dim=(-1, -2)) for x in (weight, dual)]
                torch.testing.assert_close(norms[0], norms[1] ** (3 - q))
                if not state_delta.any():
                    torch.testing.assert_close(norms[0], torch.ones_like(norms[0]))
                    torch.testing.assert_close(weight, dual)
    assert state["anchor_0"].any()
