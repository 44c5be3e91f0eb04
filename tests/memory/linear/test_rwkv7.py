"""RWKV-7 compared with its equations and with recorded outputs of the published code."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay import memory
from scrubjay.memory.linear.rwkv7 import RWKV7Config

from ..oracles import assert_layers_equal, wave

PUBLISHED = json.loads((Path(__file__).parent / "rwkv7.json").read_text())


@torch.no_grad()
def test_a_layer_equals_the_published_code():
    module: Any = RWKV7Config(8, num_heads=2, rank=3, feed_forward_ratio=2).build().double()
    (layer,) = module.layers
    parameters = {
        layer.norm.weight: 1 + wave(8, phase=2) / 2,
        layer.norm.bias: wave(8, phase=3),
        layer.feed_norm.weight: 1 + wave(8, phase=4) / 2,
        layer.feed_norm.bias: wave(8, phase=5),
        layer.shift: (1 + wave(6, 8, phase=6)) / 2,
        layer.feed_shift: (1 + wave(8, phase=7)) / 2,
        layer.receptance.weight: wave(8, 8, phase=8),
        layer.key.weight: wave(8, 8, phase=9),
        layer.value.weight: wave(8, 8, phase=10),
        layer.out.weight: wave(8, 8, phase=11),
        layer.decay[0].weight: wave(3, 8, phase=12),
        layer.rate[0].weight: wave(3, 8, phase=13),
        layer.gate[0].weight: wave(3, 8, phase=14),
        layer.decay[2].weight: wave(8, 3, phase=15),
        layer.rate[2].weight: wave(8, 3, phase=16),
        layer.gate[2].weight: wave(8, 3, phase=17),
        layer.decay[2].bias: wave(8, phase=18),
        layer.rate[2].bias: wave(8, phase=19),
        layer.erase_scale: wave(8, phase=20),
        layer.rate_in_key: wave(8, phase=21),
        layer.bonus: wave(2, 4, phase=22),
        layer.out_norm.weight: 1 + wave(8, phase=23) / 2,
        layer.out_norm.bias: wave(8, phase=24),
        layer.feed_in.weight: wave(16, 8, phase=25),
        layer.feed_out.weight: wave(8, 16, phase=26),
    }
    assert len(parameters) == len(list(layer.parameters()))
    for parameter, value in parameters.items():
        parameter.copy_(value)
    y, state = module(wave(1, 9, 8, phase=1), module.initial_state(1))
    for name, value in {"y": y, "matrix": state["matrix_0"]}.items():
        expected = torch.tensor(PUBLISHED[name]).double().view_as(value)
        # The published code divides by the length of a key; here its square plus 1e-6 has the root taken.
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def oracle(layer, x):
    """Return a layer's outputs of one episode, step by step."""
    dim, heads, width = x.shape[1], layer.heads, layer.width
    before = feed_before = torch.zeros(dim).double()
    matrices, outputs = torch.zeros(heads, width, width).double(), []
    for token in x:
        h = layer.norm(token)
        r, w, k, v, a, g = (h + (before - h) * weight for weight in layer.shift)
        r, k, v, before = layer.receptance(r), layer.key(k), layer.value(v), h
        decay, a = torch.exp(-(math.e**-0.5) * torch.sigmoid(layer.decay(w))), torch.sigmoid(layer.rate(a))
        e, k = (k * layer.erase_scale).view(heads, width), k * (1 + (a - 1) * layer.rate_in_key)
        r, k, v, a, decay = (part.view(heads, width) for part in (r, k, v, a, decay))
        read = []
        for n in range(heads):
            unit = e[n] / (e[n].square().sum() + 1e-6).sqrt()
            update = torch.outer(k[n], v[n]) - torch.outer(a[n] * unit, matrices[n].T @ unit)
            matrices[n] = torch.diag(decay[n]) @ matrices[n] + update
            y = matrices[n].T @ r[n]
            y = (y - y.mean()) / (y.var(correction=0) + width * 1e-5).sqrt()
            weight, bias = (z.view(heads, width)[n] for z in (layer.out_norm.weight, layer.out_norm.bias))
            read.append(y * weight + bias + (r[n] * k[n] * layer.bonus[n]).sum() * v[n])
        token = token + layer.out(torch.cat(read) * layer.gate(g))
        h = layer.feed_norm(token)
        k = functional.relu(layer.feed_in(h + (feed_before - h) * layer.feed_shift))
        feed_before = h
        outputs.append(token + layer.feed_out(k.square()))
    return torch.stack(outputs)


@pytest.mark.parametrize("fields", [{}, {"num_layers": 3, "num_heads": 4, "rank": 5}], ids=str)
@torch.no_grad()
def test_outputs_are_those_of_the_equations(fields):
    torch.manual_seed(0)
    module = RWKV7Config(16, **fields).build().double()
    for parameter in module.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    assert_layers_equal(module, oracle, torch.randn(2, 40, 16).double(), 1e-9)


@torch.no_grad()
def test_a_full_rate_erases_the_stored_value_of_the_erase_key():
    """With rate 1 and decay 1, the matrix has no value for the erase key afterwards."""
    torch.manual_seed(0)
    module: Any = memory.make("rwkv7", dim=8).double()
    (layer,) = module.layers
    h, state = torch.randn(1, 1, 8).double(), module.initial_state(1)
    layer.rate[2].bias.fill_(50)
    layer.decay[2].bias.fill_(-50)
    layer_state = {"matrix": torch.randn(1, 1, 8, 8).double(), "shift": state["shift_0"]}
    erasure, _, _ = layer.project_tokens(h, h, layer_state)
    matrix, key = layer_state["matrix"][0, 0], erasure.erase_key[0, 0, 0]
    after = matrix - torch.outer(erasure.key[0, 0, 0], matrix.T @ key)
    assert (after.T @ key).norm() < 1e-4 * (matrix.T @ key).norm()


def test_decays_are_at_least_the_published_bound():
    module: Any = memory.make("rwkv7", dim=8)
    (layer,) = module.layers
    h = 100 * torch.randn(3, 5, 8)
    erasure, _, _ = layer.project_tokens(h, h, module.layers[0].initial_state(3, torch.float32))
    decay = erasure.log_decay.exp()
    assert ((decay >= 0.545) & (decay <= 1)).all()
