"""Mamba-3 compared with its equations and with recorded outputs of the published code."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from scrubjay import memory
from scrubjay.memory.linear.mamba3 import Mamba3Config, rotate

from ..oracles import assert_layers_equal, wave

PUBLISHED = json.loads((Path(__file__).parent / "mamba3.json").read_text())


@torch.no_grad()
def test_a_layer_equals_the_published_code():
    """The recorded outputs have no layer norm before the layer and no feed-forward block."""
    module: Any = Mamba3Config(8, num_layers=1, num_heads=2, state_size=8, output_norm=False).build().double()
    (layer,) = module.layers
    layer.norm = nn.Identity()
    layer.feed_forward[-1].weight.zero_()
    layer.feed_forward[-1].bias.zero_()
    parameters = {
        layer.project_in.weight: wave(56, 8, phase=2),
        layer.step_bias: wave(2, phase=3),
        layer.key_norm.weight: 1 + 0.5 * wave(8, phase=4),
        layer.query_norm.weight: 1 + 0.5 * wave(8, phase=5),
        layer.key_bias: wave(2, 8, phase=6),
        layer.query_bias: wave(2, 8, phase=7),
        layer.skip: wave(2, phase=8),
        layer.out.weight: wave(8, 16, phase=9),
    }
    for parameter, value in parameters.items():
        parameter.copy_(value)
    x = wave(2, 9, 8, phase=1)
    y, state = module(x, module.initial_state(2))
    for name, value in {"y": y - x, "matrix": state["matrix_0"], "angle": state["angle_0"]}.items():
        expected = torch.tensor(PUBLISHED[name]).double().view_as(value)
        torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-7)


def oracle(layer, x):
    """Return a layer's outputs of one episode, step by step, with complex numbers for the rotated pairs."""
    heads, size = layer.heads, layer.size
    width = layer.inner // heads
    matrices, before = torch.zeros(heads, size, width).double(), torch.zeros(heads, size, width).double()
    angles, outputs = torch.zeros(heads, size // 4).double(), []

    def turn(vector, angle):
        pairs = torch.view_as_complex(vector[: size // 2].reshape(-1, 2).contiguous())
        pairs = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten()
        return torch.cat([pairs, vector[size // 2 :]])

    for token in x:
        parts = layer.project_in(layer.norm(token)).split(layer.parts)
        gate, values, key, query, steps, rates, weights, turns = parts
        read = []
        for h in range(heads):
            value, d = values.view(heads, width)[h], functional.softplus(steps[h] + layer.step_bias[h])
            rate = 1 + rates[h] if rates[h] > 0 else 1 / (1 - rates[h])
            decay, weight = torch.exp(-rate * d), torch.sigmoid(weights[h])
            angles[h] += math.pi * d * torch.tanh(turns)
            own_key = turn(layer.key_norm(key) + layer.key_bias[h], angles[h])
            own_query = turn(layer.query_norm(query) + layer.query_bias[h], angles[h])
            write = torch.outer(own_key, value)
            matrices[h] = decay * (matrices[h] + (1 - weight) * d * before[h]) + weight * d * write
            before[h] = write
            read.append(matrices[h].T @ own_query + layer.skip[h] * value)
        y = token + layer.out(layer.out_norm(torch.cat(read)) * functional.silu(gate))
        outputs.append(y + layer.feed_forward(y))
    return torch.stack(outputs)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_layers": 3, "num_heads": 3, "state_size": 4, "output_norm": False},
        {"expand": 1, "num_heads": 6},
    ],
    ids=str,
)
@torch.no_grad()
def test_outputs_are_those_of_the_equations(fields):
    torch.manual_seed(0)
    module = Mamba3Config(12, **fields).build().double()
    for parameter in module.parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))
    assert_layers_equal(module, oracle, 2 * torch.randn(2, 40, 12).double(), 1e-9)


@torch.no_grad()
def test_a_step_does_not_depend_on_later_steps():
    """The write of a step is completed by its successor, but no output may depend on it."""
    torch.manual_seed(0)
    module = memory.make("mamba3", dim=8).double()
    x = torch.randn(1, 20, 8).double()
    other = x.clone()
    other[:, 11:] = 5 * torch.randn(1, 9, 8)
    y, other_y = (module(inputs, module.initial_state(1))[0][:, :11] for inputs in (x, other))
    torch.testing.assert_close(other_y, y, rtol=1e-13, atol=1e-13)


def test_rotations_retain_lengths_and_add_up():
    x, angles = torch.randn(5, 8).double(), torch.randn(5, 2).double()
    y = rotate(x, angles)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(y, 2 * angles), rotate(x, 3 * angles))
    assert torch.equal(y[:, 4:], x[:, 4:])


@torch.no_grad()
def test_angles_stay_exact_in_long_segments():
    torch.manual_seed(0)
    module: Any = memory.make("mamba3", dim=8)
    module.layers[0].step_bias.fill_(2.0)
    x = torch.randn(1, 3000, 8)
    single, _ = module(x, module.initial_state(1))
    exact, _ = module.double()(x.double(), module.initial_state(1))
    assert (single - exact).abs().max() < 1e-3 * exact.abs().max()


def test_a_state_size_without_pairs_is_refused():
    with pytest.raises(ValueError, match="state_size=6: must be a multiple of 4"):
        memory.make("mamba3", dim=8, state_size=6)
