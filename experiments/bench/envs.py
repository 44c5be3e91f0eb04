"""Speed of the batched environments against loops over single environments.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.envs

Three methods take turns with the same random actions on one CPU thread: a plain loop over single
environments, gymnasium's SyncVectorEnv over them, and our batched environment. Most single environments are
batches of size one and have numpy's overhead in each step. Steps per second are therefore more informative
than ratios. The UAV downlink has many agents and no SyncVectorEnv; one of its steps moves all UAVs. Prints
medians as a table. Options: `--help`.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import scrubjay.envs  # noqa: F401  (registers the environments)
from scrubjay.envs import uav
from scrubjay.experiments.bench import take_turns

_TASKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("scrubjay/TMaze-v0", {"corridor_length": 50}),
    ("scrubjay/TMaze-v0", {"corridor_length": 1}),
    ("scrubjay/TMaze-v0", {"corridor_length": 50, "active": True}),
    ("scrubjay/RepeatPrevious-v0", {"k": 4}),
    ("scrubjay/RepeatPrevious-v0", {"k": 64, "num_decks": 3}),
    ("scrubjay/Ballet-v0", {"num_dancers": 2, "delay": 2, "observation": "symbolic"}),
    ("scrubjay/Ballet-v0", {"num_dancers": 8, "delay": 16, "observation": "symbolic"}),
    ("scrubjay/Ballet-v0", {"num_dancers": 8, "delay": 16}),
    ("scrubjay/Autoencode-v0", {"num_cards": 52}),
    ("scrubjay/CountRecall-v0", {"num_cards": 52}),
    ("scrubjay/KeyToDoor-v0", {"num_colours": 3}),
    ("scrubjay/MemoryPlanning-v0", {"size": 4}),
)


@dataclass(frozen=True)
class EnvsBench:
    """Options of the benchmark."""

    only: str = ""
    """Measure only environments whose name contains this text, such as `UAV`; empty measures all."""
    rows: tuple[int, ...] = (256, 1024)
    """Batch sizes (`num_envs`)."""
    single_steps: int = 20
    """Timed steps of the loop over single environments and of SyncVectorEnv, per repeat."""
    batched_steps: int = 400
    """Timed steps of our batched environment, per repeat."""
    repeats: int = 5
    """Number of repeats; each repeat times every method once."""
    seed: int = 0
    """Seed of episodes and actions."""


def main(bench: EnvsBench) -> None:
    """Run the benchmark and print its table. Raises ValueError if no environment's name contains `only`."""
    measurements = {
        name: measurement for name, measurement in _list_measurements(bench).items() if bench.only in name
    }
    if not measurements:
        names = "; ".join(_list_measurements(bench))
        raise ValueError(f"only={bench.only!r}: no environment's name contains it; choose from {names}")
    print(
        f"random actions, 1 thread; medians of {bench.repeats}; {os.cpu_count()} CPUs, numpy "
        f"{np.__version__}\n"
    )
    print(
        "| environment | num_envs | loop, steps/s | SyncVectorEnv, steps/s | batch, steps/s | batch / loop |"
    )
    print("|---|---|---|---|---|---|")
    for name, measurement in measurements.items():
        for rows in bench.rows:
            loop, *sync, ours = measurement(rows)
            cells = [f"{loop:,.0f}", f"{sync[0]:,.0f}" if sync else "", f"{ours:,.0f}", f"{ours / loop:.0f}"]
            print(f"| {name} | {rows} | {' | '.join(cells)} |", flush=True)


def _list_measurements(bench: EnvsBench) -> dict[str, Callable[[int], list[float]]]:
    """Return a dict from the name of each environment to a function that measures it at a batch size."""
    measurements: dict[str, Callable[[int], list[float]]] = {}
    for env_id, options in _TASKS:
        name = ", ".join([env_id.split("/")[1], *(f"{key}={value}" for key, value in options.items())])
        measurements[name] = partial(_measure, bench, env_id, options)
    return measurements | {
        f"UAV-v0, {preset}": partial(_measure_uav, bench, preset) for preset in uav.PRESETS
    }


def _measure(bench: EnvsBench, env_id: str, options: dict[str, Any], rows: int) -> list[float]:
    def single() -> gymnasium.Env:
        # Unwrapped: gymnasium's wrappers would slow single environments more than the batch.
        return gymnasium.make(env_id, **options).unwrapped

    singles = [single() for _ in range(rows)]
    for row, env in enumerate(singles):
        env.reset(seed=bench.seed + row)

    def loop(actions: np.ndarray) -> None:
        for env, action in zip(singles, actions, strict=True):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    sync = SyncVectorEnv([single] * rows, autoreset_mode=AutoresetMode.SAME_STEP)
    ours: Any = gymnasium.make_vec(
        env_id,
        num_envs=rows,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.SAME_STEP,
        **options,
    )
    sync.reset(seed=bench.seed)
    ours.reset(seed=bench.seed)
    return _compare(bench, ours.single_action_space.n, (rows,), loop, sync.step, ours.step)


def _measure_uav(bench: EnvsBench, preset: str, rows: int) -> list[float]:
    singles = [uav.parallel_env(preset) for _ in range(rows)]
    for row, env in enumerate(singles):
        env.reset(seed=bench.seed + row)

    def loop(actions: np.ndarray) -> None:
        for env, action in zip(singles, actions, strict=True):
            env.step(dict(zip(env.possible_agents, action, strict=True)))
            if not env.agents:
                env.reset()

    ours = uav.teams(rows, preset)
    ours.reset(seed=bench.seed)
    shape = (rows, len(ours.possible_agents), 3)
    return _compare(bench, ours.single_action_space.nvec, shape, loop, ours.step)


def _compare(
    bench: EnvsBench, choices: Any, shape: tuple[int, ...], *steps: Callable[[np.ndarray], Any]
) -> list[float]:
    """Return the median rate of each method with random actions; the last method is our batch."""
    actions = np.random.default_rng(bench.seed).integers(0, choices, (bench.batched_steps, *shape))
    *peers, ours = steps
    methods = [partial(_rate, step, actions[: bench.single_steps]) for step in peers]
    rates = take_turns(dict(enumerate([*methods, partial(_rate, ours, actions)])), bench.repeats, warm_up=0)
    return [statistics.median(own) for own in rates.values()]


def _rate(step: Callable[[np.ndarray], Any], actions: np.ndarray) -> float:
    """Return environment steps per second of `step` over batches of actions."""
    begin = time.perf_counter()
    for batch in actions:
        step(batch)
    return actions.shape[0] * actions.shape[1] / (time.perf_counter() - begin)


if __name__ == "__main__":
    main(tyro.cli(EnvsBench, description=__doc__))
