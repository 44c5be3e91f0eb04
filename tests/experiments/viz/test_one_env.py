"""One environment in a rollout: its episode ends without a reset, and agents that left have no entries."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from scrubjay.agents.rl.observations import EnvFaultError
from scrubjay.agents.rl.rollout import Choice
from scrubjay.experiments.viz.one_env import OneEnv, OneTeam

from ..viz.test_film import Relay


class Counting:
    """Actor that repeats one action and records its inputs."""

    def __init__(self, actions):
        self.actions, self.inputs = actions, []

    def act(self, inputs):
        self.inputs.append(inputs)
        return Choice(self.actions)


def test_an_episode_ends_without_a_reset():
    envs = OneEnv(gymnasium.make("CartPole-v1", max_episode_steps=7), "cartpole")
    actor = Counting([1])
    steps = list(envs.play(actor, envs.reset(seed=3), max_steps=50))
    assert len(steps) == len(actor.inputs) <= 7
    assert envs.is_over
    np.testing.assert_array_equal(steps[-1].result.following.observations[""][0], envs.observation)
    assert len(list(envs.play(actor, envs.reset(seed=3), max_steps=2))) == 2
    assert not envs.is_over
    envs.close()


def test_agents_that_left_have_zeros_and_do_not_act():
    envs, actor = OneTeam(Relay(), "relay"), Counting(np.array([[1, 2]]))
    steps = list(envs.play(actor, envs.reset(seed=0), max_steps=50))
    assert [inputs.alive.tolist() for inputs in actor.inputs] == [[[True, True]]] * 2 + [[[True, False]]] * 2
    assert actor.inputs[-1].observations[""][0, 1].tolist() == [0, 0]
    assert [step.result.rewards.tolist() for step in steps] == [[[1, 2]]] * 2 + [[[1, 0]]] * 2
    assert [inputs.starts.item() for inputs in actor.inputs] == [True, False, False, False]


class Masked:
    """Environment or team with an action mask in an info: at the reset, or at the second step."""

    def __init__(self, env: Any, is_team: bool, when: int) -> None:
        self.env, self.is_team, self.when, self.steps = env, is_team, when, 0

    def __getattr__(self, name):
        return getattr(self.env, name)

    def mask(self):
        if self.steps != self.when:
            return {}
        return {"b": {"action_mask": [1, 0]}} if self.is_team else {"action_mask": [1, 0]}

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed)[0], self.mask()

    def step(self, action):
        self.steps += 1
        return *self.env.step(action)[:4], self.mask()


@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize("is_team", [False, True])
def test_action_masks_are_refused_as_in_training(is_team, when):
    """A film or page would show forbidden actions."""
    if is_team:
        team: Any = Masked(Relay(), True, when)
        envs, actor = OneTeam(team, "own:Env"), Counting(np.array([[1, 2]]))
    else:
        env: Any = Masked(gymnasium.make("CartPole-v1"), False, when)
        envs, actor = OneEnv(env, "own:Env"), Counting([1])
    with pytest.raises(EnvFaultError, match="environment 'own:Env': info has the key 'action_mask'"):
        list(envs.play(actor, envs.reset(seed=3), max_steps=50))


def test_a_team_with_action_masks_in_its_observations_is_refused():
    class Board(Relay):
        def observation_space(self, agent):
            return spaces.Dict(
                {"board": super().observation_space(agent), "action_mask": spaces.MultiBinary(2)}
            )

    with pytest.raises(EnvFaultError, match="environment 'own:Board': the observation space has the key"):
        OneTeam(Board(), "own:Board")
