"""Environment steps per second of training, compared with sb3-contrib's RecurrentPPO.

Run: `python -P -m scrubjay.experiments.bench.throughput`

One process, one thread; all trainers have the same task, width, number of environments, rollout length,
epochs and minibatches. A rollout of 128 steps, 10 epochs and minibatches of 128 steps are the defaults of
RecurrentPPO. RecurrentPPO has its fastest network: one LSTM shared by actor and critic, without further
layers. Trainers take turns, one update each, so that a busy machine slows all of them; the first round is a
warm-up. The table also splits the time of an update into environment, policy and learner. Scrubjay's
advantage shrinks as the minibatches grow (`--epochs 4 --num-minibatches 4`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Protocol

import gymnasium
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from scrubjay.agents import PolicyConfig, PPOConfig, Sampler, Spaces
from scrubjay.experiments.bench import take_turns
from scrubjay.experiments.measurements import markdown
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import MemoryConfig, make_config

PARTS = ("env", "policy", "learner")


@dataclass(frozen=True)
class ThroughputConfig:
    """Options of the benchmark."""

    env: str = "scrubjay/RepeatPrevious-v0"
    """Environment id; any environment with small observations is suitable."""
    memories: tuple[str, ...] = ("gru", "lstm")
    """Scrubjay memories to measure."""
    dim: int = 64
    """Width of every layer, for all trainers."""
    num_envs: int = 16
    """Number of environments that are stepped together."""
    segment_length: int = 128
    """Steps per environment between two updates."""
    epochs: int = 10
    """Passes over each batch."""
    num_minibatches: int = 16
    """Gradient steps per pass."""
    also: tuple[tuple[int, int], ...] = ((4, 4),)
    """Additional pairs of `epochs` and `num_minibatches` to measure. Each pair has its own table."""
    rounds: int = 3
    """Timed updates per trainer."""

    @property
    def steps(self) -> int:
        """Environment steps per update."""
        return self.num_envs * self.segment_length


class Trainer(Protocol):
    """Trainer that runs one update at a time."""

    def update(self) -> dict[str, float]:
        """Collect data and learn from the data; return the seconds of each part in `PARTS`."""
        ...


class ScrubjayTrainer:
    """Scrubjay's PPO with a memory. `envs` is a batched environment or gymnasium's `SyncVectorEnv`."""

    def __init__(self, config: ThroughputConfig, memory: MemoryConfig, envs: VectorEnv) -> None:
        policy = PolicyConfig(memory=memory).build(Spaces.from_env(envs))
        ppo = PPOConfig(epochs=config.epochs, num_minibatches=config.num_minibatches)
        self.sampler = Sampler(envs, policy, config.segment_length)
        self.learner = ppo.build(policy)

    def update(self) -> dict[str, float]:
        """Collect a segment and learn from it."""
        before = dict(self.sampler.seconds)
        self.segment = self.sampler.collect()
        began = time.perf_counter()
        self.learn()
        durations = {part: self.sampler.seconds[part] - before[part] for part in before}
        return {**durations, "learner": time.perf_counter() - began}

    def learn(self) -> None:
        """Update again on the last collected data."""
        self.learner.update(self.segment)


class RecurrentPPOTrainer:
    """sb3-contrib's RecurrentPPO on stable-baselines3's loop over single environments."""

    def __init__(self, config: ThroughputConfig) -> None:
        # Needs the `bench` extra.
        from sb3_contrib import RecurrentPPO  # pyright: ignore[reportMissingImports]
        from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]
        from stable_baselines3.common.vec_env import DummyVecEnv  # pyright: ignore[reportMissingImports]

        seconds = self.seconds = {"env": 0.0, "rollout": 0.0}

        class TimedVecEnv(DummyVecEnv):
            def step_wait(self) -> Any:
                began = time.perf_counter()
                result = super().step_wait()
                seconds["env"] += time.perf_counter() - began
                return result

        class Stopwatch(BaseCallback):
            began = 0.0

            def _on_rollout_start(self) -> None:
                self.began = time.perf_counter()

            def _on_step(self) -> bool:
                return True

            def _on_rollout_end(self) -> None:
                seconds["rollout"] += time.perf_counter() - self.began

        self.steps = config.steps
        self.callback = Stopwatch()
        self.model = RecurrentPPO(
            "MlpLstmPolicy",
            TimedVecEnv([EnvConfig(config.env).make] * config.num_envs),
            n_steps=config.segment_length,
            n_epochs=config.epochs,
            batch_size=config.steps // config.num_minibatches,
            policy_kwargs={
                "lstm_hidden_size": config.dim,
                "shared_lstm": True,
                "enable_critic_lstm": False,
                "net_arch": [],
            },
            device="cpu",
        )

    def update(self) -> dict[str, float]:
        """Collect one rollout and learn from it."""
        self.seconds.update(env=0.0, rollout=0.0)
        began = time.perf_counter()
        self.model.learn(self.steps, callback=self.callback, reset_num_timesteps=False)
        total = time.perf_counter() - began
        env, rollout = self.seconds["env"], self.seconds["rollout"]
        return {"env": env, "policy": rollout - env, "learner": total - rollout}

    def learn(self) -> None:
        """Update again on the last collected data."""
        self.model.train()


def build_trainers(config: ThroughputConfig) -> dict[str, Trainer]:
    """Return all trainers by name, RecurrentPPO first."""
    single = EnvConfig(config.env)
    trainers: dict[str, Trainer] = {"sb3-contrib RecurrentPPO (lstm)": RecurrentPPOTrainer(config)}
    for name in config.memories:
        memory = make_config(name, dim=config.dim)
        loop = SyncVectorEnv([single.make] * config.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
        trainers[f"scrubjay {name}"] = ScrubjayTrainer(config, memory, loop)
        batched = single.make_batch(config.num_envs)
        if not isinstance(batched, SyncVectorEnv):
            trainers[f"scrubjay {name}, batched environment"] = ScrubjayTrainer(config, memory, batched)
    return trainers


def measure(config: ThroughputConfig) -> dict[str, list[dict[str, float]]]:
    """Return the seconds of each part of every trainer's updates, measured in turns."""
    return take_turns({name: each.update for name, each in build_trainers(config).items()}, config.rounds)


def table(config: ThroughputConfig, updates_by_trainer: dict[str, list[dict[str, float]]]) -> str:
    """Return the medians as a Markdown table, with ratios to the first row."""
    about = (
        f"{config.env}, width {config.dim}, {config.num_envs} environments x {config.segment_length} steps, "
        f"{config.epochs} epochs x {config.num_minibatches} minibatches, 1 thread, torch {torch.__version__}"
    )
    totals = {name: median(sum(each.values()) for each in own) for name, own in updates_by_trainer.items()}
    base = next(iter(totals.values()))
    rows = [
        [name, f"{config.steps / total:,.0f}", f"{base / total:.1f}x"]
        + [f"{1000 * median(each[part] for each in updates_by_trainer[name]):.0f}" for part in PARTS]
        for name, total in totals.items()
    ]
    columns = ["trainer", "steps/s", "ratio", "env, ms per update", "policy, ms", "learner, ms"]
    return f"{about}\n\n{markdown(columns, rows, '---')}"


def main() -> None:
    """Run the benchmark and print its table."""
    config = tyro.cli(ThroughputConfig, description=__doc__)
    torch.set_num_threads(1)
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    for epochs, num_minibatches in ((config.epochs, config.num_minibatches), *config.also):
        setting = replace(config, epochs=epochs, num_minibatches=num_minibatches)
        print(table(setting, measure(setting)), end="\n\n")


if __name__ == "__main__":
    main()
