"""How much each agent could still gain alone: the distance of a team from an equilibrium, as far as learning finds it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

from torch import Tensor

from scrubjay.agents.gamatr import GAMATR, GAMATRConfig
from scrubjay.agents.team_env import TeamEnv
from scrubjay.agents.team_policy import TeamPolicy
from scrubjay.agents.team_sampler import TeamSampler


def separate(policy: TeamPolicy) -> TeamPolicy:
    """Return a copy that acts alike, with an actor of its own for every agent."""
    if not policy.config.shared:
        return copy.deepcopy(policy)
    config = dataclasses.replace(policy.config, shared=False)
    apart = TeamPolicy(policy.observation_space, policy.action_space, policy.num_agents, config)
    apart.load_state_dict(dict(_weights(policy)))
    return apart.to(policy.device)


def best_response(
    policy: TeamPolicy,
    agent: int,
    make_env: Callable[[], TeamEnv],
    config: GAMATRConfig,
    steps: int,
    segment_length: int,
    seed: int = 0,
    on_update: Callable[[int], None] | None = None,
) -> TeamPolicy:
    """Return the team after `agent` alone has learned for `steps` environment steps by its own trust region.

    The other actors stay as they are; the critic goes on learning. What it reaches is a lower bound on what the agent
    could gain, so a small gain is no proof of an equilibrium. `on_update` is told the steps made.
    """
    team = separate(policy)
    env = make_env()
    try:
        learner = GAMATR(team, dataclasses.replace(config, mode="independent"), seed, agents=(agent,))
        sampler = TeamSampler(env, team, segment_length, seed)
        done = 0
        while done < steps:
            segment = sampler.collect()
            learner.update(segment)
            done += segment.num_steps
            if on_update is not None:
                on_update(done)
    finally:
        env.close()
    return team


def _weights(policy: TeamPolicy) -> Iterator[tuple[str, Tensor]]:
    shared = "actors.0."
    for name, value in policy.state_dict().items():
        if not name.startswith(shared):
            yield name, value
            continue
        for agent in range(policy.num_agents):
            yield f"actors.{agent}.{name.removeprefix(shared)}", value
