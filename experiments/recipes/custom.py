"""The recipe of an environment of your own."""

from __future__ import annotations

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.experiments.kinds.reinforcement import TrainConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import make_config


@recipe("ppo")
def ppo() -> TrainConfig:
    """Any gymnasium environment: `scrubjay train ppo --env ID|module:callable`."""
    return TrainConfig(env=EnvConfig(""), policy=PolicyConfig(memory=make_config("gru", dim=64)))
