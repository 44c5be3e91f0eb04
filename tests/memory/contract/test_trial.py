"""The test fixture of the laws: reproducible data, cuts, autocast and the comparison."""

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.contract.trial import MemoryLawError, Trial, compare


def trial(dtype=torch.float32, **options):
    return Trial(memory.make("gru", dim=8), 8, 12, dtype, seed=3, **options)


def test_equal_trials_draw_equal_data_whatever_the_dtype():
    one, other = trial(), trial(torch.float64)
    assert torch.equal(one.draw(), other.draw().float())
    assert torch.equal(one.draw_starts(), other.draw_starts())


def test_a_run_that_is_cut_is_the_run():
    ours = trial()
    x, start, state = ours.draw(), ours.draw_starts(), ours.draw_state()
    whole, after = ours.memory(x, state, start)
    y, end = ours.run(x, state, start, cuts=[1, 5])
    torch.testing.assert_close(y, whole)
    torch.testing.assert_close(end, after)


def test_with_autocast_the_memory_and_nothing_else_runs_under_it():
    ours = Trial(memory.make("none", dim=8), 8, 12, torch.float32, seed=3, autocast=True)
    x = ours.draw()
    y, _ = ours.memory(x, {})
    assert not torch.is_autocast_enabled("cpu")
    assert y.dtype == torch.float32
    gap = (y - x - ours.memory.feed_forward(x)).detach().abs().max()
    assert 0 < float(gap) < ours.tolerance


@pytest.mark.parametrize(("name", "clock"), [("hcam", "time"), ("gtrxl", "age"), ("stack", "0.time")])
def test_an_aged_state_has_counted_a_million_steps_and_more(name, clock):
    aged_state = Trial(memory.make(name, dim=8), 8, 12, torch.float32, seed=3).draw_aged_state()
    assert aged_state is not None
    assert (aged_state[clock] >= 1_000_000 + 24).all()
    assert (aged_state[clock] < 1_000_000 + 37).all()


def test_a_memory_without_a_clock_has_no_aged_state():
    assert trial().draw_aged_state() is None


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (torch.zeros(2, 2), "has shape"),
        (torch.zeros(2, 3).double(), "has dtype torch.float64, expected torch.float32"),
        (torch.full((2, 3), 0.2), "off by 0.2, row 0"),
        (torch.full((2, 3), float("nan")), "not finite"),
    ],
)
def test_shape_dtype_and_values_are_compared(actual, message):
    with pytest.raises(MemoryLawError, match=message) as error_info:
        compare(4, "state", actual, torch.zeros(2, 3), 0.1)
    assert error_info.value.law == 4
    compare(4, "state", torch.full((2, 3), 0.05), torch.zeros(2, 3), 0.1)
