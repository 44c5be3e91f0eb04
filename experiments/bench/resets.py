"""Cost of resets inside a segment for GRU and LSTM, against torch's layers without resets.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.resets

Times one forward and backward pass on one CPU thread. Our layer and torch's take turns. Prints medians as a
table. Options: `--help`.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import nn

from scrubjay.experiments.bench import time_in_turns
from scrubjay.memory.contract.base import Memory
from scrubjay.memory.gru import GRUConfig
from scrubjay.memory.lstm import LSTMConfig


@dataclass(frozen=True)
class ResetsBench:
    """Options of the benchmark."""

    batch: int = 32
    """Batch size."""
    time: int = 128
    """Steps of a segment."""
    dim: int = 128
    """Width of the layers and of their input."""
    start_rates: tuple[float, ...] = (0.0, 0.02, 0.1)
    """Fractions of steps that start a new episode."""
    repeats: int = 60
    """Number of timed passes of each layer. The episode starts are drawn anew for every pass."""
    seed: int = 0
    """Seed of inputs, weights and starts."""


def main(bench: ResetsBench) -> None:
    """Run the benchmark and print its table."""
    torch.set_num_threads(1)
    torch.manual_seed(bench.seed)
    print(
        f"batch {bench.batch}, time {bench.time}, width {bench.dim}, float32, forward + backward, 1 thread; "
        f"medians of {bench.repeats}; torch {torch.__version__}, {os.cpu_count()} CPUs\n"
    )
    print("| memory | starts | torch's layer, ms | ours, ms | ratio |")
    print("|---|---|---|---|---|")
    for memory_config, layer_class in ((GRUConfig, nn.GRU), (LSTMConfig, nn.LSTM)):
        memory = memory_config(dim=bench.dim).build()
        layer = layer_class(bench.dim, bench.dim, batch_first=True)
        for rate in bench.start_rates:
            theirs, ours = _time_in_turns(bench, layer, memory, rate)
            print(
                f"| {layer_class.__name__.lower()} | {rate:.0%} | {theirs * 1e3:.1f} | {ours * 1e3:.1f} "
                f"| {ours / theirs:.2f} |"
            )


def _time_in_turns(bench: ResetsBench, layer: nn.Module, memory: Memory, rate: float) -> tuple[float, float]:
    """Return median seconds of torch's layer and of our memory."""
    state = memory.initial_state(bench.batch)
    inputs = {}

    def draw() -> None:
        inputs["x"] = torch.randn(bench.batch, bench.time, bench.dim, requires_grad=True)
        inputs["start"] = torch.rand(bench.batch, bench.time) < rate

    def run(module: nn.Module, *arguments: Any) -> None:
        module.zero_grad()
        module(inputs["x"], *arguments)[0].sum().backward()

    methods = {
        "draw": draw,
        "theirs": lambda: run(layer),
        "ours": lambda: run(memory, state, inputs["start"]),
    }
    seconds = time_in_turns(methods, bench.repeats, warm_up=3, clock=time.perf_counter)
    return statistics.median(seconds["theirs"]), statistics.median(seconds["ours"])


if __name__ == "__main__":
    main(tyro.cli(ResetsBench, description=__doc__))
