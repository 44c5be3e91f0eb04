"""Environment steps per second of training on Ray, next to the local engine and to RLlib's PPO with LSTM.

Run: `python -P -m scrubjay.experiments.bench.ray`

Everybody trains the recipe key-to-door with an LSTM of width 64: the same rows, steps, epochs and
minibatches. RLlib's network is its default one of that size: one layer, an LSTM, actor and critic sharing
both. It steps single environments in gymnasium's loop, as it does by default, and we step our batched one, as
we do by default. Contenders take turns, one update each, so that a busy machine slows all of them; the first
rounds warm up and are not counted. A second table has what a cluster's size depends on, measured, and a third
what follows from it on paper.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ray
import torch
import tyro
from ray.rllib.algorithms.ppo import PPOConfig as RLlibPPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from scrubjay.agents import Sampler
from scrubjay.agents.rl.segment import Segment
from scrubjay.experiments.kinds.distributed import RayEngine
from scrubjay.experiments.kinds.engine import Engine
from scrubjay.experiments.kinds.local import LocalEngine
from scrubjay.experiments.kinds.reinforcement import TrainConfig
from scrubjay.experiments.recipes import RECIPES, with_memory
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.tasks.environments import importing_id


@dataclass(frozen=True)
class RayBenchConfig:
    """What is measured."""

    runners: tuple[int, ...] = (0, 1, 2)
    """Numbers of remote env runners; 0 samples in the driver."""
    rounds: int = 5
    """Updates per contender that count."""
    warm_up: int = 2
    """Updates before that."""
    memories: tuple[str, ...] = ("lstm", "hcam")
    """Whose sizes the scaling model is told for."""
    cluster: tuple[int, ...] = (8, 64, 512)
    """Numbers of runners to think about."""
    gigabytes_per_second: float = 1.25
    """Of the network into the driver's machine: ten gigabits."""


def training(memory: str) -> TrainConfig:
    """Return the run that everybody makes."""
    config = with_memory(RECIPES["key-to-door"](), memory)
    assert isinstance(config, TrainConfig)
    return dataclasses.replace(config, total_steps=10**9, checkpoint_seconds=1e9)


def theirs(config: TrainConfig, num_env_runners: int) -> Any:
    """Return RLlib's PPO on the same task, with as many steps, passes and minibatches."""
    env = config.env
    algorithm_config = (
        RLlibPPOConfig()
        .environment(importing_id(env.id), env_config=dict(env.kwargs))
        .env_runners(
            num_env_runners=num_env_runners, num_envs_per_env_runner=env.num_envs // max(1, num_env_runners)
        )
        .rl_module(
            model_config=DefaultModelConfig(
                fcnet_hiddens=[64],
                use_lstm=True,
                lstm_cell_size=64,
                max_seq_len=config.segment_length,
                vf_share_layers=True,
            )
        )
        .training(
            train_batch_size_per_learner=env.num_envs * config.segment_length,
            minibatch_size=env.num_envs * config.segment_length // config.ppo.num_minibatches,
            num_epochs=config.ppo.epochs,
            lr=config.ppo.learning_rate,
            gamma=config.ppo.gamma,
        )
        .debugging(log_level="ERROR")
    )
    return algorithm_config.build_algo()


def speeds(bench: RayBenchConfig, folder: Path) -> dict[str, float]:
    """Return environment steps per second by contender, the local engine's first."""
    config = training("lstm")
    steps = config.env.num_envs * config.segment_length
    with ExitStack() as stack:

        def engine(name: str, build: Callable[[Path], Engine]) -> Callable[[], object]:
            return stack.enter_context(build(Run.create(config, folder / name).path)).update

        update: dict[str, Callable[[], object]] = {
            "scrubjay, local engine": engine("local", lambda path: LocalEngine(config, path))
        }
        for number in bench.runners:
            options = RayOptions(num_env_runners=number)
            update[f"scrubjay, Ray engine, {_runners(number)}"] = engine(
                f"ray-{number}", lambda path, options=options: RayEngine(config, path, options)
            )
        for number in bench.runners:
            algorithm = theirs(config, number)
            stack.callback(algorithm.stop)
            update[f"RLlib PPO with LSTM, {_runners(number)}"] = algorithm.train
        seconds: dict[str, list[float]] = {name: [] for name in update}
        for _ in range(bench.warm_up + bench.rounds):
            for name, once in update.items():
                began = time.perf_counter()
                once()
                seconds[name].append(time.perf_counter() - began)
    return {name: steps / median(spent[bench.warm_up :]) for name, spent in seconds.items()}


def _runners(number: int) -> str:
    return f"{number} remote runner{'s' * (number != 1)}"


@dataclass(frozen=True)
class Constants:
    """What one row of a segment and one copy of the weights cost, measured on one core without a network."""

    steps: int
    """Steps of one row of a segment."""
    row_bytes: int
    weight_bytes: int
    sample_seconds: float
    """To sample one row, by a runner of all rows of the recipe."""
    gather_seconds: float
    """To take one row out of Ray's object store and join it with the others, in the driver."""
    learn_seconds: float
    """Of all passes over one row, in one learner."""

    def ceiling(self, bytes_per_second: float) -> float:
        """Return the steps per second that can pass through the driver, however many runners and learners."""
        return self.steps / (self.gather_seconds + self.row_bytes / bytes_per_second)


def constants(memory: str) -> Constants:
    """Measure them."""
    config = training(memory)
    envs = config.env.make_vector()
    policy = config.make_policy(envs)
    sampler, learner = Sampler(envs, policy, config.segment_length), config.learner.build(policy)
    rows = config.env.num_envs
    segment = sampler.collect()
    learner.update(segment)
    pieces = [ray.put(segment) for _ in range(4)]

    def gather() -> Segment:
        return Segment.cat([ray.get(piece) for piece in pieces])

    return Constants(
        steps=config.segment_length,
        row_bytes=_size(segment) // rows,
        weight_bytes=_size(policy.state_dict()),
        sample_seconds=_time(sampler.collect) / rows,
        gather_seconds=_time(gather) / (len(pieces) * rows),
        learn_seconds=_time(lambda: learner.update(segment)) / rows,
    )


def _size(value: Any) -> int:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.tell()


def _time(call: Callable[[], object], repeats: int = 5) -> float:
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return median(spent)


@dataclass(frozen=True)
class Plan:
    """An iteration of so many runners, with the recipe's rows each: sample, gather, learn, in turn."""

    runners: int
    constants: Constants
    rows: int
    bytes_per_second: float

    @property
    def sampling(self) -> float:
        """Seconds in which all runners sample, at once."""
        return self.rows * self.constants.sample_seconds

    @property
    def gathering(self) -> float:
        """Seconds in which rows arrive at the driver and weights leave it, as slow as network or memory."""
        row = self.constants.gather_seconds + self.constants.row_bytes / self.bytes_per_second
        return self.runners * (self.rows * row + self.constants.weight_bytes / self.bytes_per_second)

    @property
    def learners(self) -> int:
        """The number that learns as fast as all runners sample."""
        return max(1, round(self.runners * self.constants.learn_seconds / self.constants.sample_seconds))

    def steps_per_second(self, learners: int) -> float:
        """Return the environment steps per second with so many learners."""
        learning = self.runners * self.rows * self.constants.learn_seconds / learners
        seconds = self.sampling + self.gathering + learning
        return self.runners * self.rows * self.constants.steps / seconds


def speed_table(found: dict[str, float]) -> str:
    """Return the speeds as a Markdown table."""
    local = next(iter(found.values()))
    fastest = max(speed for name, speed in found.items() if name.startswith("RLlib"))
    return _table(
        "trainer | steps/s | of the local engine | of RLlib's fastest",
        [
            f"{name} | {speed:,.0f} | {speed / local:.2f}x | {speed / fastest:.1f}x"
            for name, speed in found.items()
        ],
    )


def constants_table(bench: RayBenchConfig, found: dict[str, Constants]) -> str:
    """Return the constants as a Markdown table."""
    rows = [
        f"{memory} | {c.row_bytes / 1000:,.1f} kB, {c.steps} steps | {c.weight_bytes / 1000:,.0f} kB "
        f"| {1e3 * c.sample_seconds:.2f} ms | {1e3 * c.gather_seconds:.3f} ms | "
        f"{1e3 * c.learn_seconds:.2f} ms "
        f"| at most {c.ceiling(1e9 * bench.gigabytes_per_second):,.0f} steps/s"
        for memory, c in found.items()
    ]
    return _table(
        (
            "memory | a row of a segment | weights | sample a row | gather a row | learn a row | through "
            "the driver"
        ),
        rows,
    )


def plan_table(bench: RayBenchConfig, found: dict[str, Constants]) -> str:
    """Return what follows on paper as a Markdown table."""
    lines = []
    for memory, measured in found.items():
        rows = training(memory).env.num_envs
        for runners in bench.cluster:
            plan = Plan(runners, measured, rows, 1e9 * bench.gigabytes_per_second)
            many = plan.steps_per_second(plan.learners)
            share = plan.gathering * many / (runners * rows * measured.steps)
            lines.append(
                f"{memory} | {runners} | {plan.steps_per_second(1):,.0f} | {plan.learners} | {many:,.0f} | "
                f"{share:.0%} | {runners * rows * measured.row_bytes / 1e6:,.0f} MB"
            )
    return _table(
        (
            "memory | runners | steps/s, 1 learner | learners to keep up | steps/s with them | gathering | "
            "to the driver"
        ),
        lines,
    )


def _table(header: str, rows: list[str]) -> str:
    rule = " | ".join("---" for _ in header.split(" | "))
    return "\n".join(f"| {line} |" for line in (header, rule, *rows))


def main() -> None:
    """Measure and print."""
    bench = tyro.cli(RayBenchConfig, description=__doc__)
    torch.set_num_threads(1)
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=2 * sum(bench.runners) + 2,  # all contenders are there at once, and one works
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    config = training("lstm")
    print(
        f"{config.recipe}, LSTM of width 64, {config.env.num_envs} environments x "
        f"{config.segment_length} steps, "
        f"{config.ppo.epochs} epochs x {config.ppo.num_minibatches} minibatches, 2 cores, 1 thread a "
        "process, "
        f"torch {torch.__version__}, ray {ray.__version__}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        print(speed_table(speeds(bench, Path(folder))), end="\n\n")
    found = {memory: constants(memory) for memory in bench.memories}
    print(constants_table(bench, found), end="\n\n")
    print(plan_table(bench, found))
    print(
        "\nGathering is the way to the driver. With remote learners rows leave it again by the same "
        "network, and "
        "learners add up their gradients; neither is in these numbers, and both make them smaller."
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
