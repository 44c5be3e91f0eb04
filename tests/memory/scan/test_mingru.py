"""Tests of MinGRU: reference outputs, closed form, and states as means of candidates."""

import pytest
import torch

from scrubjay.memory.scan.mingru import MinGRUConfig

from .published_results import outputs, set_weights, wave


def test_outputs_are_those_of_published_code():
    module = MinGRUConfig(8).build().double()
    weight = torch.cat([wave(8, 8, offset=0.5), wave(8, 8, offset=0.3)])
    set_weights(module, {"inward.weight": weight, "inward.bias": torch.zeros(16)})
    y, _ = module(wave(1, 11, 8, offset=0.1), module.initial_state(1))
    torch.testing.assert_close(y[0], outputs("mingru"), rtol=0, atol=2e-7)


@torch.no_grad()
def test_states_lie_within_the_hull_of_what_was_written():
    """Every state entry lies between the smallest and the largest of 0 and its candidates so far."""
    torch.manual_seed(0)
    module = MinGRUConfig(8).build().double()
    x = 5 * torch.randn(4, 200, 8, dtype=torch.float64)
    y, _ = module(x, module.initial_state(4))
    candidate = module.inward(x)[..., 8:]
    candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
    assert (y > 0).all()
    assert (y <= candidate.cummax(dim=1).values + 1e-12).all()
    candidates = torch.cat([torch.full_like(y[:, :1], 3.0), candidate], dim=1)
    y, _ = module(x, {"hidden": candidates[:, 0]})
    assert (y <= candidates.cummax(dim=1).values[:, 1:] + 1e-12).all()
    assert (y >= candidates.cummin(dim=1).values[:, 1:] - 1e-12).all()


@torch.no_grad()
@pytest.mark.parametrize("time", [1, 2, 7, 100_000])
def test_a_constant_input_is_approached_at_one_rate(time):
    """The state is h_t = h_0 (1 - z)^t + c (1 - (1 - z)^t)."""
    torch.manual_seed(0)
    module = MinGRUConfig(8).build().double()
    x, initial = torch.randn(8, dtype=torch.float64), torch.randn(1, 8, dtype=torch.float64)
    _, state = module(x.expand(1, time, 8), {"hidden": initial})
    gate, candidate = module.inward(x).chunk(2)
    candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
    left = (1 - gate.sigmoid()) ** time
    torch.testing.assert_close(state["hidden"], initial * left + candidate * (1 - left))


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    module = MinGRUConfig(8).build().double()
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    hidden = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(2, 5, dtype=torch.bool)
    start[0, 2] = True

    def run(x, hidden, weight, bias):
        values = {"inward.weight": weight, "inward.bias": bias}
        y, after = torch.func.functional_call(module, values, (x, {"hidden": hidden}, start))
        return y, after["hidden"]

    assert torch.autograd.gradcheck(run, (x, hidden, *module.parameters()), fast_mode=True)
