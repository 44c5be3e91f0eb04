"""Streaming attention against a loop over all inputs, and its positions."""

import itertools
import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay import memory
from scrubjay.memory.sink import Sink, SinkConfig


def build(seed=0, **fields) -> Sink:
    torch.manual_seed(seed)
    config = memory.make_config("sink", **({"dim": 8, "window": 4, "num_sinks": 2} | fields))
    module = cast(Sink, config.build()).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def rotate(vector, time):
    """Rotate pairs (i, i + half) of one head's vector by time * 10000^(-2i / width)."""
    half = len(vector) // 2
    out = vector.clone()
    for i in range(half):
        angle = time * 10_000 ** (-2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = a * math.sin(angle) + b * math.cos(angle)
    return out


def one_layer(layer, inputs, num_sinks, window):
    """Return a layer's outputs for an episode from all inputs, one query, head and key at a time."""
    heads, width, rotary_dim = layer.heads, layer.width, layer.rotary_dim
    outputs = []
    for t, x in enumerate(inputs):
        visible = [j for j in range(t + 1) if j < num_sinks or t - j < window]
        read = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            query = layer.query(layer.attention_norm(x))[part]
            scores, content = [], []
            for j in visible:
                normalized = layer.attention_norm(inputs[j])
                key = layer.key(normalized)[part]
                still_score = query[rotary_dim:] @ key[rotary_dim:]
                if j < num_sinks:
                    score = still_score + query[rotary_dim:] @ layer.sink_positions[j, h]
                else:
                    score = still_score + rotate(query[:rotary_dim], t - j) @ key[:rotary_dim]
                scores.append(score * width**-0.5)
                content.append(layer.value(normalized)[part])
            if layer.sink_logit is not None:
                scores.append(layer.sink_logit[h])
                content.append(torch.zeros(width, dtype=x.dtype))
            for number in range(layer.num_learned):
                scores.append(query[rotary_dim:] @ layer.learned_keys[number, h] * width**-0.5)
                content.append(layer.learned_values[number, h])
            read.append(torch.softmax(torch.stack(scores), 0) @ torch.stack(content))
        x = x + layer.out(torch.cat(read))
        outputs.append(x + layer.feed_forward(x))
    return outputs


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_sinks=st.integers(0, 5),
    window=st.integers(2, 6),
    layers=st.integers(1, 2),
    logit=st.booleans(),
    num_learned=st.integers(0, 2),
    steps=st.integers(1, 18),
)
def test_it_equals_a_loop_over_all_inputs(seed, num_sinks, window, layers, logit, num_learned, steps):
    sizes = {"num_sinks": num_sinks, "window": window, "num_layers": layers, "num_learned_sinks": num_learned}
    module = build(seed, **sizes, sink_logit=logit)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, steps, 8, generator=generator, dtype=torch.float64)
    start = torch.rand(2, steps, generator=generator) < 0.15
    y, _ = module(x, module.initial_state(2), start)
    for row in range(2):
        cuts = [0, *[int(t) for t in start[row].nonzero() if t], steps]
        expected = []
        for first, last in itertools.pairwise(cuts):
            values = list(x[row, first:last])
            for layer in module.layers:
                values = one_layer(layer, values, num_sinks, window)
            expected += values
        torch.testing.assert_close(y[row], torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_sinks_look_the_same_however_long_ago_they_were():
    module = build(num_layers=1)
    sinks, last = torch.randn(2, 1, 8).double(), torch.randn(4, 1, 8).double()
    answers = []
    for between in (0, 1, 250):
        stream = torch.cat([sinks, torch.randn(between, 1, 8).double(), last]).transpose(0, 1)
        answers.append(module(stream, module.initial_state(1))[0][:, -1])
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(answers[0], answers[2], rtol=1e-9, atol=1e-9)


def test_without_sinks_nothing_but_the_window_counts_and_with_them_the_first_steps_do():
    for num_sinks, expected in ((0, False), (2, True)):
        module = build(num_layers=1, num_sinks=num_sinks)
        x = torch.randn(1, 30, 8).double()
        y, _ = module(x, module.initial_state(1))
        x[:, 1] = torch.randn(8).double()
        other_y, _ = module(x, module.initial_state(1))
        assert torch.equal(y[:, -1], other_y[:, -1]) is not expected


def test_the_state_never_grows_and_holds_what_it_says():
    module = memory.make("sink", dim=16, num_sinks=3, window=5, num_layers=2)
    _, state = module(torch.randn(2, 100, 16), module.initial_state(2))
    assert state["keys"].shape == state["values"].shape == (2, 2, 8, 16)
    assert module.state_bytes(1) == 2 * 2 * 8 * 16 * 4 + 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_sinks": -1}, "num_sinks=-1"),
        ({"num_learned_sinks": -1}, "num_learned_sinks=-1"),
        ({"window": 1}, "window=1"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"dim": 16, "num_heads": 8}, "num_heads=8 does not divide dim=16 .* choose from 1, 2, 4"),
        ({"dim": 16, "num_heads": 3}, "num_heads=3"),
    ],
)
def test_impossible_sizes_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        SinkConfig(**fields)
