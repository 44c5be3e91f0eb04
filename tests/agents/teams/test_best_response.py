from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from scrubjay.agents import GAMATR, GAMATRConfig, TeamPolicy, TeamPolicyConfig, TeamSampler
from scrubjay.agents.rl.trust_region import flatten
from scrubjay.agents.teams.best_response import best_response, separate
from scrubjay.envs import uav
from scrubjay.envs.uav.batch import UAVTeams
from scrubjay.memory import make_config

CONFIG = GAMATRConfig(critic_epochs=1, minibatches=2)
STEPS, LENGTH = 32, 8


def make_env() -> UAVTeams:
    return uav.teams(4, num_users=4, max_steps=6)


def make_policy(**fields: Any) -> TeamPolicy:
    torch.manual_seed(0)
    env = make_env()
    config = TeamPolicyConfig(make_config("gru", dim=8), graph_rounds=1, graph_heads=2, **fields)
    policy = TeamPolicy(env.single_observation_space, env.single_action_space, 2, config)
    for parameter in policy.actor_parameters():  # far from indifferent, so that actors differ
        torch.nn.init.normal_(parameter, std=0.5)
    return policy


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize(
    "fields",
    [
        {"shared": True},
        {"shared": True, "identity": True},
        {"shared": False},
        {"shared": False, "joint": True},
    ],
    ids=["shared", "identity", "separate", "joint"],
)
def test_only_one_actor_moves_and_begins_as_the_team_acts(fields: dict[str, bool]) -> None:
    policy = make_policy(**fields)
    apart = separate(policy)
    segments = [TeamSampler(make_env(), team, LENGTH, seed=3).collect() for team in (policy, apart)]
    assert torch.equal(segments[0].actions, segments[1].actions)
    torch.testing.assert_close(segments[0].values, segments[1].values)
    before = flatten(list(policy.parameters())).detach()
    team = best_response(policy, 1, make_env, CONFIG, STEPS, LENGTH)
    assert torch.equal(flatten(list(policy.parameters())), before)
    has_changed = [
        not torch.equal(flatten(team.actor_parameters(m)), flatten(apart.actor_parameters(m))) for m in (0, 1)
    ]
    assert has_changed == [False, True]


def test_a_trained_critic_is_heard_in_its_units_and_the_agent_is_selfish() -> None:
    policy = make_policy(shared=False)
    first = GAMATR(policy, CONFIG)
    first.update(TeamSampler(make_env(), policy, LENGTH, seed=3).collect())
    assert abs(first.value_mean) + abs(first.value_deviation - 1) > 0.1
    expected = separate(policy)
    learner = GAMATR(expected, dataclasses.replace(CONFIG, mode="independent"), seed=0, agents=(1,))
    learner.set_state({**learner.get_state(), "value_moments": first.get_state()["value_moments"]})
    learner.update(TeamSampler(make_env(), expected, LENGTH, seed=0).collect())
    for_all = dataclasses.replace(CONFIG, advantage="team")
    team = best_response(policy, 1, make_env, for_all, STEPS, LENGTH, learner_state=first.get_state())
    assert torch.equal(flatten(list(team.parameters())), flatten(list(expected.parameters())))
    deaf = best_response(policy, 1, make_env, CONFIG, STEPS, LENGTH)
    assert not torch.equal(flatten(list(deaf.parameters())), flatten(list(expected.parameters())))
