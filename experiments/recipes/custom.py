"""Recipes for your own environments: single-agent and team."""

from __future__ import annotations

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.recipes.teams import with_method
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig, TrainConfig
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import make_config


@recipe("ppo")
def ppo() -> TrainConfig:
    """Any gymnasium environment: `scrubjay train ppo --env ID|module:callable`."""
    return TrainConfig(
        env=EnvConfig(""),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        learner=PPOConfig(),
    )


@recipe("team")
def team() -> TeamTaskConfig:
    """Any PettingZoo ParallelEnv with identical agents: `scrubjay train team --env module:callable`."""
    return with_method(TeamTaskConfig(env=TeamEnvConfig("")), "gamatr")
