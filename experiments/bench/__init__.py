"""Benchmarks of speed and cost. Most compare Scrubjay with another implementation in the same process.

Methods take turns in one process, so that other work on the machine slows all of them alike.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

Name = TypeVar("Name")
Result = TypeVar("Result")


def take_turns(
    methods: Mapping[Name, Callable[[], Result]],
    rounds: int,
    warm_up: int = 1,
    least_seconds: float = 0.0,
    most_seconds: float = math.inf,
) -> dict[Name, list[Result]]:
    """Return the results of each method's calls, one call per round. The warm-up rounds are not returned.

    Args:
        methods: Methods by name.
        rounds: Number of rounds.
        warm_up: Number of further rounds at the beginning.
        least_seconds: More rounds follow until this time has passed.
        most_seconds: No round follows after this time, except the first three.
    """
    results: dict[Name, list[Result]] = {name: [] for name in methods}
    began = time.perf_counter()
    for number in itertools.count(-warm_up):
        duration = time.perf_counter() - began
        if (number >= rounds and duration >= least_seconds) or (number > 2 and duration > most_seconds):
            break
        for name, run in methods.items():
            result = run()
            if number >= 0:
                results[name].append(result)
    return results


def measure_seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one call."""
    began = clock()
    run()
    return clock() - began


def time_in_turns(
    methods: Mapping[Name, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.process_time,
    **limits: float,
) -> dict[Name, list[float]]:
    """Return the seconds of each method's calls, one call per round. The warm-up rounds are not returned.

    `clock` is `time.process_time` for CPU time, or `time.perf_counter` for wall-clock time. `limits` are
    those of `take_turns`.
    """
    timers = {name: partial(measure_seconds, run, clock) for name, run in methods.items()}
    return take_turns(timers, rounds, warm_up, **limits)


def run_forward(run: Callable[[], Tensor]) -> None:
    """Run a forward pass without gradients."""
    with torch.no_grad():
        run()


def run_backward(run: Callable[[], Tensor]) -> None:
    """Run a forward and a backward pass."""
    run().sum().backward()


def time_passes(methods: Mapping[str, Callable[[], Tensor]], rounds: int) -> dict[str, tuple[float, float]]:
    """Return two medians per method in milliseconds: of a forward pass, and of forward plus backward pass."""
    passes = {
        (name, go): partial(go, run) for name, run in methods.items() for go in (run_forward, run_backward)
    }
    times = time_in_turns(passes, rounds, warm_up=2, clock=time.perf_counter)
    return {
        name: (1e3 * median(times[name, run_forward]), 1e3 * median(times[name, run_backward]))
        for name in methods
    }


def format_ratios(times: Iterable[float], base: Iterable[float], digits: int = 1) -> str:
    """Format each time as a multiple of the time of the same pass in `base`."""
    return " / ".join(f"{time / other:.{digits}f}x" for time, other in zip(times, base, strict=True))


def run_in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a function in a new process, which has no memory from earlier work."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def build_htm_attention(dim: int, heads: int, top_k: int, chunk_size: int) -> Callable[..., Tensor]:
    """Build the read of HCAM in the PyPI package htm-pytorch."""
    from htm_pytorch import HTMAttention  # pyright: ignore[reportMissingImports]

    return HTMAttention(
        dim=dim,
        heads=heads,
        dim_head=dim // heads,
        topk_mems=top_k,
        mem_chunk_size=chunk_size,
        add_pos_enc=True,
    )
