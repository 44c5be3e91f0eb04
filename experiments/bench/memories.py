"""What every memory costs a policy: learning, acting and state, as multiples of a policy without one.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.memories

One process, one thread, times of the processor; contenders take turns, so that a busy machine slows all of
them, and the first round warms up. An update is PPO's on one segment; a step is the memory's alone, of rows
in the middle of an episode, as a sampler takes it; training is collecting a segment and learning from it. The
last is compared with sb3-contrib's RecurrentPPO, too, whose LSTM is of the same width and sees the same task,
rows, passes and minibatches. The matrix products of an update are counted, those inside registered ops left
out, and told as the time that they would take as one product of large matrices: no update can be faster.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import gymnasium
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from scrubjay.experiments.bench.throughput import Ours, Theirs, ThroughputConfig
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import Memory, MemoryConfig, list_memories, make_config

_NONE, _PEER = "none", "sb3-contrib RecurrentPPO"


@dataclass(frozen=True)
class MemoriesConfig:
    """Sizes of the measurement."""

    env: str = "scrubjay/RepeatPrevious-v0"
    """Any environment id with a small observation."""
    memories: tuple[str, ...] = ()
    """Names beside `none`; by default all that are registered, and Titans of two layers a head."""
    dim: int = 64
    """Width of every layer."""
    num_envs: int = 64
    """Rows of a segment."""
    segment_length: int = 64
    """Steps of a segment."""
    epochs: int = 4
    """Passes over a segment."""
    num_minibatches: int = 4
    """Gradient steps per pass."""
    rows: tuple[int, ...] = (1, 64, 256)
    """Rows of a step."""
    steps: int = 64
    """Steps timed at once."""
    rounds: int = 3
    """Rounds that count."""

    @property
    def contenders(self) -> dict[str, MemoryConfig]:
        """The memories' configs by what the table calls them, `none` first."""
        others = [name for name in self.memories or list_memories() if name != _NONE]
        found = {name: make_config(name, dim=self.dim) for name in (_NONE, *others)}
        return (
            found
            if self.memories
            else found | {"titans, depth 2": make_config("titans", dim=self.dim, depth=2)}
        )

    @property
    def training(self) -> ThroughputConfig:
        """The same task for the trainers."""
        return ThroughputConfig(
            env=self.env,
            dim=self.dim,
            num_envs=self.num_envs,
            segment_length=self.segment_length,
            epochs=self.epochs,
            num_minibatches=self.num_minibatches,
        )


@dataclass
class Cost:
    """Milliseconds of the processor, one entry per round."""

    update: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    step: dict[int, list[float]] = field(default_factory=dict)
    products: float | None = None
    """Of an update's matrix products alone, at best."""


def main(config: MemoriesConfig) -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    memories = config.contenders
    costs = {name: Cost() for name in (*memories, _PEER)}
    _train(config, memories, costs)
    _step(config, memories, costs)
    print(
        f"{config.env}, width {config.dim}, {config.num_envs} environments x {config.segment_length} steps, "
        f"{config.epochs} epochs x {config.num_minibatches} minibatches; a step in the middle of an episode; "
        f"processor time, 1 thread, medians of {config.rounds}; torch {torch.__version__}, "
        f"{os.cpu_count()} CPUs with {torch.backends.cpu.get_cpu_capability()}\n"
    )
    print("\n".join(_table(config, memories, costs)))


def _train(config: MemoriesConfig, memories: dict[str, MemoryConfig], costs: dict[str, Cost]) -> None:
    """Time updates and whole training of all, and of RecurrentPPO."""
    trainers: dict[str, Ours | Theirs] = {}
    for name, memory in memories.items():
        trainers[name] = Ours(config.training, memory, EnvConfig(config.env).make_vector(config.num_envs))
    trainers[_PEER] = Theirs(config.training)
    for trial in range(config.rounds + 1):
        for name, trainer in trainers.items():
            training = _milliseconds(trainer.update)
            update = _milliseconds(trainer.learn)
            if trial:
                costs[name].training.append(training)
                costs[name].update.append(update)
    speed = _operations_per_millisecond()
    for name, trainer in trainers.items():
        with FlopCounterMode(display=False, custom_mapping=_FUSED) as counter:
            trainer.learn()
        costs[name].products = counter.get_total_flops() / speed


def _of_lstm(inputs: torch.Size, from_inputs: torch.Size, from_hidden: torch.Size, *_: Any, **__: Any) -> int:
    """Return the operations of torch's LSTM of inputs [time, batch, width], its weights two matrices."""
    return 2 * inputs[0] * inputs[1] * (math.prod(from_inputs) + math.prod(from_hidden))


def _of_lstm_backward(*shapes: Any, **options: Any) -> int:
    return 2 * _of_lstm(*shapes, **options)


_FUSED = {
    torch.ops.aten.mkldnn_rnn_layer: _of_lstm,
    torch.ops.aten.mkldnn_rnn_layer_backward: _of_lstm_backward,
}


def _operations_per_millisecond(size: int = 1024, rounds: int = 10) -> float:
    """Return how many operations of a large product the processor does in a millisecond, at best."""
    left, right = torch.randn(2, size, size)
    return 2 * size**3 / min(_milliseconds(lambda: left @ right) for _ in range(rounds))


def _step(config: MemoriesConfig, memories: dict[str, MemoryConfig], costs: dict[str, Cost]) -> None:
    """Time steps of rows that have lived for some time."""
    built = {name: memory.build() for name, memory in memories.items()}
    for rows in config.rows:
        walks = {name: _Walk(memory, rows, config.steps) for name, memory in built.items()}
        for trial in range(config.rounds + 1):
            for name, walk in walks.items():
                spent = _milliseconds(walk) / config.steps
                if trial:
                    costs[name].step.setdefault(rows, []).append(spent)


class _Walk:
    """Steps of some rows, one after the other; the rows' episodes are all of different ages."""

    def __init__(self, memory: Memory, rows: int, steps: int) -> None:
        self.inputs = torch.randn(steps, rows, memory.dim)
        start = torch.zeros(rows, 256, dtype=torch.bool)
        start[torch.arange(rows), torch.arange(rows) % 128] = True
        with torch.no_grad():
            _, state = memory(torch.randn(rows, 256, memory.dim), memory.initial_state(rows), start)
        self.rows = memory.stepper(state)

    def __call__(self) -> None:
        for x in self.inputs:
            self.rows.step(x)


def _table(config: MemoriesConfig, memories: dict[str, MemoryConfig], costs: dict[str, Cost]) -> list[str]:
    steps = [f"step of {rows}, µs" for rows in config.rows]
    columns = [
        "memory",
        "update, ms",
        "its products alone, ms",
        "training, steps/s",
        "against RecurrentPPO",
        *steps,
        "state, bytes a row",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    base, peer = costs[_NONE], costs[_PEER]
    collected = config.num_envs * config.segment_length
    for name, cost in costs.items():
        training = median(cost.training)
        cells = [
            f"{median(cost.update):,.0f} ({median(cost.update) / median(base.update):.1f}x)",
            "-" if cost.products is None else f"{cost.products:,.0f}",
            f"{1e3 * collected / training:,.0f} ({training / median(base.training):.1f}x the time)",
            f"{median(peer.training) / training:.1f}x",
        ]
        for rows in config.rows:
            cells.append(f"{1e3 * median(cost.step[rows]):,.0f}" if cost.step else "-")
        cells.append(f"{memories[name].build().state_bytes():,}" if name in memories else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _milliseconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return (time.process_time() - began) * 1e3


if __name__ == "__main__":
    main(tyro.cli(MemoriesConfig, description=__doc__))
