"""Mamba-2 compared with its equations, with transformers, and as a masked product (state-space duality)."""

import pytest
import torch
from torch.nn import functional

from scrubjay import memory
from scrubjay.kernels import linear_memory
from scrubjay.memory.linear.mamba2 import Mamba2Config

from ..oracles import assert_layers_equal


def build(dim=12, seed=0, **fields):
    """Return a memory in float64 whose parameters are all random."""
    torch.manual_seed(seed)
    module = Mamba2Config(dim, **fields).build().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def oracle(layer, x, epsilon):
    """Return a layer's outputs of one episode, step by step."""
    taps, heads, size = layer.convolution.weight, layer.heads, layer.size
    width = layer.inner // heads
    matrices, history, outputs = torch.zeros(heads, size, width).double(), [], []
    for token in x:
        parts = layer.project_in(layer.norm(token)).split([layer.inner, layer.inner + 2 * size, heads])
        gate, inputs, steps = parts
        history = [inputs, *history][: len(taps)]
        inputs = sum(tap * old for tap, old in zip(taps, history, strict=False)) + layer.convolution_bias
        values, key, query = functional.silu(inputs).split([layer.inner, size, size])
        read = []
        for h in range(heads):
            value, d = values.view(heads, width)[h], functional.softplus(steps[h] + layer.step_bias[h])
            decay = torch.exp(-layer.rate[h].exp() * d)
            matrices[h] = decay * matrices[h] + d * torch.outer(key, value)
            read.append(matrices[h].T @ query + layer.skip[h] * value)
        y = torch.cat(read) * functional.silu(gate)
        y = layer.out_norm.weight * y / (y.square().mean() + epsilon).sqrt()
        outputs.append(token + layer.out(y))
    return torch.stack(outputs)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_layers": 2, "num_heads": 3, "state_size": 5},
        {"expand": 1, "convolution": 1, "num_heads": 6},
        {"epsilon": 1e-5},
    ],
    ids=str,
)
@torch.no_grad()
def test_outputs_are_those_of_the_equations(fields):
    module = build(**fields)
    epsilon = fields.get("epsilon", 1e-4)
    assert_layers_equal(
        module, lambda layer, x: oracle(layer, x, epsilon), torch.randn(2, 40, 12).double(), 1e-10
    )


@pytest.mark.requires("transformers")
@torch.no_grad()
def test_a_layer_equals_that_of_transformers():
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config as PeerConfig
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    module = build(16, num_heads=4, state_size=6)
    (layer,) = module.layers
    config = PeerConfig(
        num_heads=4,
        head_dim=8,
        hidden_size=16,
        state_size=6,
        expand=2,
        n_groups=1,
        num_hidden_layers=1,
        layer_norm_epsilon=1e-4,
    )
    peer = Mamba2Mixer(config, layer_idx=0).double().eval()
    weights = {
        "in_proj.weight": layer.project_in.weight,
        "conv1d.weight": layer.convolution.weight.flip(0).T[:, None],
        "conv1d.bias": layer.convolution_bias,
        "dt_bias": layer.step_bias,
        "A_log": layer.rate,
        "D": layer.skip,
        "norm.weight": layer.out_norm.weight,
        "out_proj.weight": layer.out.weight,
    }
    peer.load_state_dict(weights)
    x = torch.randn(2, 30, 16).double()
    y, _ = module(x, module.initial_state(2))
    # The peer computes some parts in float32.
    torch.testing.assert_close(y, x + peer(layer.norm(x)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_recurrence_is_a_product_with_a_decayed_causal_matrix():
    """State-space duality: Y = (L * Q K^T) (d V), where L[i, j] is the decay from step j to step i."""
    (layer,) = build(8).layers
    tokens, *_ = layer.project_tokens(
        torch.randn(1, 25, 8).double(), layer.initial_state(1, torch.float64)["tail"], None
    )
    query, key, value, log_decay, step = (part[0].transpose(0, 1) for part in tokens)
    sums = log_decay.cumsum(-1)
    decays = (sums[..., :, None] - sums[..., None, :]).exp().tril()
    y = (decays * (query @ key.mT)) @ (step[..., None] * value)
    state = torch.zeros(1, layer.heads, layer.size, value.shape[-1]).double()
    expected, _ = linear_memory(*tokens, state, rule="hebbian")
    torch.testing.assert_close(y.transpose(0, 1), expected[0], rtol=1e-12, atol=1e-12)


def test_step_sizes_and_rates_begin_as_in_the_published_code():
    torch.manual_seed(0)
    (layer,) = Mamba2Config(64, num_heads=16).build().layers
    sizes = functional.softplus(layer.step_bias)
    assert ((sizes > 9.9e-4) & (sizes < 0.101)).all()
    assert ((layer.rate.exp() >= 1) & (layer.rate.exp() <= 16)).all()
    assert layer.skip.eq(1).all()


def test_heads_are_at_most_32_wide_by_default():
    for dim, heads in ((64, 4), (256, 16), (24, 2), (22, 2), (8, 1)):
        assert Mamba2Config(dim).heads == heads


def test_invalid_sizes_are_named():
    with pytest.raises(ValueError, match=r"num_heads=5 does not divide expand \* dim=32"):
        memory.make("mamba2", dim=16, num_heads=5)
    with pytest.raises(ValueError, match="state_size=0"):
        memory.make("mamba2", dim=16, state_size=0)
