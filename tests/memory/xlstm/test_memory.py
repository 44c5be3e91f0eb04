"""xLSTM's blocks compared with recorded outputs of the published code, and the order of blocks."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.xlstm.memory import XLSTMConfig
from scrubjay.memory.xlstm.mlstm import MLSTMBlock
from scrubjay.memory.xlstm.slstm import SLSTMBlock

PUBLISHED = json.loads((Path(__file__).parent / "xlstm.json").read_text())


def wave(*shape, phase):
    """Return fixed numbers between -1 and 1, which the recorded outputs depend on."""
    return torch.cos(torch.arange(math.prod(shape)).double() * 0.7 + phase).view(shape)


def assert_published(letter, module, parameters):
    names = dict(module.named_parameters())
    assert parameters.keys() == names.keys()
    with torch.no_grad():
        for name, value in parameters.items():
            names[name].copy_(value)
    y, _ = module.double()(wave(2, 9, 8, phase=1), module.initial_state(2))
    expected = torch.tensor(PUBLISHED[letter]).double().view(2, 9, 8)
    # The published code adds 1e-6 to the divisor of mLSTM.
    torch.testing.assert_close(y.detach(), expected, rtol=2e-5, atol=2e-5)


def test_mlstm_equals_the_published_code():
    module = XLSTMConfig(8, blocks="m", num_heads=2).build()
    forget, input = ((wave(2, 48, phase=weight), wave(2, phase=bias)) for weight, bias in ((7, 6), (9, 8)))
    parameters = {
        "norm.weight": 1 + wave(8, phase=15),
        "project_in.weight": wave(32, 8, phase=12),
        "convolution.weight": wave(16, 4, phase=3).flip(1).T,
        "convolution_bias": wave(16, phase=2),
        "query.weight": wave(4, 4, 4, phase=13),
        "key.weight": wave(4, 4, 4, phase=4),
        "value.weight": wave(4, 4, 4, phase=14),
        "gates.weight": torch.cat([input[0], forget[0]]),
        "gates.bias": torch.cat([input[1], forget[1]]),
        "out_norm.weight": 1 + wave(16, phase=10),
        "skip": wave(16, phase=5),
        "out.weight": wave(8, 16, phase=11),
    }
    assert_published("mlstm", module, {f"layers.0.{name}": value for name, value in parameters.items()})


def test_slstm_equals_the_published_code():
    """The published code names the projections of i and f the wrong way round."""
    module = XLSTMConfig(8, blocks="s", num_heads=2).build()
    parameters = {
        "norm.weight": 1 + wave(8, phase=14),
        "convolution.weight": wave(8, 4, phase=6).flip(1).T,
        "convolution_bias": wave(8, phase=5),
        "weight": torch.stack([wave(2, 4, 4, phase=p) for p in (9, 7, 13, 10)], dim=1),
        "recurrent": wave(2, 4, 4, 4, phase=12)[:, [1, 0, 2, 3]],
        "bias": wave(4, 2, 4, phase=11).transpose(0, 1)[:, [1, 0, 2, 3]],
        "out_norm.weight": 1 + wave(8, phase=8),
        "feed_norm.weight": 1 + wave(8, phase=4),
        "feed_in.weight": wave(22, 8, phase=3),
        "feed_out.weight": wave(8, 11, phase=2),
    }
    assert_published("slstm", module, {f"layers.0.{name}": value for name, value in parameters.items()})


def test_blocks_stand_in_the_order_of_the_letters():
    module: Any = memory.make("xlstm", dim=8, blocks="msm")
    assert [type(layer) for layer in module.layers] == [MLSTMBlock, SLSTMBlock, MLSTMBlock]
    assert [name for name in module.initial_state(1) if "cell" in name] == ["cell_1"]


@pytest.mark.parametrize("blocks", ["", "mx", "M"])
def test_other_letters_are_refused(blocks):
    with pytest.raises(ValueError, match=f"blocks='{blocks}': use the letters m"):
        memory.make("xlstm", dim=8, blocks=blocks)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_initial_input_gates_must_be_finite(number):
    with pytest.raises(ValueError, match="log_input_gate="):
        memory.make("xlstm", dim=8, log_input_gate=number)


@pytest.mark.parametrize(("dim", "heads"), [(8, 1), (16, 2), (22, 2), (24, 3), (64, 4)])
def test_heads_are_at_least_8_wide_by_default(dim, heads):
    assert XLSTMConfig(dim).heads == heads


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "seed"), [(8, 0), (8, 8), (32, 2), (32, 9)])
def test_gradients_are_exact_in_the_middle_of_a_long_episode(dim, seed):
    """Sums over hundreds of steps cancel out in some reads. Input gates near 1 would give errors to 6e-5."""
    torch.manual_seed(seed)
    module: Any = memory.make("xlstm", dim=dim)
    random = torch.randn(1, 2048, dim)
    inputs = torch.cat([random, random[:, :1].expand_as(random)])
    with torch.no_grad():
        _, state = module(inputs, module.initial_state(2))
    x = torch.randn(2, 48, dim)
    weights = wave(*x.shape, phase=0) / x.numel() ** 0.5
    (module(x, state)[0] * weights.float()).sum().backward()
    exact: Any = copy.deepcopy(module).double()
    exact.zero_grad()
    y, _ = exact(x.double(), {name: value.double() for name, value in state.items()})
    (y * weights).sum().backward()
    for parameter, other in zip(module.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.double(), other.grad, rtol=0, atol=1e-5)
