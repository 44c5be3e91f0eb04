"""Who contends on multi-agent recipes: GA-MATR, its ablations, and what others do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.memory import make_config


@dataclass(frozen=True)
class Method:
    """What a contender sets, beside what the recipe does."""

    description: str
    """In a line."""
    policy: dict[str, Any] = field(default_factory=dict)
    """Fields of `TeamPolicyConfig`."""
    learner: dict[str, Any] = field(default_factory=dict)
    """Fields of `GAMATRConfig`."""
    memory: str | None = None
    """The memory, if not the recipe's."""


# Said, since a recipe may have neither.
_GRAPH: dict[str, Any] = {"graph_rounds": TeamPolicyConfig.graph_rounds, "critic": TeamPolicyConfig.critic}
_NO_GRAPH: dict[str, Any] = {"graph_rounds": 0, "critic": "pooled"}

METHODS: dict[str, Method] = {
    "gamatr": Method(
        "graph attention, recurrence, attention critic, one agent's trust region after the other",
        {**_GRAPH, "shared": False},
        {"mode": "sequential"},
    ),
    "gamatr-shared": Method(
        "the same with one actor for all, which serves teams of any size",
        {**_GRAPH, "shared": True},
        {"mode": "independent"},
    ),
    "hatrpo": Method(
        "one agent's trust region after the other, weights of their own, no graph",
        {**_NO_GRAPH, "shared": False},
        {"mode": "sequential"},
    ),
    "itrpo": Method(
        "every agent its own trust region and its own view, no graph",
        {"graph_rounds": 0, "critic": "local", "shared": False},
        {"mode": "independent"},
    ),
    "mappo": Method(
        "clipped steps, shared weights, central critic, no graph",
        {**_NO_GRAPH, "shared": True},
        {"mode": "clip"},
    ),
    "happo": Method(
        "clipped steps, one agent after the other, weights of their own, no graph",
        {**_NO_GRAPH, "shared": False},
        {"mode": "clip_sequential"},
    ),
    "matrpo": Method(
        "trust regions that agree with their neighbours' by ADMM, no graph",
        {**_NO_GRAPH, "shared": False, "joint": True},
        {"mode": "consensus"},
    ),
    "matrl": Method(
        "independent trust regions, mixed by the equilibrium of a game of old and new policies",
        {**_NO_GRAPH, "shared": False},
        {"mode": "metagame"},
    ),
    "gamatr-no-graph": Method(
        "GA-MATR whose agents hear nobody",
        {**_GRAPH, "shared": False, "graph_rounds": 0},
        {"mode": "sequential"},
    ),
    "gamatr-no-recurrence": Method(
        "GA-MATR that remembers nothing",
        {**_GRAPH, "shared": False},
        {"mode": "sequential"},
        memory="none",
    ),
    "gamatr-no-attention-critic": Method(
        "GA-MATR whose critic takes the mean of all agents",
        {**_GRAPH, "shared": False, "critic": "pooled"},
        {"mode": "sequential"},
    ),
}


def with_method(config: TeamTaskConfig, name: str) -> TeamTaskConfig:
    """Return the same experiment with another contender. Raises KeyError on an unknown name."""
    method = METHODS[name]
    policy = dataclasses.replace(config.policy, **method.policy)
    if method.memory is not None:
        policy = dataclasses.replace(policy, memory=make_config(method.memory, dim=policy.memory.dim))
    learner = dataclasses.replace(config.learner, **method.learner)
    return dataclasses.replace(config, method=name, policy=policy, learner=learner)
