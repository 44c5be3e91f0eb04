"""Tests of Lightning Attention against the papers' equations and in closed form."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay import memory
from scrubjay.memory.linear.lightning import LightningConfig, rms_normalize

OPTIONS: list[dict[str, Any]] = [{}, {"num_heads": 8, "num_layers": 3}, {"slopes": "geometric"}]


def oracle(layer, decays, x):
    """Return a layer's outputs of one episode, step by step."""
    heads, width = len(decays), x.shape[1] // len(decays)
    matrices, outputs = [torch.zeros(width, width).double() for _ in decays], []
    for token in x:
        normed_x = token / (token.norm() / token.numel() ** 0.5)
        query, key, value, gate = layer.project_in(normed_x).chunk(4)
        query, key = functional.silu(query), functional.silu(key)
        read = []
        for h in range(heads):
            q, k, v = (part.view(heads, width)[h] for part in (query, key, value))
            matrices[h] = decays[h] * matrices[h] + torch.outer(k, v)
            y = matrices[h].T @ q
            read.append(y / (y.square().mean() + 1e-4).sqrt())
        token = token + layer.out(torch.cat(read) * gate)
        left, right = layer.feed_in(token / (token.norm() / token.numel() ** 0.5)).chunk(2)
        outputs.append(token + layer.feed_out(left * right))
    return torch.stack(outputs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@torch.no_grad()
def test_outputs_are_those_of_the_papers(options):
    torch.manual_seed(0)
    config = LightningConfig(16, **options)
    module = config.build().double()
    x = 3 * torch.randn(2, 40, 16, dtype=torch.float64)
    start = torch.zeros(2, 40, dtype=torch.bool)
    start[0, 13] = start[1, 31] = True
    y, _ = module(x, module.initial_state(2), start)
    for row, border in ((0, 13), (1, 31)):
        for part in (slice(0, border), slice(border, 40)):
            expected, heads = x[row, part], config.heads
            for index, layer in enumerate(module.layers):
                rates = [8 * h / heads for h in range(heads)]
                if "slopes" in options:
                    rates = [2 ** (-8 * h / heads) for h in range(1, heads + 1)]
                decays = [math.exp(-rate * (1 - index / config.num_layers)) for rate in rates]
                expected = oracle(layer, decays, expected)
            # The paper's norm divides by the length, this one by the root of its square plus 1e-6.
            torch.testing.assert_close(y[row, part], expected, rtol=2e-5, atol=2e-5)


def published_definition(layer, decays, x, angles):
    """Return a layer's outputs of one episode from all pairs of steps, with absolute positions.

    The norm is over all heads. Keys and queries are `x cos(a t), x sin(a t)` if there are angles a.
    """
    heads, width = len(decays), x.shape[1] // len(decays)
    normed_x = [token / (token.square().mean() + 1e-6).sqrt() for token in x]
    parts = [layer.project_in(token).view(4, heads, width) for token in normed_x]

    def encode(vector, time, h):
        vector = functional.silu(vector)
        if angles is None:
            return vector
        return torch.cat([vector * (angles[h] * time).cos(), vector * (angles[h] * time).sin()])

    outputs = []
    for t in range(len(x)):
        y = torch.zeros(heads, width).double()
        for h in range(heads):
            query = encode(parts[t][0, h], t, h)
            for s in range(t + 1):
                y[h] += decays[h] ** (t - s) * (query @ encode(parts[s][1, h], s, h)) * parts[s][2, h]
        y = y.flatten() / (y.square().mean() + 1e-6).sqrt()
        y = x[t] + layer.out(y * parts[t][3].flatten())
        left, right = layer.feed_in(y / (y.square().mean() + 1e-6).sqrt()).chunk(2)
        outputs.append(y + layer.feed_out(left * right))
    return torch.stack(outputs)


@torch.no_grad()
def test_the_paper_has_one_norm_and_positions_in_the_first_layer():
    torch.manual_seed(0)
    module: Any = memory.make("lightning", paper=True, dim=16).double()
    assert [name for name, _ in module.named_parameters() if "angles" in name] == ["layers.0.angles"]
    initial = 10_000.0 ** (-2 / 16 * torch.arange(16)).view(4, 4).double()
    torch.testing.assert_close(module.layers[0].angles.data, initial, rtol=1e-6, atol=0)
    module.layers[0].angles.copy_(torch.randn(4, 4))
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    start = torch.zeros(2, 30, dtype=torch.bool)
    start[0, 13] = start[1, 21] = True
    y, state = module(x[:, :8], module.initial_state(2), start[:, :8])
    rest, state = module(x[:, 8:], state, start[:, 8:])
    for row, border in ((0, 13), (1, 21)):
        for part in (slice(0, border), slice(border, 30)):
            expected = x[row, part]
            for index, layer in enumerate(module.layers):
                decays = [math.exp(-(2 ** (-2.0 * h)) * (1 - index / 2)) for h in range(1, 5)]
                angles = None if index else layer.angles
                expected = published_definition(layer, decays, expected, angles)
            torch.testing.assert_close(torch.cat([y, rest], dim=1)[row, part], expected, rtol=0, atol=1e-10)


def test_a_stepper_turns_the_state_in_place(check_stepper, check_forgets):
    torch.manual_seed(0)
    module = memory.make("lightning", paper=True, dim=16)
    check_forgets(module)
    check_stepper(module.double(), torch.randn(2, 20, 16, dtype=torch.float64))


@torch.no_grad()
def test_angles_are_exact_in_long_episodes():
    torch.manual_seed(0)
    module: Any = memory.make("lightning", paper=True, dim=16, num_layers=1)
    x = torch.randn(1, 2000, 16)
    y, after = module(x, module.initial_state(1))
    state, steps = module.initial_state(1), []
    for t in range(2000):
        one, state = module.step(x[:, t], state)
        steps.append(one)
    torch.testing.assert_close(torch.stack(steps, dim=1), y, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(state["matrix_0"], after["matrix_0"], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_constant_input_is_written_as_a_geometric_series():
    """The state is S_t = k v^T (1 - d^t) / (1 - d), or t k v^T without decay."""
    torch.manual_seed(0)
    config = LightningConfig(16, num_layers=1)
    module = config.build().double()
    x = torch.randn(16, dtype=torch.float64)
    for time in (1, 2, 7, 100, 1000):
        _, state = module(x.expand(1, time, 16), module.initial_state(1))
        layer = module.layers[0]
        _, key, value, _ = layer.project_in(rms_normalize(x, 1e-6)).view(4, 4, 4)
        for head, log_decay in enumerate(config.log_decays(0)):
            decay = math.exp(log_decay)
            total = time if decay == 1 else (1 - decay**time) / (1 - decay)
            expected = total * torch.outer(functional.silu(key[head]), value[head])
            torch.testing.assert_close(state["matrix_0"][0, head], expected, rtol=1e-6, atol=1e-6)


def test_heads_fade_from_never_to_at_once_and_later_layers_less():
    config = LightningConfig(16, num_layers=2)
    assert config.log_decays(0) == [0, -2, -4, -6]
    assert config.log_decays(1) == [0, -1, -2, -3]
    config = LightningConfig(16, num_layers=2, slopes="geometric")
    assert config.log_decays(0) == [-(2.0**-2), -(2.0**-4), -(2.0**-6), -(2.0**-8)]
    assert config.log_decays(1) == [-(2.0**-3), -(2.0**-5), -(2.0**-7), -(2.0**-9)]


@torch.no_grad()
def test_what_no_head_forgets_is_there_after_a_thousand_steps():
    """Two episodes differ in their first input only; the head that never decays tells them apart."""
    torch.manual_seed(0)
    module = LightningConfig(16, num_layers=1).build().double()
    first, rest = torch.randn(2, 1, 16).double(), torch.randn(1, 1000, 16).double().expand(2, -1, -1)
    y, state = module(torch.cat([10 * first, rest], dim=1), module.initial_state(2))
    difference = (state["matrix_0"][0] - state["matrix_0"][1]).abs().amax(dim=(1, 2))
    assert difference[0] > 1e-3
    assert difference[1:].max() < 1e-12
    assert (y[0, -1] - y[1, -1]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"slopes": "steep"}, "slopes='steep'; choose from linear, geometric"),
        ({"epsilon": -1.0}, "epsilon=-1.0: must be finite and above 0"),
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
        ({"num_layers": 0}, "num_layers=0: must be at least 1"),
        ({"feed_forward_ratio": 0}, "feed_forward_ratio=0: must be at least 1"),
    ],
)
def test_sizes_that_cannot_work_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        LightningConfig(16, **fields)
