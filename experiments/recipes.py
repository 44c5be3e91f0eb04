"""Recipes: functions that return a full config. The first line of each docstring is its description."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from scrubjay.agents.policy import PolicyConfig
from scrubjay.agents.ppo import PPOConfig
from scrubjay.experiments.config import TrainConfig
from scrubjay.experiments.environments import EnvConfig
from scrubjay.memory import MemoryConfig, make_config


def tmaze() -> TrainConfig:
    """T-maze, corridor of 50: a cue at the start tells where to turn at the end."""
    return TrainConfig(
        recipe="tmaze",
        env=EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 50}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64), reconstruction=True),
        # The one step that pays comes at the junction. With a smaller bonus for trying things out, or with fewer
        # junctions in a batch, a policy settles on one turn before it has learned to heed the cue.
        ppo=PPOConfig(learning_rate=1e-3, entropy_coefficient=0.02, reconstruction_coefficient=1.0),
        total_steps=800_000,
        segment_length=64,
    )


def tmaze_demo() -> TrainConfig:
    """T-maze, corridor of 20: learned in a minute or two on a laptop."""
    return TrainConfig(
        recipe="tmaze-demo",
        env=EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 20}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=1e-3, entropy_coefficient=0.03),
        total_steps=240_000,
        segment_length=32,
    )


def repeat_previous() -> TrainConfig:
    """Say which suit was shown four cards ago."""
    return TrainConfig(
        recipe="repeat-previous",
        env=EnvConfig("scrubjay/RepeatPrevious-v0", {"k": 4, "num_decks": 1}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=1e-3),
        total_steps=600_000,
        segment_length=64,
    )


def recall_demo() -> TrainConfig:
    """Say which suit was shown four cards ago; the short training that `scrubjay demo` shows."""
    return dataclasses.replace(repeat_previous(), recipe="recall-demo", total_steps=250_000)


def ppo() -> TrainConfig:
    """Any gymnasium environment: `scrubjay train ppo --env ID|module:callable`."""
    return TrainConfig(
        recipe="ppo", env=EnvConfig(""), policy=PolicyConfig(memory=make_config("gru", dim=64))
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "tmaze": tmaze,
    "tmaze-demo": tmaze_demo,
    "repeat-previous": repeat_previous,
    "recall-demo": recall_demo,
    "ppo": ppo,
}

LONGER: dict[str, tuple[str, tuple[int, ...]]] = {
    "tmaze": ("corridor_length", (1, 2, 5, 10)),
    "tmaze-demo": ("corridor_length", (1, 2, 5, 10)),
    "repeat-previous": ("num_decks", (1, 2, 5, 10)),
}
"""What makes a recipe's task longer, and how many times longer a trained policy is tested."""


def describe(recipe: Callable[[], TrainConfig]) -> str:
    """Return the first line of a recipe's docstring."""
    return (recipe.__doc__ or "").strip().partition("\n")[0]


def success_without_memory(config: TrainConfig) -> float | None:
    """Return the best success a policy without memory can have; None where nobody worked it out."""
    if config.env.id == "scrubjay/TMaze-v0":
        return 0.5
    if config.env.id == "scrubjay/RepeatPrevious-v0" and int(config.env.kwargs.get("k", 4)) > 1:
        decks = int(config.env.kwargs.get("num_decks", 1))
        return 13 * decks / (52 * decks - 1)  # name any suit but the one in view
    return None


def with_memory(config: TrainConfig, memory: str | MemoryConfig) -> TrainConfig:
    """Return the same experiment with another memory, of the same width if only its name is given.

    Raises ValueError on an unknown name.
    """
    if isinstance(memory, str):
        memory = make_config(memory, dim=config.policy.memory.dim)
    return dataclasses.replace(config, policy=dataclasses.replace(config.policy, memory=memory))
