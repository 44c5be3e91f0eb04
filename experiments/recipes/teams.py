"""Multi-agent recipes."""

from __future__ import annotations

from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments.experiment_types.team import TeamTaskConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import make_config


@recipe("uav-small")
def uav_small() -> TeamTaskConfig:
    """Two UAV base stations learn where to fly and on which sub-channel to serve users."""
    return TeamTaskConfig(
        env=TeamEnvConfig(kwargs={"preset": "small"}, num_envs=64),
        # Separate actors: with a shared actor it takes long to learn that one agent should go left and the
        # other right.
        policy=TeamPolicyConfig(shared=False),
        total_steps=200_000,
    )


@recipe("uav-paper")
def uav_paper() -> TeamTaskConfig:
    """Four UAV base stations, at the scale used in papers."""
    return TeamTaskConfig(
        env=TeamEnvConfig(kwargs={"preset": "paper"}, num_envs=64),
        policy=TeamPolicyConfig(shared=False),
        total_steps=200_000,
    )


@recipe("uav-three", sizes=("num_uavs", (2, 3, 4, 6, 8, 10)))
def uav_three() -> TeamTaskConfig:
    """Three UAV base stations with a shared actor, tested in teams of two to ten."""
    return TeamTaskConfig(
        method="gamatr-shared",
        env=TeamEnvConfig(kwargs={"preset": "paper", "num_uavs": 3}, num_envs=64),
        learner=GAMATRConfig(mode="independent"),
        total_steps=200_000,
    )


@recipe("uav-city")
def uav_city() -> TeamTaskConfig:
    """Ten UAV base stations with a shared actor, a hundred users and three hot spots."""
    return TeamTaskConfig(
        method="gamatr-shared",
        env=TeamEnvConfig(kwargs={"preset": "city"}, num_envs=32),
        learner=GAMATRConfig(mode="independent"),
        total_steps=200_000,
    )


@recipe("spread")
def spread() -> TeamTaskConfig:
    """Three agents cover three landmarks without collisions: simple_spread_v3 (extra `mpe`)."""
    return TeamTaskConfig(
        method="hatrpo",
        env=TeamEnvConfig("mpe2.simple_spread_v3:parallel_env", {"N": 3, "max_cycles": 25}, num_envs=40),
        policy=TeamPolicyConfig(
            memory=make_config("none", dim=64), graph_rounds=0, critic="pooled", shared=False
        ),
        learner=GAMATRConfig(mode="sequential", advantage="team"),
        total_steps=200_000,
    )
