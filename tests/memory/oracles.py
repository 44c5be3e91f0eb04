"""Comparison of memories with oracles: slow reference implementations of one row and one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

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


@torch.no_grad()
def assert_layers_equal(
    module: Any, oracle: Callable[[Any, Tensor], Tensor], x: Tensor, tolerance: float
) -> None:
    """Assert that two rows of 40 steps have the outputs of an oracle of each layer.

    Each row has two episodes. The oracle takes a layer and the inputs of one episode.
    """
    start = torch.zeros(2, 40, dtype=torch.bool)
    start[0, 13] = start[1, 31] = True
    y, _ = module(x, module.initial_state(2), start)
    for row, border in ((0, 13), (1, 31)):
        for part in (slice(0, border), slice(border, 40)):
            expected = x[row, part]
            for layer in module.layers:
                expected = oracle(layer, expected)
            torch.testing.assert_close(y[row, part], expected, rtol=tolerance, atol=tolerance)


def wave(*shape: int, phase: float) -> Tensor:
    """Return fixed numbers between -1 and 1, which recorded outputs of published code depend on."""
    return torch.cos(torch.arange(math.prod(shape)).double() * 0.7 + phase).view(shape)


def fit_cue(module: Memory, updates: int) -> float:
    """Train a memory to recall a cue of the first step, and return the mean of the last five losses.

    The loss is the mean square error of a linear map of the outputs 4 to 7 steps after the cue, 1 or -1. A
    memory without a state stays at 1.
    """
    head = torch.nn.Linear(module.dim, 1)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=1e-2)
    losses = []
    for _ in range(updates):
        x = torch.randn(32, 8, module.dim)
        cue = torch.randn(32, 1).sign()
        x[:, 0], x[:, :, :2] = 0, 0
        x[:, 0, 0], x[:, 0, 1] = 3 * cue[:, 0], 3
        y, _ = module(x, module.initial_state(32))
        loss = (head(y)[:, 4:, 0] - cue).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-5:]) / 5
