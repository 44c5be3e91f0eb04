"""Benchmarks of speed and cost. Most compare Scrubjay with another implementation in the same process.

Methods take turns in one process, so that other work on the machine slows all of them alike.

torch's float32 products come from MKL. On processors that Intel did not make, MKL can take a path that uses
half of the processor's speed. A peer made of large products, such as attention, is then too slow, and a ratio
to it flatters the other methods. `use_fast_products` restarts a benchmark on MKL's fast path.
`describe_products` returns both speeds for the head of a table.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

Name = TypeVar("Name")
Result = TypeVar("Result")

# The least share of oneDNN's speed at which torch's products count as fast.
_LEAST_SHARE = 0.75
# MKL calls this function to learn the vendor of the processor.
_VENDOR = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
_RESTARTED = "SCRUBJAY_BENCH_FAST_PRODUCTS"


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


def measure_products() -> dict[str, float]:
    """Return the GFLOP/s of a large float32 product by torch and by oneDNN; by torch alone without oneDNN."""
    size = 1024
    left, right = torch.randn(size, size), torch.randn(size, size)
    methods: dict[str, Callable[[], Tensor]] = {"torch": lambda: left @ right}
    if torch.backends.mkldnn.is_available():
        methods["oneDNN"] = partial(functional.linear, left.to_mkldnn(), right.to_mkldnn())
    return {name: 2e-9 * size**3 / min(seconds) for name, seconds in time_in_turns(methods, 10).items()}


def describe_products() -> str:
    """Return the speed of torch's float32 products beside oneDNN's, with a warning if it is too low."""
    speeds = measure_products()
    text = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    warning = "" if _is_fast(speeds) else "; torch's are too slow, so ratios to attention are too good"
    return f"GFLOP/s of float32 products: {text}{warning}"


def use_fast_products() -> None:
    """Run this benchmark in a new process on MKL's fast path if torch's products are slow, and then exit.

    The new process loads a library of one function, which tells MKL that the processor is from Intel. Nothing
    happens without MKL or a C compiler, or if torch's products are fast.
    """
    torch.set_num_threads(1)
    compiler = shutil.which("cc")
    if _RESTARTED in os.environ or compiler is None or not torch.backends.mkl.is_available():
        return
    if _is_fast(measure_products()):
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "vendor.c"), Path(folder, "vendor.so")
        source.write_text(_VENDOR)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        preload = f"{library}:{os.environ.get('LD_PRELOAD', '')}".rstrip(":")
        environment = os.environ | {"LD_PRELOAD": preload, _RESTARTED: "1"}
        result = subprocess.run([sys.executable, *sys.orig_argv[1:]], env=environment, check=False)
    sys.exit(result.returncode)


def _is_fast(speeds: Mapping[str, float]) -> bool:
    return speeds["torch"] >= _LEAST_SHARE * speeds.get("oneDNN", 0.0)


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
