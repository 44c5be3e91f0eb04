"""Tests of the Titans architectures against plain loops and the paper's equations."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay import memory
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.titans.attention import WindowAttention


def rotate(x, time, rotary_width):
    """Return a head's vector with its first `rotated` coordinates rotated as complex numbers."""
    half = rotary_width // 2
    pairs = torch.complex(x[:half], x[half:rotary_width])
    angle = time * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) * 2 / rotary_width)
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag, x[rotary_width:]])


def attend(module, query, keys, values):
    """Return the attention output over keys, values and persistent tokens, one head at a time."""
    heads = []
    for h in range(module.heads):
        key, value = [k[h] for k in keys], [v[h] for v in values]
        for persistent_key, persistent in zip(module.persistent_keys, module.persistent_values, strict=True):
            key.append(torch.cat([torch.zeros(module.rotary_width, dtype=torch.float64), persistent_key[h]]))
            value.append(persistent[h])
        scores = torch.stack(key) @ query[h] / module.width**0.5
        heads.append(torch.softmax(scores, 0) @ torch.stack(value))
    return module.out(torch.cat(heads))


def project(module, x, time):
    """Return query, key and value of one step as lists over heads."""
    query, key, value = (p(x).view(module.heads, -1) for p in (module.query, module.key, module.value))
    return (
        [rotate(q, time, module.rotary_width) for q in query],
        [rotate(k, time, module.rotary_width) for k in key],
        value,
    )


def test_window_attention_sees_the_window_of_the_episode_and_the_persistent_tokens():
    torch.manual_seed(0)
    module = WindowAttention(16, num_heads=2, num_persistent=3, window=4).double()
    x = torch.randn(2, 13, 16, dtype=torch.float64)
    start = torch.zeros(2, 13, dtype=torch.bool)
    start[0, 5] = start[0, 7] = start[1, 0] = True
    state, age = module.initial_state(2, torch.float64, x.device), torch.zeros(2, dtype=torch.int64)
    first, state = module.attend(x[:, :3], state, Clock.from_starts(age, start[:, :3]))
    age = torch.full((2,), 3)
    rest, _ = module.attend(x[:, 3:], state, Clock.from_starts(age, start[:, 3:]))
    result = torch.cat([first, rest], dim=1)
    for row in range(2):
        episode_start = 0
        for t in range(13):
            episode_start = t if start[row, t] else episode_start
            visible = range(max(episode_start, t - 3), t + 1)
            parts = [project(module, x[row, s], s - episode_start) for s in visible]
            expected = attend(module, parts[-1][0], [p[1] for p in parts], [p[2] for p in parts])
            torch.testing.assert_close(result[row, t], expected, rtol=1e-10, atol=1e-10)


def apply_gate(layer, attention_out, recalls, kind):
    """Return the gated combination of both branches."""
    branches = []
    for branch, norm in ((attention_out, layer.attended_norm), (recalls, layer.recalled_norm)):
        branches.append(branch / (branch.square().mean() + 1e-4).sqrt() * norm.weight)
    if kind == "product":
        return layer.out(functional.silu(branches[0]) * functional.silu(branches[1]))
    open_ = torch.sigmoid(branches[0] + branches[1])
    return layer.out(open_ * branches[0] + (1 - open_) * branches[1])


@pytest.mark.parametrize(("gate", "chunks"), [("mix", 1), ("product", 1), ("mix", 2), ("product", 3)])
def test_memory_as_context_follows_the_papers_order(gate, chunks):
    """Equations 21 to 25 by single steps.

    Recall from the memory at the segment's start, attend, write the attention output, recall, gate.
    """
    torch.manual_seed(1)
    size = 4
    sizes = {"dim": 16, "depth": 2, "chunk_size": size, "num_persistent": 2, "gate": gate}
    module: Any = memory.make("titans_mac", **sizes, segment_chunks=chunks).double()
    layer = module.layers[0]
    torch.nn.init.normal_(layer.memory.weights[-1], std=0.4)
    x = torch.randn(1, 27, 16, dtype=torch.float64)
    result, _ = module(x, module.initial_state(1))
    memory_state = layer.memory.initial_state(1, torch.float64, x.device)
    attention = layer.attention
    for t in range(27):
        if t % (chunks * size) == 0:
            at_start, keys, values = memory_state, [], []
        normed_x = layer.memory_norm(x[0, t])
        query = functional.silu(layer.recall_query(normed_x)).view(layer.memory.heads, -1)
        query = query / (query.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        weights, begin, read = [], 0, query
        for layer_weights in layer.memory.weights:
            shape = layer_weights.shape[1:]
            delta = at_start["delta"][0, :, begin : begin + shape.numel()].view(-1, *shape)
            weights.append(layer_weights + delta)
            begin += shape.numel()
        read = functional.silu(read[:, None] @ weights[0]) @ weights[1]
        recalls = layer.memory.out(layer.memory.out_norm(read[:, 0]).flatten())
        for token in (normed_x, recalls):
            query, key, value = project(attention, token, t % (chunks * size))
            keys.append(key)
            values.append(value)
        attention_out = x[0, t] + attend(
            attention, project(attention, normed_x, t % (chunks * size))[0], keys, values
        )
        write_input = layer.write_norm(attention_out)[None]
        second_recall, _, memory_state = layer.memory.step(write_input, memory_state, torch.tensor([t]))
        expected = layer.feed(x[0, t] + apply_gate(layer.gate, attention_out, second_recall[0], gate))
        torch.testing.assert_close(result[0, t], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "gate"), [("titans_mag", "mix"), ("titans_mag", "product"), ("titans_mal", "")]
)
def test_memory_as_gate_and_as_layer_follow_the_papers_order(name, gate):
    """Equations 26 to 31 by single steps.

    In parallel and gated, or memory first and attention over its outputs.
    """
    torch.manual_seed(2)
    sizes = {"dim": 16, "depth": 2, "chunk_size": 4, "window": 3, "num_persistent": 2}
    module: Any = memory.make(name, **sizes, **({"gate": gate} if gate else {})).double()
    layer = module.layers[0]
    torch.nn.init.normal_(layer.memory.weights[-1], std=0.4)
    x = torch.randn(1, 11, 16, dtype=torch.float64)
    result, _ = module(x, module.initial_state(1))
    memory_state, steps = layer.memory.initial_state(1, torch.float64, x.device), []
    for t in range(11):
        here = x[0, t]
        recalls, _, memory_state = layer.memory.step(
            layer.memory_norm(here)[None], memory_state, torch.tensor([t])
        )
        recalls = recalls[0]
        if name == "titans_mal":
            here = here + recalls
        normed_x = layer.attention_norm(here) if name == "titans_mal" else layer.memory_norm(here)
        steps.append(project(layer.attention, normed_x, t))
        visible = steps[-3:]
        attention_out = attend(
            layer.attention, visible[-1][0], [s[1] for s in visible], [s[2] for s in visible]
        )
        if name == "titans_mag":
            attention_out = apply_gate(layer.gate, attention_out, recalls, gate)
        torch.testing.assert_close(result[0, t], layer.feed(here + attention_out), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["titans_mac", "titans_mag", "titans_mal"])
def test_the_architectures_report_surprise(name):
    torch.manual_seed(0)
    module: Any = memory.make(name, dim=8, chunk_size=3)
    start = torch.zeros(2, 10, dtype=torch.bool)
    start[1, 4] = True
    y, surprise, state = module.segment_with_surprise(torch.randn(2, 10, 8), module.initial_state(2), start)
    assert y.shape == (2, 10, 8)
    assert surprise.shape == (2, 10)
    assert (surprise > 0).all()
    assert state["time"].tolist() == [10, 6]


@pytest.mark.parametrize("name", ["titans_mag", "titans_mal"])
def test_persistent_tokens_and_window_are_seen(name):
    torch.manual_seed(0)
    module: Any = memory.make(name, dim=8, window=4, chunk_size=2)
    x = torch.randn(1, 9, 8)
    y, _ = module(x, module.initial_state(1))
    with torch.no_grad():
        module.layers[0].attention.persistent_values.add_(1.0)
    other, _ = module(x, module.initial_state(1))
    assert ((y - other).abs().amax(-1) > 1e-4).all()


def test_impossible_sizes_are_named():
    for name, fields, message in [
        ("titans_mac", {"convolution": 4}, "convolution=4: titans_mac has no convolution"),
        ("titans_mag", {"window": 1}, "window=1: must be at least 2, because the window includes"),
        ("titans_mal", {"num_persistent": -1}, "num_persistent=-1: must not be negative"),
        ("titans_mac", {"num_persistent": -1}, "num_persistent=-1: must not be negative"),
        ("titans_mag", {"gate": "sum"}, "gate='sum'; choose from mix, product"),
        ("titans_mac", {"segment_chunks": 0}, "segment_chunks=0: must be at least 1"),
        ("titans_mac", {"gate": "sum"}, "gate='sum'; choose from mix, product"),
        ("titans_mag", {"attention_heads": 3}, "attention_heads=3 does not divide dim=8"),
    ]:
        with pytest.raises(ValueError, match=message):
            memory.make(name, **({"dim": 8} | fields))
