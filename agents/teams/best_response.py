"""How much each agent could still gain alone: how far, by what learning finds, from an equilibrium."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.env import TeamEnv
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamActor, TeamPolicy
from scrubjay.agents.teams.sampler import TeamSampler


def separate(policy: TeamPolicy) -> TeamPolicy:
    """Return a copy that acts alike, with an actor of its own for every agent, which models nobody else."""
    if not policy.config.shared and not policy.config.joint:
        return copy.deepcopy(policy)
    config = dataclasses.replace(policy.config, shared=False, joint=False)
    apart = config.build(Spaces(policy.observation_space, policy.action_space, policy.num_agents))
    apart.critic.load_state_dict(policy.critic.state_dict())
    for agent in range(policy.num_agents):
        before = cast("TeamActor", policy.actors[0 if policy.config.shared else agent])
        after = cast("TeamActor", apart.actors[agent])
        after.network.load_state_dict(before.network.state_dict())
        after.heads[0].load_state_dict(before.heads[agent if policy.config.joint else 0].state_dict())
    return apart.to(policy.device)


def best_response(
    policy: TeamPolicy,
    agent: int,
    make_env: Callable[[], TeamEnv],
    config: GAMATRConfig,
    steps: int,
    segment_length: int,
    seed: int = 0,
    learned: Mapping[str, Any] | None = None,
    on_update: Callable[[int], None] | None = None,
) -> TeamPolicy:
    """Return the team after `agent` alone has learned for `steps` environment steps by its own trust region.

    It seeks its own reward, whatever the team was trained for. The other actors stay as they are; the critic
    goes on learning. What it reaches is a lower bound on what the agent could gain, so a small gain is no
    proof of an equilibrium.

    Args:
        policy: The team; it is left as it is.
        agent: The one that learns.
        make_env: Makes the environment, which is closed at the end.
        config: Settings of the updates, but for `mode` and `advantage`.
        steps: Environment steps at least, of all rows together.
        segment_length: Steps of each row in a batch.
        seed: Draws episodes, actions and minibatches.
        learned: The `GAMATR.get_state` of who trained the policy, since only that knows in what units its
            critic speaks; None for an untrained one.
        on_update: Told the steps made so far.
    """
    team = separate(policy)
    env = make_env()
    try:
        alone = dataclasses.replace(config, mode="independent", advantage="own")
        learner = alone.build(team, seed, agents=(agent,))
        if learned is not None:
            learner.set_state({**learner.get_state(), "value_moments": learned["value_moments"]})
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
