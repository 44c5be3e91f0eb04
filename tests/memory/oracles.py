"""Comparison of memories with oracles: slow reference implementations of one row and one step."""

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
    """Compare two rows of random inputs, cut into segments, with an oracle each; return state and oracles.

    Args:
        module: The memory, in float64.
        oracle_of: Function that returns an oracle, which has `step(x)` and `restart()`.
        time: Number of steps.
        cuts: Steps at which segments end; those beyond `time` are ignored.
        start_rate: Probability that an episode starts at a step.
        tolerance: Relative and absolute tolerance of outputs.
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
