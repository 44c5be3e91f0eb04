"""Environment steps per second of training on Ray, next to the local engine and to RLlib's PPO with LSTM.

Run: `python -P -m scrubjay.experiments.bench.ray`

All trainers run the recipe key-to-door with an LSTM of width 64 and the same number of environments, steps,
epochs and minibatches. RLlib uses its default network of the same width: a dense layer and an LSTM, both
shared by actor and critic. Both libraries run with their defaults: RLlib steps single environments in
gymnasium's loop, and Scrubjay steps a batched environment. Trainers take turns, one update each, so that a
busy machine slows all of them; the first rounds are a warm-up. The second table has measured costs of
sampling, transfer and learning. From these costs a model predicts the throughput of clusters (third table).
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

from scrubjay.agents import PPOConfig, Sampler
from scrubjay.agents.rl.segment import Segment
from scrubjay.experiments.bench import time_in_turns
from scrubjay.experiments.recipes import RECIPES, with_memory
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.engine import Engine, LocalEngine
from scrubjay.experiments.runs.ray_engine import RayEngine
from scrubjay.experiments.runs.reinforcement import TrainConfig
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.tasks.environments import gymnasium_id


@dataclass(frozen=True)
class RayBenchConfig:
    """Options of the benchmark."""

    runners: tuple[int, ...] = (0, 1, 2)
    """Numbers of remote env runners to measure. With 0 the driver process collects the samples."""
    rounds: int = 5
    """Timed updates per trainer."""
    warm_up: int = 2
    """Warm-up updates per trainer."""
    memories: tuple[str, ...] = ("lstm", "hcam")
    """Memories for which the throughput of clusters is predicted."""
    cluster: tuple[int, ...] = (8, 64, 512)
    """Numbers of env runners for which the throughput of clusters is predicted."""
    gigabytes_per_second: float = 1.25
    """Bandwidth of the driver's network in gigabytes per second. The default is that of a network
    of 10 gigabits per second."""


def build_config(memory: str) -> TrainConfig:
    """Return the training config that all trainers share, with this memory."""
    config = with_memory(RECIPES["key-to-door"](), memory)
    assert isinstance(config, TrainConfig)
    return dataclasses.replace(config, total_steps=10**9, checkpoint_seconds=1e9)


def build_rllib(config: TrainConfig, num_env_runners: int) -> Any:
    """Return RLlib's PPO on the task of `config`, with the same numbers of steps, epochs and minibatches."""
    env, ppo = config.env, config.learner
    assert isinstance(ppo, PPOConfig)
    algorithm_config = (
        RLlibPPOConfig()
        .environment(gymnasium_id(env.id), env_config=dict(env.kwargs))
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
            minibatch_size=env.num_envs * config.segment_length // ppo.num_minibatches,
            num_epochs=ppo.epochs,
            lr=ppo.learning_rate,
            gamma=ppo.gamma,
        )
        .debugging(log_level="ERROR")
    )
    return algorithm_config.build_algo()


def measure_speeds(bench: RayBenchConfig, folder: Path) -> dict[str, float]:
    """Return environment steps per second by trainer, the local engine first."""
    config = build_config("lstm")
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
            algorithm = build_rllib(config, number)
            stack.callback(algorithm.stop)
            update[f"RLlib PPO with LSTM, {_runners(number)}"] = algorithm.train
        seconds = time_in_turns(update, bench.rounds, bench.warm_up, time.perf_counter)
    return {name: steps / median(durations) for name, durations in seconds.items()}


def _runners(number: int) -> str:
    return f"{number} remote runner{'s' * (number != 1)}"


@dataclass(frozen=True)
class Constants:
    """Measured costs of one environment's segment and of one copy of the weights.

    The costs are measured on one CPU core and without transfers over a network.
    """

    steps: int
    """Steps of a segment of one environment."""
    row_bytes: int
    weight_bytes: int
    sample_seconds: float
    """Seconds per environment to sample a segment, if one runner has all environments of the recipe."""
    gather_seconds: float
    """Seconds in the driver to get the segment of one environment from Ray's object store and append it."""
    learn_seconds: float
    """Seconds of all epochs over the segment of one environment, in one learner."""

    def ceiling(self, bytes_per_second: float) -> float:
        """Return the maximum steps per second that the driver can receive, however many runners there are."""
        return self.steps / (self.gather_seconds + self.row_bytes / bytes_per_second)


def measure_constants(memory: str) -> Constants:
    """Measure the costs of sampling, gathering and learning with a memory."""
    config = build_config(memory)
    envs = config.env.make_batch()
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
    return median(time_in_turns({"": call}, repeats, 0, time.perf_counter)[""])


@dataclass(frozen=True)
class ScalingModel:
    """Duration of a training iteration on a cluster: runners sample, the driver gathers, learners learn."""

    runners: int
    constants: Constants
    num_envs: int
    bytes_per_second: float

    @property
    def sampling(self) -> float:
        """Seconds of sampling; runners work in parallel."""
        return self.num_envs * self.constants.sample_seconds

    @property
    def gathering(self) -> float:
        """Seconds in which the driver gathers the segments of all runners and sends the weights to them."""
        row = self.constants.gather_seconds + self.constants.row_bytes / self.bytes_per_second
        return self.runners * (self.num_envs * row + self.constants.weight_bytes / self.bytes_per_second)

    @property
    def learners(self) -> int:
        """Number of learners with which learning takes as long as sampling."""
        return max(1, round(self.runners * self.constants.learn_seconds / self.constants.sample_seconds))

    def steps_per_second(self, learners: int) -> float:
        """Return the environment steps per second with a number of learners."""
        learning = self.runners * self.num_envs * self.constants.learn_seconds / learners
        seconds = self.sampling + self.gathering + learning
        return self.runners * self.num_envs * self.constants.steps / seconds


def speed_table(speeds: dict[str, float]) -> str:
    """Return the speeds as a Markdown table."""
    local = next(iter(speeds.values()))
    fastest = max(speed for name, speed in speeds.items() if name.startswith("RLlib"))
    return _table(
        "trainer | steps/s | relative to the local engine | relative to the fastest RLlib",
        [
            f"{name} | {speed:,.0f} | {speed / local:.2f}x | {speed / fastest:.1f}x"
            for name, speed in speeds.items()
        ],
    )


def constants_table(bench: RayBenchConfig, constants_by_memory: dict[str, Constants]) -> str:
    """Return the constants as a Markdown table."""
    rows = [
        f"{memory} | {c.row_bytes / 1000:,.1f} kB, {c.steps} steps | {c.weight_bytes / 1000:,.0f} kB "
        f"| {1e3 * c.sample_seconds:.2f} ms | {1e3 * c.gather_seconds:.3f} ms | "
        f"{1e3 * c.learn_seconds:.2f} ms "
        f"| at most {c.ceiling(1e9 * bench.gigabytes_per_second):,.0f} steps/s"
        for memory, c in constants_by_memory.items()
    ]
    return _table(
        (
            "memory | segment per environment | weights | sampling per environment "
            "| gathering per environment | learning per environment | limit of the driver"
        ),
        rows,
    )


def scaling_table(bench: RayBenchConfig, constants_by_memory: dict[str, Constants]) -> str:
    """Return the predictions of the scaling model as a Markdown table."""
    lines = []
    for memory, costs in constants_by_memory.items():
        rows = build_config(memory).env.num_envs
        for runners in bench.cluster:
            plan = ScalingModel(runners, costs, rows, 1e9 * bench.gigabytes_per_second)
            many = plan.steps_per_second(plan.learners)
            share = plan.gathering * many / (runners * rows * costs.steps)
            lines.append(
                f"{memory} | {runners} | {plan.steps_per_second(1):,.0f} | {plan.learners} | {many:,.0f} | "
                f"{share:.0%} | {runners * rows * costs.row_bytes / 1e6:,.0f} MB"
            )
    return _table(
        (
            "memory | runners | steps/s, 1 learner | learners as fast as sampling "
            "| steps/s with these learners | time spent gathering | transfer to the driver"
        ),
        lines,
    )


def _table(header: str, rows: list[str]) -> str:
    rule = " | ".join("---" for _ in header.split(" | "))
    return "\n".join(f"| {line} |" for line in (header, rule, *rows))


def main() -> None:
    """Run the benchmark and print its table."""
    bench = tyro.cli(RayBenchConfig, description=__doc__)
    torch.set_num_threads(1)
    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(
        address="local",
        num_cpus=2 * sum(bench.runners) + 2,  # all trainers exist at once, and one works at a time
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    config = build_config("lstm")
    assert isinstance(config.learner, PPOConfig)
    print(
        f"{config.recipe}, LSTM of width 64, {config.env.num_envs} environments x "
        f"{config.segment_length} steps, "
        f"{config.learner.epochs} epochs x {config.learner.num_minibatches} minibatches, 2 cores, "
        "1 thread per process, "
        f"torch {torch.__version__}, ray {ray.__version__}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        print(speed_table(measure_speeds(bench, Path(folder))), end="\n\n")
    memory_constants = {memory: measure_constants(memory) for memory in bench.memories}
    print(constants_table(bench, memory_constants), end="\n\n")
    print(scaling_table(bench, memory_constants))
    print(
        "\nGathering is the transfer to the driver. Remote learners also receive rows from the driver and "
        "reduce gradients; these numbers include neither, and both would lower them."
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
