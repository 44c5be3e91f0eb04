"""Comba compared with its equations and with Gated DeltaNet."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay.memory.linear.comba import CombaConfig
from scrubjay.memory.linear.gated_delta import GatedDeltaConfig

from ..oracles import assert_layers_equal


def oracle(layer, x, epsilon):
    """Return a layer's outputs of one episode, step by step."""
    heads, width, taps = layer.heads, layer.width, layer.convolution.weight
    matrices, history, outputs = torch.zeros(heads, width, width).double(), [], []
    for token in x:
        h = layer.norm(token)
        history = [layer.project_in(h), *history][: len(taps)]
        inputs = torch.stack([tap * old for tap, old in zip(taps, history, strict=False)]).sum(0)
        queries, keys, values = functional.silu(inputs).view(3, heads, width)
        strengths, amounts = torch.sigmoid(layer.step_size(h)), functional.softplus(layer.forgetting(h))
        read = []
        for n in range(heads):
            q, k = (part / (part.square().sum() + 1e-6).sqrt() for part in (queries[n], keys[n]))
            erasure, decay = torch.sigmoid(layer.erasure[n]), torch.exp(-layer.rate[n].exp() * amounts[n])
            old = decay * matrices[n]
            matrices[n] = old + strengths[n] * torch.outer(k, values[n] - erasure * old.T @ k)
            read.append(matrices[n].T @ (q - layer.correction[n] * erasure * k))
        read = [layer.out_norm.weight * y / (y.square().mean() + epsilon).sqrt() for y in read]
        y = token + layer.out(torch.cat(read) * functional.silu(layer.output_gate(h)))
        outputs.append(y + layer.feed_forward(y))
    return torch.stack(outputs)


@pytest.mark.parametrize(
    "fields", [{}, {"num_layers": 2, "num_heads": 4, "convolution": 2}, {"epsilon": 1e-5}], ids=str
)
@torch.no_grad()
def test_outputs_are_those_of_the_paper(fields):
    torch.manual_seed(0)
    module: Any = CombaConfig(16, **fields).build().double()
    for layer in module.layers:
        layer.erasure.copy_(torch.randn(layer.heads))
        layer.correction.copy_(torch.randn(layer.heads))
    epsilon = fields.get("epsilon", 1e-4)
    assert_layers_equal(
        module, lambda layer, x: oracle(layer, x, epsilon), torch.randn(2, 40, 16).double(), 1e-10
    )


@torch.no_grad()
def test_full_erasure_without_correction_is_gated_delta():
    torch.manual_seed(0)
    module: Any = CombaConfig(16, num_heads=2).build().double()
    peer = GatedDeltaConfig(16, num_heads=2, read_before_write=False).build().double()
    (layer,) = module.layers
    layer.erasure.fill_(50)
    layer.correction.zero_()
    names = [name for name in module.state_dict() if not name.endswith(("erasure", "correction"))]
    peer.load_state_dict({name: module.state_dict()[name] for name in names})
    x, start = torch.randn(2, 30, 16).double(), torch.rand(2, 30) < 0.1
    y, peer_y = (model(x, model.initial_state(2), start)[0] for model in (module, peer))
    torch.testing.assert_close(y, peer_y, rtol=1e-12, atol=1e-12)
