"""Rollout: actor and environments take turns, and single agents and teams share one interface."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from scrubjay.agents import PolicyConfig, Spaces
from scrubjay.agents.rl.rollout import Choice, EpisodeCounter, PolicyActor, VectorEnvs, rollout
from scrubjay.agents.teams.env import TeamEnvs
from scrubjay.envs import uav
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import list_memories, make_config


class Constant:
    """Actor that repeats its actions and counts its turns."""

    def __init__(self, actions):
        self.actions, self.turns = actions, 0

    def act(self, inputs):
        self.turns += 1
        return Choice(self.actions)


def single(num_envs=3):
    return VectorEnvs(EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 4}).make_batch(num_envs))


def team(num_envs=3):
    return TeamEnvs(uav.teams(num_envs, "small", num_users=4, max_steps=5))


@pytest.mark.parametrize("make", [single, team])
def test_each_step_continues_from_the_last(make):
    envs = make()
    shape = (3,) if envs.num_agents is None else (3, envs.num_agents, 3)
    actor = Constant(np.zeros(shape, dtype=np.int64))
    inputs = envs.reset(seed=0)
    assert inputs.starts.all()
    counter = EpisodeCounter(envs.num_envs, envs.num_agents)
    count, following = 0, inputs
    for step in itertools.islice(rollout(envs, actor, inputs), 12):
        assert step.inputs is following
        following = step.result.following
        episodes = counter.count(step.result)
        assert [row for row, _ in episodes] == np.flatnonzero(following.starts).tolist()
        count += len(episodes)
    assert actor.turns == 12
    assert count == 6 if envs.num_agents else count >= 0
    envs.close()


def test_the_final_observations_are_those_before_the_reset():
    config = EnvConfig("CartPole-v1", {"max_episode_steps": 4})
    envs = VectorEnvs(SyncVectorEnv([config.make] * 2, autoreset_mode=AutoresetMode.SAME_STEP))
    inputs = envs.reset(seed=1)
    *_, last = itertools.islice(rollout(envs, Constant(np.array([0, 1])), inputs), 4)
    assert last.result.truncated.all()
    final = last.result.final(np.array([1]))
    assert final.observations[""].shape == (1, 4)
    assert (final.observations[""][0] != last.result.following.observations[""][1]).any()
    envs.close()


@pytest.mark.parametrize("memory", list_memories())
def test_an_actor_acts_at_the_first_step_as_a_policy_does(memory):
    """A start mask at the first step changes nothing: the memory states are the initial ones."""
    envs = single()
    torch.manual_seed(0)
    policy = PolicyConfig(memory=make_config(memory, dim=16)).build(Spaces.from_env(envs.env))
    inputs = envs.reset(seed=0)
    outputs = [
        PolicyActor(policy, deterministic=True).act(inputs._replace(starts=starts)).output
        for starts in (inputs.starts, ~inputs.starts)
    ]
    for first, second in zip(*outputs, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    envs.close()
