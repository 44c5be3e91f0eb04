"""Best responses: training of one agent against the fixed actors of all other agents.

The gain of the trained agent is a lower bound on the exploitability of the team's policy.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

from scrubjay.agents.teams.env import TeamEnv
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamActor, TeamPolicy
from scrubjay.agents.teams.sampler import TeamSampler


def separate(policy: TeamPolicy) -> TeamPolicy:
    """Return a copy of the policy with the same behavior and a separate, non-joint actor for every agent."""
    if not policy.config.shared and not policy.config.joint:
        return copy.deepcopy(policy)
    config = dataclasses.replace(policy.config, shared=False, joint=False)
    apart = config.build(policy.spaces)
    apart.critic.load_state_dict(policy.critic.state_dict())
    if policy.normalizer is not None and apart.normalizer is not None:
        apart.normalizer.load_state_dict(policy.normalizer.state_dict())
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
    learner_state: Mapping[str, Any] | None = None,
    on_update: Callable[[int], None] | None = None,
) -> TeamPolicy:
    """Train the actor of `agent` by trust-region updates; return the resulting team policy.

    The agent maximizes its own reward, even if the team was trained on the mean advantage. All other actors
    are fixed, but the critic is trained. A longer training could gain more, so a small gain does not
    prove an equilibrium.

    Args:
        policy: Policy of the team; it is not modified.
        agent: Index of the agent to train.
        make_env: Function that makes the environment. The environment is closed at the end.
        config: Config of the learner; `mode` and `advantage` are replaced. Schedules keep their last value.
        steps: Minimum number of environment steps, of all environments together.
        segment_length: Steps of each environment in a batch.
        seed: Seed of environments, actions and minibatches.
        learner_state: `GAMATR.get_state()` of the learner that trained the policy. Its moments convert the
            critic's outputs to the unit of rewards. None for an untrained policy.
        on_update: Function that is called after each update with the number of environment steps so far.
    """
    team = separate(policy)
    env = make_env()
    try:
        end = config.entropy_coefficient if config.entropy_end is None else config.entropy_end
        alone = dataclasses.replace(
            config,
            mode="independent",
            advantage="own",
            entropy_coefficient=end,
            clip_end=None,
            entropy_end=None,
            anneal_steps=None,
        )
        learner = alone.build(team, seed, agents=(agent,))
        if learner_state is not None:
            learner.set_state({**learner.get_state(), "value_moments": learner_state["value_moments"]})
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
