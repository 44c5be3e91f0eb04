"""Tests of LRU: reference outputs, closed forms, and decay over long segments."""

import cmath
import math

import pytest
import torch

from scrubjay.memory.scan.lru import LRUConfig

from .published_results import outputs, set_weights, wave


def test_outputs_are_those_of_published_code():
    module = LRUConfig(8).build().double()
    set_weights(
        module,
        {
            "log_rate": -2 + wave(4, offset=0.3),
            "log_phase": wave(4, offset=0.5),
            "log_scale": -1 + wave(4, offset=0.7),
            "norm.weight": 1 + 0.5 * wave(8, offset=2.7),
            "norm.bias": wave(8, offset=2.9),
            "inward": torch.stack([wave(4, 8, offset=0.9), wave(4, 8, offset=1.1)], dim=1),
            # Re(C h) has the imaginary parts with a minus.
            "outward": torch.stack([wave(8, 4, offset=1.3), -wave(8, 4, offset=1.5)], dim=2),
            "through": wave(8, offset=1.7),
            "gate.weight": torch.cat([wave(8, 8, offset=1.9).T, wave(8, 8, offset=2.3).T]),
            "gate.bias": torch.cat([wave(8, offset=2.1), wave(8, offset=2.5)]),
        },
    )
    y, _ = module(wave(1, 11, 8, offset=0.1), module.initial_state(1))
    torch.testing.assert_close(y[0], outputs("lru"), rtol=0, atol=2e-7)


@torch.no_grad()
def test_a_constant_input_is_written_as_a_geometric_series():
    torch.manual_seed(0)
    module = LRUConfig(8, num_channels=5).build().double()
    x = torch.randn(8, dtype=torch.float64)
    write = torch.view_as_complex(module.write(x, module.fold_weights()).value)
    for time in (1, 2, 7, 1000):
        _, state = module(x.expand(1, time, 8), module.initial_state(1))
        for n in range(5):
            factor = cmath.exp(complex(-module.log_rate[n].exp(), module.log_phase[n].exp()))
            expected = complex(write[n]) * (1 - factor**time) / (1 - factor)
            assert complex(*state["hidden"][0, n].tolist()) == pytest.approx(expected)


@torch.no_grad()
def test_no_channel_grows_whatever_its_rate():
    module = LRUConfig(16).build()
    module.log_rate.copy_(torch.linspace(-12, 3, 8))
    moduli = torch.view_as_complex(module.fold_weights().decay).abs()
    assert (moduli[1:] < moduli[:-1]).all()
    assert moduli[0] < 1
    # The initial state decays by the rates alone, over a hundred segments.
    module.inward.zero_()
    state = {"hidden": torch.tensor([1.0, 0.0]).expand(1, 8, 2)}
    for _ in range(100):
        _, state = module(torch.ones(1, 1000, 16), state)
    remaining = torch.exp(-1e5 * module.log_rate.exp())
    torch.testing.assert_close(state["hidden"].norm(dim=-1)[0], remaining, rtol=0.02, atol=1e-6)


def test_new_channels_lie_in_the_ring_that_is_asked_for_and_write_as_much_as_they_forget():
    module = LRUConfig(64, num_channels=4000, min_modulus=0.5, max_modulus=0.8, max_phase=1.0).build()
    decay = torch.view_as_complex(module.fold_weights().decay.detach())
    moduli, phases = decay.abs(), decay.angle()
    assert 0.5 < moduli.min() < 0.51
    assert 0.79 < moduli.max() < 0.8
    assert 0 < phases.min() < 0.01
    assert 0.99 < phases.max() < 1.0
    # Uniform on the area: half of it is inside the root of the mean of squares.
    inside = (moduli < math.sqrt((0.5**2 + 0.8**2) / 2)).float().mean()
    assert inside == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(module.log_scale.exp() ** 2 + moduli**2, torch.ones(4000))


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    module = LRUConfig(8, num_channels=3).build().double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
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
        ({"num_channels": 0}, "num_channels=0: must be at least 1"),
        (
            {"min_modulus": 0.9, "max_modulus": 0.9},
            "min_modulus=0.9, max_modulus=0.9: min_modulus must be less",
        ),
        ({"max_modulus": 1.5}, "max_modulus=1.5: .* between 0 and 1"),
        ({"min_modulus": float("nan")}, "min_modulus=nan"),
        ({"max_phase": 0.0}, "max_phase=0.0: must be more than 0"),
    ],
)
def test_sizes_that_cannot_work_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        LRUConfig(16, **fields)
