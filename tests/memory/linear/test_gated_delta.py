"""Tests of Gated DeltaNet against the papers' equations, and of its options."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from scrubjay.kernels import linear_memory
from scrubjay.memory.linear.gated_delta import GatedDeltaConfig

OPTIONS: list[dict[str, Any]] = [
    {"num_heads": 2},
    {"decay": "channel", "num_heads": 2, "num_layers": 2},
    {"decay": "none", "convolution": 1, "read_before_write": False},
    {"negative_eigenvalues": True, "convolution": 2, "num_heads": 4},
    {"negative_eigenvalues": True, "householders": 3, "num_heads": 2, "num_layers": 2},
    {"householders": 2, "decay": "channel", "read_before_write": False, "convolution": 1},
    {"read_before_write": False, "epsilon": 1e-5},
]


def oracle(layer, x, start, epsilon):
    """Return a layer's outputs of one batch row, step by step."""
    heads, width, taps = layer.heads, layer.width, layer.convolution.weight
    outputs, history = [], []
    for t in range(len(x)):
        if start[t] or t == 0:
            history, matrices = [], [torch.zeros(width, width).double() for _ in range(heads)]
        normed_x = layer.norm(x[t])
        history = [layer.project_in(normed_x), *history][: len(taps)]
        convolved_qkv = torch.stack([tap * old for tap, old in zip(taps, history, strict=False)]).sum(0)
        queries, *others = functional.silu(convolved_qkv).view(-1, heads, width)
        writes = len(others) // 2
        steps = layer.max_step * torch.sigmoid(layer.step_size(normed_x)).view(writes, heads)
        read = []
        for h in range(heads):
            query, *keys = (
                part / (part.square().sum() + 1e-6).sqrt()
                for part in (queries[h], *(k[h] for k in others[:writes]))
            )
            decay = torch.ones(width).double()
            if layer.decay != "none":
                amount = functional.softplus(layer.forgetting(normed_x)).view(heads, -1)[h]
                decay = (-layer.rate[h].exp() * amount).exp().expand(width)
            before, matrices[h] = matrices[h], torch.diag(decay) @ matrices[h]
            for key, value, step in zip(keys, others[writes:], steps, strict=True):
                error = value[h] - matrices[h].T @ key
                matrices[h] = matrices[h] + step[h] * torch.outer(key, error)
            read.append((before if layer.read_before_write else matrices[h]).T @ query)
        scale = layer.out_norm.weight
        normal = torch.cat([y / (y.square().mean() + epsilon).sqrt() * scale for y in read])
        y = x[t] + layer.out(normal * functional.silu(layer.output_gate(normed_x)))
        outputs.append(y + layer.feed_forward(y))
    return torch.stack(outputs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_outputs_are_those_of_the_papers(options):
    torch.manual_seed(0)
    module = GatedDeltaConfig(16, **options).build().double()
    x = torch.randn(3, 40, 16, dtype=torch.float64)
    start = torch.rand(3, 40) < 0.08
    y, _ = module(x, module.initial_state(3), start)
    for row in range(3):
        expected = x[row]
        for layer in module.layers:
            expected = oracle(layer, expected, start[row], options.get("epsilon", 1e-4))
        torch.testing.assert_close(y[row], expected, rtol=1e-10, atol=1e-10)


def test_steps_go_up_to_two_where_eigenvalues_may_be_negative():
    torch.manual_seed(0)
    for negative, max_step in ((False, 1.0), (True, 2.0)):
        layer = GatedDeltaConfig(16, negative_eigenvalues=negative).build().layers[0]
        with torch.no_grad():
            layer.step_size.bias.fill_(50)
        tokens, _, _ = layer.project_tokens(
            torch.randn(1, 5, 16), layer.initial_state(1, torch.float32)["tail"], None
        )
        torch.testing.assert_close(tokens.step, torch.full_like(tokens.step, max_step))


def test_a_new_memory_with_negative_eigenvalues_flips_what_it_would_otherwise_erase():
    torch.manual_seed(0)
    for negative, low, high in ((False, 0.4, 0.6), (True, 1.6, 1.9)):
        layer = GatedDeltaConfig(64, negative_eigenvalues=negative, householders=2).build().layers[0]
        tokens, _, _ = layer.project_tokens(
            torch.randn(2, 50, 64), layer.initial_state(2, torch.float32)["tail"], None
        )
        assert low < tokens.step.mean() < high


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_decays_begin_as_the_published_code_has_them(decay):
    """Rates are below 16 and biases have a softplus between 0.001 and 0.1, one per head or channel."""
    torch.manual_seed(0)
    layer = GatedDeltaConfig(64, num_heads=4, decay=decay).build().layers[0]
    amounts = functional.softplus(layer.forgetting.bias)
    assert len(amounts) == (4 if decay == "head" else 64)
    assert ((amounts > 9e-4) & (amounts < 0.11)).all()
    assert ((layer.rate.exp() > 0) & (layer.rate.exp() < 16)).all()
    tokens, _, _ = layer.project_tokens(
        torch.randn(2, 5, 64), layer.initial_state(2, torch.float32)["tail"], None
    )
    assert tokens.log_decay.shape == ((2, 5, 4) if decay == "head" else (2, 5, 4, 16))
    assert (tokens.log_decay < 0).all()


def test_a_sign_is_kept_for_ever_only_by_negative_eigenvalues():
    """A key with write strength 2 and a zero value flips the sign of the stored value."""
    matrix = torch.zeros(1, 1, 8, 8)
    matrix[0, 0, 0, 1] = 1.0
    key = functional.one_hot(torch.zeros(1, 6, 1, dtype=torch.int64), 8).float()
    zeros, log_decay = torch.zeros(1, 6, 1, 8), torch.zeros(1, 6, 1)
    results = []
    for step in (1.0, 2.0):
        arguments = (key, key, zeros, log_decay, torch.full((1, 6, 1), step), matrix)
        y, _ = linear_memory(*arguments, rule="delta")
        results.append(y[0, :, 0, 1].tolist())
    assert results == [[0.0] * 6, [-1.0, 1.0] * 3]


def count_accuracy(draw, modulus, negative, steps):
    """Return the accuracy in the second half of sequences twice as long as those in training.

    `draw` returns tokens and the counts so far; the model predicts each count at its last token.
    """
    torch.manual_seed(0)
    sizes = {"num_heads": 1, "decay": "none", "convolution": 1, "read_before_write": False}
    layers = GatedDeltaConfig(16, **sizes, negative_eigenvalues=negative).build()
    words, head = nn.Embedding(3, 16), nn.Linear(16, modulus)
    weights = [weight for part in (layers, words, head) for weight in part.parameters()]
    optimizer = torch.optim.AdamW(weights, 1e-2)

    def answer(length):
        tokens, count = draw(64, length)
        y, _ = layers(words(tokens), layers.initial_state(64))
        return head(y)[:, tokens.shape[1] // length - 1 :: tokens.shape[1] // length], count % modulus

    for _ in range(steps):
        logits, count = answer(10)
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), count.flatten()).backward()
        optimizer.step()
    with torch.no_grad():
        logits, count = answer(20)
    return (logits.argmax(-1) == count)[:, 10:].double().mean().item()


def ones(rows, length):
    """Return random bits and the running count of ones."""
    bits = torch.randint(2, (rows, length))
    return bits, bits.cumsum(1)


def turns(rows, length):
    """Return words of two tokens and the running count of non-blank words.

    One step is at most a reflection, and a rotation by a third takes two reflections.
    """
    bits = torch.randint(2, (rows, length))
    return torch.stack([bits, 2 * bits], dim=2).flatten(1), bits.cumsum(1)


@pytest.mark.parametrize(
    ("draw", "modulus", "steps"),
    [
        pytest.param(ones, 2, 150, marks=pytest.mark.slow),
        pytest.param(turns, 3, 400, marks=pytest.mark.matrix),
    ],
)
def test_counting_is_learned_with_negative_eigenvalues_alone(draw, modulus, steps):
    assert count_accuracy(draw, modulus, negative=True, steps=steps) > 0.8
    assert count_accuracy(draw, modulus, negative=False, steps=steps) < 0.6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decay": "row"}, "decay='row'; choose from head, channel, none"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
        ({"convolution": 0}, "convolution=0: must be at least 1"),
        ({"num_layers": 0}, "num_layers=0: must be at least 1"),
    ],
)
def test_sizes_that_cannot_work_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        GatedDeltaConfig(16, **fields)
