"""Tests of AGaLiTe: reference outputs, cosines after any number of steps, and sums in closed form."""

import math

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.scan.agalite import AGaLiTeConfig

from .published_results import outputs, set_weights, wave


def weight(number, *shape):
    """Return weights of the published code by their number in its own order."""
    return wave(*shape, offset=0.3 + 0.2 * number)


def gate(name, first):
    """Return the weights of a gate; the published code has six separate, transposed matrices."""
    candidate_state, reset, update, candidate, reset_state, update_state = (
        weight(first + i, 8, 8).T for i in range(6)
    )
    return {
        f"{name}.update.weight": torch.cat([reset_state, update_state, candidate]),
        f"{name}.stream.weight": torch.cat([reset, update]),
        f"{name}.reset_stream.weight": candidate_state,
        f"{name}.bias": weight(first + 6, 8),
    }


@pytest.mark.parametrize("frequencies", [2, 4, 5])
def test_outputs_are_those_of_published_code(frequencies):
    config = AGaLiTeConfig(8, num_heads=2, num_features=3, num_frequencies=frequencies)
    module = config.build().double()
    set_weights(
        module,
        {
            "project_in.bias": weight(0, 40),
            "project_in.weight": weight(1, 8, 40).T,
            "project_features.bias": weight(2, 18),
            "project_features.weight": weight(3, 8, 18).T,
            "project_out.bias": weight(4, 8),
            "project_out.weight": weight(5, 8, 8).T,
            "feed_forward.1.bias": weight(6, 8),
            "feed_forward.1.weight": weight(7, 8, 8).T,
            "feed_forward.3.bias": weight(8, 8),
            "feed_forward.3.weight": weight(9, 8, 8).T,
            **gate("attention_gate", 10),
            **gate("feed_forward_gate", 17),
            "attention_norm.bias": weight(24, 8),
            "attention_norm.weight": weight(25, 8),
            "feed_forward.0.bias": weight(26, 8),
            "feed_forward.0.weight": weight(27, 8),
        },
    )
    y, _ = module(wave(1, 11, 8, offset=0.1), module.initial_state(1))
    torch.testing.assert_close(y[0], outputs("agalite", f"frequencies_{frequencies}"), rtol=0, atol=2e-7)


def slow_definition(module, x, epsilon):
    """Return the outputs of one episode, step by step and head by head, from the equations of the paper."""
    heads, width, frequencies = 2, 4, [-math.pi, math.pi]
    keys = [[torch.zeros(3 * width).double() for _ in frequencies] for _ in range(heads)]
    values = [[torch.zeros(width).double() for _ in frequencies] for _ in range(heads)]
    sums = [torch.zeros(3 * width).double() for _ in range(heads)]
    outputs = []
    for t, token in enumerate(x, start=1):
        normed_x = module.attention_norm(token)
        parts = module.project_in(normed_x).view(heads, 5, width)
        features = module.project_features(normed_x).view(heads, 3, 3)
        reads = []
        for h in range(heads):
            key, query = (torch.outer(features[h, i].relu(), parts[h, i].relu()).flatten() for i in range(2))
            gate = torch.outer(features[h, 2].sigmoid(), parts[h, 4].sigmoid()).flatten()
            value_gate = parts[h, 3].sigmoid()
            sums[h] = (1 - gate) * sums[h] + gate * key
            total = torch.zeros(width).double()
            for i, frequency in enumerate(frequencies):
                cosine = math.cos(frequency * t)
                keys[h][i] = (1 - gate) * keys[h][i] + gate * key * cosine
                values[h][i] = (1 - value_gate) * values[h][i] + value_gate * parts[h, 2] * cosine
                total = total + values[h][i] * (keys[h][i] @ query)
            reads.append(total / (2 * len(frequencies) * (sums[h] @ query) + epsilon))
        y = module.attention_gate(token, module.project_out(torch.cat(reads)).relu())
        outputs.append(module.feed_forward_gate(y, module.feed_forward(y)))
    return torch.stack(outputs)


@torch.no_grad()
@pytest.mark.parametrize(("paper", "epsilon"), [(True, 1e-5), (False, 1e-3)])
def test_the_paper_adds_less_to_the_denominator(paper, epsilon):
    torch.manual_seed(0)
    module = memory.make("agalite", paper=paper, dim=8, num_heads=2, num_features=3).double()
    x = torch.randn(1, 40, 8, dtype=torch.float64)
    y, _ = module(x, module.initial_state(1))
    torch.testing.assert_close(y[0], slow_definition(module, x[0], epsilon), rtol=0, atol=1e-10)


@pytest.mark.parametrize("count", range(1, 9))
def test_cosines_are_those_of_all_frequencies_after_any_number_of_steps(count):
    module = AGaLiTeConfig(8, num_frequencies=count).build().double()
    all_of_them = torch.linspace(-math.pi, math.pi, count, dtype=torch.float64)
    time = torch.arange(100)
    cosines = module._cosines(time)
    assert len(module.multiples) == (count + 1) // 2
    assert module.counts.sum() == count
    # Each channel counts as many frequencies as it represents.
    expected = torch.cos(time[:, None] * all_of_them).sort(dim=1).values
    spread = cosines.repeat_interleave(module.counts, dim=1).sort(dim=1).values
    torch.testing.assert_close(spread, expected, rtol=0, atol=1e-12)
    for later in (10**6, 2**40):
        period = 2 * max(1, count - 1)
        assert torch.equal(module._cosines(time + later * period), cosines)


@torch.no_grad()
@pytest.mark.parametrize("time", [1, 2, 9, 1000])
def test_a_constant_input_is_written_as_geometric_series(time):
    """The sum is s = k (1 - d^t) with d = 1 - g; with alternating signs, K = g k ((-1)^t - d^t) / (1 + d)."""
    torch.manual_seed(0)
    module = AGaLiTeConfig(8, num_heads=2, num_features=2).build().double()
    x = torch.randn(8, dtype=torch.float64)
    _, state = module(x.expand(1, time, 8), module.initial_state(1))
    normed_x = module.attention_norm(x)
    key, _, value, value_gate, key_gate = module.project_in(normed_x).view(2, 5, 4).unbind(1)
    of_key, _, of_gate = module.project_features(normed_x).view(2, 3, 2).unbind(1)
    key = torch.einsum("hf,hw->hfw", of_key.relu(), key.relu()).flatten(1)
    gates = torch.einsum("hf,hw->hfw", of_gate.sigmoid(), key_gate.sigmoid()).flatten(1)
    torch.testing.assert_close(state["keys"][0, 0], key * (1 - (1 - gates) ** time))

    def alternating(gate):
        decay, signs = (1 - gate) ** time, (-1) ** time
        return gate * (signs - decay) / (2 - gate)

    torch.testing.assert_close(state["keys"][0, 1], key * alternating(gates))
    torch.testing.assert_close(state["values"][0, 0], value * alternating(value_gate.sigmoid()))


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    module = AGaLiTeConfig(8, num_heads=2, num_features=2, num_frequencies=3).build().double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    keys = torch.rand(2, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(2, 5, dtype=torch.bool)
    start[0, 2] = True
    names = [name for name, _ in module.named_parameters()]

    def run(x, keys, values, *weights):
        state = {"keys": keys, "values": values, "time": torch.tensor([3, 0])}
        parameters = dict(zip(names, weights, strict=True))
        y, after = torch.func.functional_call(module, parameters, (x, state, start))
        return y, after["keys"], after["values"]

    assert torch.autograd.gradcheck(run, (x, keys, values, *module.parameters()), fast_mode=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide dim=16"),
        ({"num_features": 0}, "num_features=0: must be at least 1"),
        ({"num_frequencies": 0}, "num_frequencies=0: must be at least 1"),
        ({"num_frequencies": 2**40}, "num_frequencies=1099511627776: must be at most 1024"),
        ({"feed_forward_ratio": 0}, "feed_forward_ratio=0: must be at least 1"),
        ({"epsilon": 0.0}, "epsilon=0.0: must be finite and above 0"),
        ({"gate_bias": math.nan}, "gate_bias=nan: must be finite"),
    ],
)
def test_sizes_that_cannot_work_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        AGaLiTeConfig(16, **fields)
