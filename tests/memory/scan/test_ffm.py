"""Tests of FFM: reference outputs, closed forms, and the range of the learned rates."""

import cmath
import math

import pytest
import torch

from scrubjay.memory.scan.ffm import FASTEST, FFMConfig

from .published_results import outputs, set_weights, wave


def test_outputs_are_those_of_published_code():
    module = FFMConfig(8, trace_size=3, context_size=2).build().double()
    rates = 0.3 + 0.2 * wave(3, offset=0.3)
    # The published code puts the skip connection before the gates.
    order = [0, 1, 2, 11, 12, 13, *range(3, 11), *range(14, 22)]
    set_weights(
        module,
        {
            "rate": torch.logit(rates / FASTEST),
            "frequency": 1 + wave(2, offset=0.5),
            "inward.weight": wave(22, 8, offset=0.7)[order],
            "inward.bias": wave(22, offset=0.9)[order],
            "mix.weight": wave(8, 12, offset=1.1),
            "mix.bias": wave(8, offset=1.3),
        },
    )
    y, _ = module(wave(1, 11, 8, offset=0.1), module.initial_state(1))
    torch.testing.assert_close(y[0], outputs("ffm"), rtol=0, atol=2e-6)


@torch.no_grad()
def test_a_constant_input_is_written_as_a_geometric_series():
    torch.manual_seed(0)
    module = FFMConfig(8, trace_size=3, context_size=2).build().double()
    x = torch.randn(8, dtype=torch.float64)
    trace, input_gate = module.inward(x)[:6].chunk(2)
    for time in (1, 2, 7, 1000):
        _, state = module(x.expand(1, time, 8), module.initial_state(1))
        for m in range(3):
            for c in range(2):
                rate = FASTEST * module.rate[m].sigmoid()
                decay = cmath.exp(complex(-rate, module.frequency[c]))
                expected = complex(trace[m] * input_gate[m].sigmoid()) * (1 - decay**time) / (1 - decay)
                assert complex(*state["hidden"][0, m, c].tolist()) == pytest.approx(expected)


def test_new_traces_are_forgotten_from_at_once_to_after_the_longest_period():
    module = FFMConfig(64, max_period=500).build()
    modulus = torch.view_as_complex(module.fold_weights().detach()).abs()[:, 0]
    assert (modulus[1:] > modulus[:-1]).all()
    assert modulus[0] == pytest.approx(math.exp(0.01 - FASTEST), rel=1e-5)
    assert modulus[-1] ** 500 == pytest.approx(0.01, rel=1e-3)
    periods = 2 * math.pi / module.frequency.detach()
    torch.testing.assert_close(periods, torch.linspace(1, 500, 4))


@pytest.mark.parametrize("parameter_value", [-80.0, -3.0, 3.0, 80.0])
def test_rates_stay_in_their_range_whatever_is_learned(parameter_value):
    module = FFMConfig(16).build()
    with torch.no_grad():
        module.rate.fill_(parameter_value)
    modulus = torch.view_as_complex(module.fold_weights()).abs()
    assert (modulus <= 1 + 1e-6).all()
    assert (modulus >= math.exp(-FASTEST) - 1e-6).all()
    y, state = module(torch.ones(1, 300, 16), module.initial_state(1))
    (gradient,) = torch.autograd.grad(y.sum() + state["hidden"].sum(), module.rate)
    assert gradient.isfinite().all()
    assert abs(parameter_value) > 50 or gradient.any()


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    module = FFMConfig(8).build().double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(2, 2, 4, 2, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(2, 5, dtype=torch.bool)
    start[0, 2] = True
    names = [name for name, _ in module.named_parameters()]

    def run(x, hidden, *values):
        inputs = (x, {"hidden": hidden}, start)
        y, after = torch.func.functional_call(module, dict(zip(names, values, strict=True)), inputs)
        return y, after["hidden"]

    assert torch.autograd.gradcheck(run, (x, hidden, *module.parameters()), fast_mode=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trace_size": 0}, "trace_size=0: must be at least 1"),
        ({"context_size": 0}, "context_size=0: must be at least 1"),
        ({"max_period": 7}, "max_period=7: must be at least 8 steps"),
    ],
)
def test_sizes_that_cannot_work_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        FFMConfig(16, **fields)
