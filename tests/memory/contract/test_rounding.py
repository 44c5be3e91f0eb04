"""A law that breaks in float32 alone says that it is rounding; one that breaks in float64, too, does not."""

import pytest
import torch

from scrubjay.memory import MemoryLawError, check_memory, make_config
from scrubjay.memory.gru import GRU


class AddsMuchAndTakesItAway(GRU):
    """In segments alone, by which float32 loses three digits."""

    def segment(self, x, state, start):
        y, after = super().segment(x, state, start)
        return y + 1e3 - 1e3, after


class ForgetsBetweenSegments(GRU):
    """Begins every segment with nothing."""

    def segment(self, x, state, start):
        return super().segment(x, {name: torch.zeros_like(value) for name, value in state.items()}, start)


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        (AddsMuchAndTakesItAway, r"\(allowed 1e-05\); in float64 it holds, so what grows here is rounding"),
        (ForgetsBetweenSegments, r"\(allowed 1e-05\)"),
    ],
)
def test_what_holds_in_float64_is_told_as_rounding(kind, ending):
    torch.manual_seed(0)
    with pytest.raises(MemoryLawError, match=f"{ending}$"):
        check_memory(kind(make_config("gru", dim=8)), laws=[1])
