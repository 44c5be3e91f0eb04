"""Rollout: actor and environments take turns, and single agents and teams share one interface."""

import itertools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from scrubjay.agents import PolicyConfig, Spaces
from scrubjay.agents.rl.rollout import (
    ActorInput,
    Choice,
    EnvStep,
    EpisodeCounter,
    PolicyActor,
    VectorEnvs,
    rollout,
)
from scrubjay.agents.teams.env import TeamEnvs
from scrubjay.envs import uav
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import list_memories, make_config

SAME_STEP = AutoresetMode.SAME_STEP


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
    envs = VectorEnvs(SyncVectorEnv([config.make] * 2, autoreset_mode=SAME_STEP))
    inputs = envs.reset(seed=1)
    *_, last = itertools.islice(rollout(envs, Constant(np.array([0, 1])), inputs), 4)
    assert last.result.truncated.all()
    final = last.result.final(np.array([1]))
    assert final.observations[""].shape == (1, 4)
    assert (final.observations[""][0] != last.result.following.observations[""][1]).any()
    envs.close()


class Lamp(gymnasium.Env):
    """Each episode has two steps. The infos `infos[i]` end episode i; every step also has the first entry."""

    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, *infos):
        self.infos, self.number, self.time = infos, -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.time = self.number + 1, 0
        return 0, {}

    def step(self, action):
        self.time += 1
        is_end = self.time == 2
        info = self.infos[self.number % len(self.infos)] if is_end else dict.fromkeys(self.infos[0], 0)
        return 0, 0.0, is_end, False, info


def successes_of(*infos):
    envs = VectorEnvs(
        SyncVectorEnv([lambda infos=each: Lamp(*infos) for each in infos], autoreset_mode=SAME_STEP)
    )
    counter = EpisodeCounter(envs.num_envs)
    actor = Constant(np.zeros(envs.num_envs, dtype=np.int64))
    steps = itertools.islice(rollout(envs, actor, envs.reset(seed=0)), 4)
    episodes = [episode for step in steps for episode in counter.count(step.result)]
    return [[episode.success for row, episode in episodes if row == env] for env in range(envs.num_envs)]


def test_success_by_the_name_of_stable_baselines_counts_where_success_is_absent():
    assert successes_of(
        [{"is_success": True}, {"is_success": False}],
        [{"success": 0.25}, {"success": 0.5, "is_success": True}],
        [{"is_success": np.float32(1)}, {"success": False, "is_success": True}],
        [{"other": 3}, {}],
    ) == [[1.0, 0.0], [0.25, 0.5], [1.0, 0.0], [None, None]]


@pytest.mark.parametrize("name", ["success", "is_success"])
def test_the_success_of_a_team_is_that_of_the_last_step(name):
    """A mean over the steps, as for other metrics, would make it small."""
    counter, no_final = EpisodeCounter(1, num_agents=2), lambda rows: ActorInput({}, rows)
    for last in (False, False, True):
        flags, following = np.array([last]), ActorInput({}, np.array([last]))
        infos = {name: flags.astype(float), "rate": np.array([3.0])}
        step = EnvStep(following, np.ones((1, 2)), np.full((1, 2), last), flags, infos, no_final)
        episodes = counter.count(step)
    ((_, episode),) = episodes
    assert (episode.success, episode.measures) == (1.0, {"rate": 3.0})


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
