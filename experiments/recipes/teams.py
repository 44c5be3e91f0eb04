"""Multi-agent recipes and methods: GA-MATR, its ablations, and baselines."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments.recipes.registry import recipe, size_range
from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import make_config


@recipe("uav-small", title="Base stations, 2 UAVs")
def uav_small() -> TeamTaskConfig:
    """Two UAV base stations learn where to fly and on which sub-channel to serve users."""
    return TeamTaskConfig(
        env=TeamEnvConfig(kwargs={"preset": "small"}, num_envs=64),
        # Separate actors: with a shared actor it takes long to learn that one agent should go left and the
        # other right.
        policy=TeamPolicyConfig(shared=False),
        total_steps=200_000,
    )


@recipe("uav-paper", title="Base stations, 4 UAVs")
def uav_paper() -> TeamTaskConfig:
    """Four UAV base stations, at the scale used in papers."""
    return TeamTaskConfig(
        env=TeamEnvConfig(kwargs={"preset": "paper"}, num_envs=64),
        policy=TeamPolicyConfig(shared=False),
        total_steps=200_000,
    )


@recipe(
    "uav-three", title="Base stations, 3 UAVs with a shared actor", sizes=("num_uavs", (2, 3, 4, 6, 8, 10))
)
def uav_three() -> TeamTaskConfig:
    """Three UAV base stations with a shared actor without identity, tested in teams of two to ten."""
    return TeamTaskConfig(
        method="gamatr-shared-no-identity",
        env=TeamEnvConfig(kwargs={"preset": "paper", "num_uavs": 3}, num_envs=64),
        learner=GAMATRConfig(mode="independent"),
        total_steps=200_000,
    )


@recipe("uav-city", title="Base stations, 10 UAVs with a shared actor")
def uav_city() -> TeamTaskConfig:
    """Ten UAV base stations with a shared actor, a hundred users and three hot spots."""
    return TeamTaskConfig(
        method="gamatr-shared",
        env=TeamEnvConfig(kwargs={"preset": "city"}, num_envs=32),
        policy=TeamPolicyConfig(identity=True),
        learner=GAMATRConfig(mode="independent"),
        total_steps=200_000,
    )


@recipe("spread", title="simple_spread, 3 agents")
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


@dataclass(frozen=True)
class Method:
    """Settings of a method that override those of the recipe."""

    description: str
    """One-line description."""
    policy: dict[str, Any]
    """Values for fields of `TeamPolicyConfig`."""
    mode: str
    """Mode of `GAMATRConfig`."""
    memory: str | None = None
    """Name of the memory; None for the memory of the recipe."""


# Set explicitly, since a recipe may use other values.
_GRAPH: dict[str, Any] = {"graph_rounds": TeamPolicyConfig.graph_rounds, "critic": TeamPolicyConfig.critic}
_NO_GRAPH: dict[str, Any] = {"graph_rounds": 0, "critic": "pooled"}

METHODS: dict[str, Method] = {
    "gamatr": Method(
        "graph attention, recurrence, attention critic, sequential trust-region updates",
        {**_GRAPH, "shared": False},
        "sequential",
    ),
    "gamatr-shared": Method(
        "GA-MATR with one shared actor; without agent identity where recipes test several team sizes",
        {**_GRAPH, "shared": True},
        "independent",
    ),
    "hatrpo": Method(
        "sequential trust-region updates, separate weights, no graph",
        {**_NO_GRAPH, "shared": False},
        "sequential",
    ),
    "itrpo": Method(
        "independent trust-region updates, local critics, no graph",
        {"graph_rounds": 0, "critic": "local", "shared": False},
        "independent",
    ),
    "mappo": Method(
        "clipped updates, shared weights with agent identity, central critic, no graph",
        {**_NO_GRAPH, "shared": True},
        "clip",
    ),
    "happo": Method(
        "sequential clipped updates, separate weights, no graph",
        {**_NO_GRAPH, "shared": False},
        "clip_sequential",
    ),
    "matrpo": Method(
        "trust-region updates with consensus among neighbors (ADMM), no graph",
        {**_NO_GRAPH, "shared": False, "joint": True},
        "consensus",
    ),
    "matrl": Method(
        "independent trust-region updates, mixed by the equilibrium of a metagame of old and new policies",
        {**_NO_GRAPH, "shared": False},
        "metagame",
    ),
    "gamatr-no-graph": Method(
        "GA-MATR without communication",
        {**_GRAPH, "shared": False, "graph_rounds": 0},
        "sequential",
    ),
    "gamatr-no-recurrence": Method(
        "GA-MATR without memory",
        {**_GRAPH, "shared": False},
        "sequential",
        memory="none",
    ),
    "gamatr-no-attention-critic": Method(
        "GA-MATR with a mean-pooling critic",
        {**_GRAPH, "shared": False, "critic": "pooled"},
        "sequential",
    ),
}


def with_method(config: TeamTaskConfig, name: str) -> TeamTaskConfig:
    """Return the config with another method. Raises KeyError on an unknown name.

    Methods with a shared actor give it the agent's identity. A recipe that tests other team sizes has none,
    and the label of the method then says so.
    """
    method = METHODS[name]
    shared, sizes = method.policy["shared"], size_range(config.recipe)
    policy = dataclasses.replace(config.policy, identity=shared and sizes is None, **method.policy)
    if method.memory is not None:
        policy = dataclasses.replace(policy, memory=make_config(method.memory, dim=policy.memory.dim))
    learner = dataclasses.replace(config.learner, mode=method.mode)
    label = f"{name}-no-identity" if shared and sizes is not None else name
    return dataclasses.replace(config, method=label, policy=policy, learner=learner)
