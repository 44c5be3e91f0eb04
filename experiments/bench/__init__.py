"""Benchmarks of speed and cost. Most compare Scrubjay with another implementation in the same process.

Methods take turns in one process, so that other work on the machine slows all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

Name = TypeVar("Name")


def time_in_turns(
    methods: Mapping[Name, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[Name, list[float]]:
    """Return the seconds of each method's calls, one call per round. The warm-up rounds are not returned.

    `clock` is `time.process_time` for CPU time, or `time.perf_counter` for wall-clock time.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in methods}
    for trial in range(-warm_up, rounds):
        for name, run in methods.items():
            began = clock()
            run()
            if trial >= 0:
                seconds[name].append(clock() - began)
    return seconds


def time_passes(methods: Mapping[str, Callable[[], Tensor]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return two medians per method in milliseconds: of a forward pass, and of forward plus backward pass."""

    def forward(run: Callable[[], Tensor]) -> None:
        with torch.no_grad():
            run()

    passes: dict[tuple[str, bool], Callable[[], object]] = {}
    for name, run in methods.items():
        passes[name, False] = lambda run=run: forward(run)
        passes[name, True] = lambda run=run: run().sum().backward()
    times = time_in_turns(passes, rounds, warm_up=2, clock=time.perf_counter)
    return {name: (1e3 * median(times[name, False]), 1e3 * median(times[name, True])) for name in methods}
