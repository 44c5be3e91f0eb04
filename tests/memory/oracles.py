"""Memories beside oracles: slow ones of one row that a test writes down a step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from scrubjay.memory.contract.base import Memory, State


def beside_oracles(
    module: Memory,
    oracle_of: Callable[[], Any],
    time: int,
    cuts: Iterable[int],
    start_rate: float,
    tolerance: float,
) -> tuple[State, list[Any]]:
    """Hold two rows of random inputs, cut into segments, to an oracle each; return the state and the oracles.

    Args:
        module: The memory, in float64.
        oracle_of: Makes an oracle, which has `step(x)` and `restart()`.
        time: Steps.
        cuts: Where segments end, as far as that is within them.
        start_rate: How often an episode begins.
        tolerance: Of outputs, relative and absolute.
    """
    x = torch.randn(2, time, module.dim, dtype=torch.float64)
    start = torch.rand(2, time) < start_rate
    state, outputs, begin = module.initial_state(2), [], 0
    for end in [*sorted(cut for cut in cuts if cut < time), time]:
        y, state = module(x[:, begin:end], state, start[:, begin:end])
        outputs.append(y)
        begin = end
    y, oracles = torch.cat(outputs, dim=1), [oracle_of(), oracle_of()]
    for row, oracle in enumerate(oracles):
        for t in range(time):
            if start[row, t]:
                oracle.restart()
            torch.testing.assert_close(y[row, t], oracle.step(x[row, t]), rtol=tolerance, atol=tolerance)
    return state, oracles
