"""The error names rounding as the cause if a law fails in float32 alone."""

import pytest
import torch

from scrubjay.memory import MemoryLawError, check_memory, make_config
from scrubjay.memory.gru import GRU


class AddsMuchAndTakesItAway(GRU):
    """GRU that loses three digits of float32 in segments."""

    def segment(self, x, state, start):
        y, after = super().segment(x, state, start)
        return y + 1e3 - 1e3, after


class ForgetsBetweenSegments(GRU):
    """GRU that starts every segment with a zero state."""

    def segment(self, x, state, start):
        return super().segment(x, {name: torch.zeros_like(value) for name, value in state.items()}, start)


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        (
            AddsMuchAndTakesItAway,
            r"\(allowed 1e-05\); the law holds in float64, so the cause is rounding error",
        ),
        (ForgetsBetweenSegments, r"\(allowed 1e-05\)"),
    ],
)
def test_a_law_that_holds_in_float64_is_reported_as_rounding(kind, ending):
    torch.manual_seed(0)
    with pytest.raises(MemoryLawError, match=f"{ending}$"):
        check_memory(kind(make_config("gru", dim=8)), laws=[1])
