"""Cost of every memory in a policy (training, inference, state) as a multiple of a policy without memory.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.memories

Times are CPU times of one process with one thread. Memories take turns, so that a busy machine slows all of
them, and the first round is a warm-up. An update is a PPO update on one segment. A step is an inference step
of the memory alone in the middle of an episode. Training is the collection of a segment and the update on it.
Training is also compared with sb3-contrib's RecurrentPPO with an LSTM of the same width, on the same task and
with the same `num_envs`, epochs and minibatches. The operations of an update's matrix products are counted,
except those inside registered ops. The table has the time of one large matrix product with the same number of
operations, at the larger speed of torch and oneDNN. It is a lower bound of the update's time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import gymnasium
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode

from scrubjay.experiments.bench import measure_products, time_in_turns
from scrubjay.experiments.bench.revisions import StepLoop
from scrubjay.experiments.bench.throughput import RecurrentPPOTrainer, ScrubjayTrainer, ThroughputConfig
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import MemoryConfig, list_memories, make_config

_NONE, _PEER = "none", "sb3-contrib RecurrentPPO"


@dataclass(frozen=True)
class MemoriesConfig:
    """Options of the benchmark."""

    env: str = "scrubjay/RepeatPrevious-v0"
    """Environment id; any environment with small observations is suitable."""
    memories: tuple[str, ...] = ()
    """Memories to compare with `none`; by default all registered memories, `titans` with depth 2, and
    `gated_delta` with 2 and 4 writes per step."""
    dim: int = 64
    """Width of every layer."""
    num_envs: int = 64
    """Number of environments per segment."""
    segment_length: int = 64
    """Steps of a segment."""
    epochs: int = 4
    """Passes over a segment per update."""
    num_minibatches: int = 4
    """Gradient steps per pass."""
    rows: tuple[int, ...] = (1, 64, 256)
    """Batch sizes of the timed inference steps."""
    steps: int = 64
    """Number of consecutive inference steps that are timed together."""
    rounds: int = 3
    """Timed rounds after the warm-up."""

    @property
    def memory_configs(self) -> dict[str, MemoryConfig]:
        """Memory configs by their name in the table, `none` first."""
        others = [name for name in self.memories or list_memories() if name != _NONE]
        configs = {name: make_config(name, dim=self.dim) for name in (_NONE, *others)}
        if self.memories:
            return configs
        configs["titans, depth 2"] = make_config("titans", dim=self.dim, depth=2)
        for writes in (2, 4):
            configs[f"gated_delta, {writes} writes"] = make_config(
                "gated_delta", dim=self.dim, householders=writes
            )
        return configs

    @property
    def training(self) -> ThroughputConfig:
        """Config of the trainers for the same task."""
        return ThroughputConfig(
            env=self.env,
            dim=self.dim,
            num_envs=self.num_envs,
            segment_length=self.segment_length,
            epochs=self.epochs,
            num_minibatches=self.num_minibatches,
        )


@dataclass
class MemoryCost:
    """CPU milliseconds of one memory, one entry per round."""

    update: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    step: dict[int, list[float]] = field(default_factory=dict)
    products: float | None = None
    """Lower bound of the CPU milliseconds of an update's matrix products; None before the measurement."""


def main(config: MemoriesConfig) -> None:
    """Measure and print the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    memories = config.memory_configs
    costs = {name: MemoryCost() for name in (*memories, _PEER)}
    _train(config, memories, costs)
    _step(config, memories, costs)
    print(
        f"{config.env}, width {config.dim}, {config.num_envs} environments x {config.segment_length} steps, "
        f"{config.epochs} epochs x {config.num_minibatches} minibatches; steps in the middle of an episode; "
        f"CPU time, 1 thread, medians of {config.rounds}; torch {torch.__version__}, "
        f"{os.cpu_count()} CPUs with {torch.backends.cpu.get_cpu_capability()}\n"
    )
    print("\n".join(_table(config, memories, costs)))


def _train(config: MemoriesConfig, memories: dict[str, MemoryConfig], costs: dict[str, MemoryCost]) -> None:
    """Time updates and training iterations of all memories and of RecurrentPPO."""
    trainers: dict[str, ScrubjayTrainer | RecurrentPPOTrainer] = {}
    for name, memory in memories.items():
        trainers[name] = ScrubjayTrainer(
            config.training, memory, EnvConfig(config.env).make_batch(config.num_envs)
        )
    trainers[_PEER] = RecurrentPPOTrainer(config.training)
    methods: dict[tuple[str, str], Callable[[], object]] = {}
    for name, trainer in trainers.items():
        methods[name, "training"], methods[name, "update"] = trainer.update, trainer.learn
    for (name, part), seconds in time_in_turns(methods, config.rounds).items():
        getattr(costs[name], part).extend(1e3 * second for second in seconds)
    operations_per_ms = 1e6 * max(measure_products().values())
    for name, trainer in trainers.items():
        with FlopCounterMode(display=False, custom_mapping=_LSTM_FLOPS) as counter:
            trainer.learn()
        costs[name].products = counter.get_total_flops() / operations_per_ms


def _count_lstm_flops(
    inputs: torch.Size, from_inputs: torch.Size, from_hidden: torch.Size, *_: Any, passes: int, **__: Any
) -> int:
    """Return the number of operations of torch's LSTM, from the shapes of inputs and weight matrices."""
    return 2 * passes * inputs[0] * inputs[1] * (math.prod(from_inputs) + math.prod(from_hidden))


_LSTM_FLOPS = {
    torch.ops.aten.mkldnn_rnn_layer: partial(_count_lstm_flops, passes=1),
    torch.ops.aten.mkldnn_rnn_layer_backward: partial(_count_lstm_flops, passes=2),
}


def _step(config: MemoriesConfig, memories: dict[str, MemoryConfig], costs: dict[str, MemoryCost]) -> None:
    """Measure the milliseconds of an inference step in the middle of an episode, for each memory."""
    modules = {name: memory.build() for name, memory in memories.items()}
    for rows in config.rows:
        loops = {name: StepLoop(memory, rows, config.steps) for name, memory in modules.items()}
        for name, seconds in time_in_turns(loops, config.rounds).items():
            costs[name].step[rows] = [1e3 * second / config.steps for second in seconds]


def _table(
    config: MemoriesConfig, memories: dict[str, MemoryConfig], costs: dict[str, MemoryCost]
) -> list[str]:
    steps = [f"step, batch size {rows}, µs" for rows in config.rows]
    columns = [
        "memory",
        "update, ms",
        "its matrix products alone, ms",
        "training, steps/s",
        "relative to RecurrentPPO",
        *steps,
        "state per environment, bytes",
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    base, peer = costs[_NONE], costs[_PEER]
    num_steps = config.num_envs * config.segment_length
    for name, cost in costs.items():
        training = median(cost.training)
        cells = [
            f"{median(cost.update):,.0f} ({median(cost.update) / median(base.update):.1f}x)",
            "-" if cost.products is None else f"{cost.products:,.0f}",
            f"{1e3 * num_steps / training:,.0f} ({training / median(base.training):.1f}x the time)",
            f"{median(peer.training) / training:.1f}x",
        ]
        for rows in config.rows:
            cells.append(f"{1e3 * median(cost.step[rows]):,.0f}" if cost.step else "-")
        cells.append(f"{memories[name].build().state_bytes():,}" if name in memories else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main(tyro.cli(MemoriesConfig, description=__doc__))
