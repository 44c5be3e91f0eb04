"""One-step games of a team that are solved exactly, and policies that play them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from scrubjay.agents import TeamPolicy, TeamPolicyConfig, TeamSegment
from scrubjay.agents.teams.steps import compute_detached
from scrubjay.memory import make_config

OBSERVATION = spaces.Box(-1, 1, (3,), np.float32)


ACTION = spaces.Discrete(3)


TRUST_MODES = ("sequential", "independent", "consensus", "metagame")


def make_policy(agents: int = 3, seed: int = 0, memory: str = "none", **fields: Any) -> TeamPolicy:
    torch.manual_seed(seed)
    config = TeamPolicyConfig(
        **{"memory": make_config(memory, dim=8), "graph_rounds": 0, "shared": False} | fields
    )
    policy = TeamPolicy(OBSERVATION, ACTION, agents, config)
    for parameter in policy.actor_parameters() if not policy.config.joint else ():
        if parameter.ndim == 2:  # far from uniform, so that ratios differ
            torch.nn.init.normal_(parameter, std=0.5)
    return policy


def policy_for(mode: str, agents: int = 3, seed: int = 0, **fields: Any) -> TeamPolicy:
    return make_policy(agents, seed, joint=mode == "consensus", **fields)


def play(
    policy: TeamPolicy,
    reward: Callable[[Tensor], Tensor],
    rows: int = 64,
    time: int = 4,
    seed: int = 1,
    alive: Tensor | None = None,
) -> TeamSegment:
    """Return a segment of one-step games: agents observe the same signs; rewards depend on actions only."""
    generator = torch.Generator().manual_seed(seed)
    agents = policy.num_agents
    signs = torch.randint(0, 2, (rows, time, 1, 3), generator=generator).float() * 2 - 1
    signs = signs.expand(rows, time, agents, 3).contiguous()
    if alive is None:
        alive = torch.ones(rows, time, agents, dtype=torch.bool)
    state = policy.initial_state(rows)
    actions, log_probs, values = [], [], []
    for t in range(time):
        start = torch.ones(rows, dtype=torch.bool)
        step = policy.step(signs[:, t], alive[:, t], state, start, generator)
        state = step.state
        for values_list, step_values in zip((actions, log_probs, values), step[:3], strict=True):
            values_list.append(step_values)
    first = policy.initial_state(rows)
    actions = torch.stack(actions, dim=1)
    return TeamSegment(
        observations=signs,
        alive=alive,
        actions=actions,
        log_probs=torch.stack(log_probs, dim=1),
        values=torch.stack(values, dim=1),
        rewards=reward(actions),
        starts=torch.ones(rows, time, dtype=torch.bool),
        terminated=torch.ones(rows, time, agents, dtype=torch.bool),
        truncated=torch.zeros(rows, time, dtype=torch.bool),
        bootstrap_values=torch.zeros(rows, time, agents),
        last_values=torch.zeros(rows, agents),
        state=first,
    )


def climbing(actions: Tensor) -> Tensor:
    """Return a shared reward for large actions and for agreement; its only equilibrium is optimal."""
    total = actions.sum(dim=2, keepdim=True).float()
    agree = (actions == actions[:, :, :1]).all(dim=2, keepdim=True).float()
    return (total / 2 + agree / 4).expand(actions.shape)


def expected_reward(policy: TeamPolicy, reward: Callable[[Tensor], Tensor]) -> float:
    """Return the exact mean reward over all signs and actions."""
    agents = policy.num_agents
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    sign_observations = signs[:, None, None].expand(-1, 1, agents, 3)
    segment = play(policy, climbing, rows=len(signs), time=1)
    segment.observations = sign_observations
    joint = torch.tensor(list(itertools.product(range(3), repeat=agents)))
    distribution = compute_detached(partial(policy.distribution, segment))
    total = torch.zeros(())
    for actions in joint:
        joint_actions = actions.expand(len(signs), 1, agents)
        probability = distribution.log_prob(joint_actions).sum(dim=2).exp()
        total = total + (probability * reward(joint_actions).mean(dim=2)).mean()
    return float(total)
