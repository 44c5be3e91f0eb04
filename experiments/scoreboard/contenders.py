"""Contenders of the scoreboard, each with one fixed config on all tasks."""

from __future__ import annotations

import dataclasses
from typing import Any

from scrubjay.experiments.recipes import RECIPES
from scrubjay.experiments.recipes.registry import cover_episode
from scrubjay.experiments.runs.reinforcement import TrainConfig
from scrubjay.experiments.scoreboard.tasks import FRAMES, Task
from scrubjay.memory import make_config
from scrubjay.memory.hcam import HCAMConfig

MEMORIES = ("none", "gru", "lstm", "lru", "gated_delta", "gtrxl", "sink", "hcam")
"""Memories of the scoreboard, with Scrubjay's PPO."""
FURTHER = ("comba", "rwkv7", "mamba2", "mamba3", "xlstm", "deltaproduct")
"""Further memories that can be named. Their state has one size for any episode."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "deltaproduct": ("gated_delta", {"householders": 2, "negative_eigenvalues": True}),
}
"""Memory and settings of the contenders that are not defaults of a memory."""
PEERS = ("recurrent_ppo", "recurrent_ppo_defaults")
"""sb3-contrib's RecurrentPPO: with the settings of Scrubjay's learner, and with its own defaults.

The first has the learning rate `PEER_LEARNING_RATE`. Both have the width, the environments, the segments and
the minibatches of Scrubjay's runs.
"""
CONTENDERS = (*MEMORIES, *FURTHER, *PEERS)

DIM = 64
"""Width of every network."""

PEER_LEARNING_RATE = 4e-3
"""Learning rate of `recurrent_ppo`: the best of 3e-4, 1e-3, 2e-3, 4e-3 and 8e-3 on the development tasks. The
same search chose the default of Scrubjay's PPO."""

SHARED = ("learning_rate", "entropy_coefficient")
"""Settings of the learner that all contenders have."""
OWN = ("least_deviation", "burn_in_segments", "anneal")
"""Settings of the learner that only Scrubjay has."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of all runs of a scoreboard. Two runs with equal settings can be compared."""

    steps: int = FRAMES
    """Environment steps of each run; at most a whole update more."""
    episodes: int = 100
    """Episodes of the final evaluation. They are the same for all contenders with the same seed."""
    stochastic: bool = False
    """Sample the actions of the final evaluation, instead of the most likely actions."""
    num_envs: int = 16
    """Parallel environments."""
    segment_length: int = 64
    """Steps of each environment between two updates."""
    learning_rate: float | None = None
    """Learning rate of all contenders; default: that of each contender."""
    entropy_coefficient: float | None = None
    """Coefficient of the entropy bonus of all contenders; default: that of each contender."""
    least_deviation: float | None = None
    """Setting of the same name of Scrubjay's PPO; RecurrentPPO lacks it."""
    burn_in_segments: int | None = None
    """Setting of the same name of Scrubjay's PPO; RecurrentPPO lacks it."""
    anneal: bool | None = None
    """Setting of the same name of Scrubjay's PPO: lower the learning rate to 0 during the run."""

    def overrides(self, *names: str) -> dict[str, float]:
        """Return those of these settings of the learner that are set for all contenders."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def make_train_config(task: Task, memory: str, seed: int, settings: Settings) -> TrainConfig:
    """Return the config of a memory on a task: the recipe `ppo`, with a memory that covers the episode."""
    base: TrainConfig = RECIPES["ppo"]()
    name, changes = VARIANTS.get(memory, (memory, {}))
    memory_config = cover_episode(make_config(name, dim=DIM, **changes), task.episode_steps)
    if isinstance(memory_config, HCAMConfig):
        chunks = -(-task.episode_steps // memory_config.chunk_size)
        memory_config = dataclasses.replace(memory_config, num_chunks=max(memory_config.num_chunks, chunks))
    overrides: dict[str, Any] = settings.overrides(*SHARED, *OWN)
    return dataclasses.replace(
        base.with_memory(memory_config),
        recipe=f"scoreboard-{task.name}",
        env=task.env(settings.num_envs),
        learner=dataclasses.replace(base.learner, **overrides),
        total_steps=settings.steps,
        segment_length=settings.segment_length,
        seed=seed,
        eval_episodes=0,  # the scoreboard evaluates all contenders itself
        device="cpu",
    )
