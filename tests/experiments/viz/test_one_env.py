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
    """Environment or team with an action mask in its infos, in the steps `when`."""

    def __init__(self, env: Any, is_team: bool, when: Any, mask: Any = (0, 1)) -> None:
        self.env, self.is_team, self.when, self.steps, self.mask = env, is_team, when, 0, mask

    def __getattr__(self, name):
        return getattr(self.env, name)

    def offer(self):
        if self.steps not in self.when:
            return {}
        info = {"action_mask": np.array(self.mask)}
        return dict.fromkeys(self.env.agents, info) if self.is_team else info

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed)[0], self.offer()

    def step(self, action):
        self.steps += 1
        return *self.env.step(action)[:4], self.offer()


def play_masked(is_team, when, mask=None):
    if is_team:
        team: Any = Masked(Relay(), True, when, mask or [0, 1, 1, 0, 0])
        envs, actor = OneTeam(team, "own:Env"), Counting(np.array([[1, 2]]))
    else:
        env: Any = Masked(gymnasium.make("CartPole-v1"), False, when, mask or [0, 1])
        envs, actor = OneEnv(env, "own:Env"), Counting([1])
    for _ in envs.play(actor, envs.reset(seed=3), max_steps=4):
        pass
    return [inputs.observations.get("action_mask") for inputs in actor.inputs]


@pytest.mark.parametrize("is_team", [False, True])
def test_masks_of_infos_are_inputs_of_the_actor(is_team):
    masks = play_masked(is_team, range(9))
    expected = [[[0, 1, 1, 0, 0], [0, 1, 1, 0, 0]]] if is_team else [[0, 1]]
    assert [mask.tolist() for mask in masks[:2]] == [expected] * 2
    assert len(masks) == 4
    assert all(
        (mask[:, 0] if is_team else mask).tolist() == [expected[0][0] if is_team else expected[0]]
        for mask in masks
    )
    assert play_masked(is_team, []) == [None] * 4


@pytest.mark.parametrize(
    ("when", "mask", "message"),
    [
        ([2], None, "step 2: info has the key 'action_mask'"),
        ([0], None, "environment 0, step 1: the action mask.* is missing"),
        ([0, 1], [0, 0], "environment 0, step 0: the action mask allows no action"),
        (
            [0, 1],
            [0, 1, 0],
            r"environment 0, step 0: the action mask has the shape \(3,\); return 2 booleans",
        ),
    ],
)
@pytest.mark.parametrize("is_team", [False, True])
def test_invalid_masks_are_refused_as_in_training(is_team, when, mask, message):
    """A film or page would show forbidden actions."""
    if is_team and mask is not None:
        mask, message = [0] * 5, "environment 0, step 0: the action mask of agent 0 allows no action"
    with pytest.raises(EnvFaultError, match=f"environment 'own:Env': {message}"):
        play_masked(is_team, when, mask)


def test_a_team_with_masks_in_its_observations_hands_them_to_the_actor():
    class Board(Relay):
        def observation_space(self, agent):
            board = super().observation_space(agent)
            return spaces.Dict({"observation": board, "action_mask": spaces.MultiBinary(5)})

        def _see(self):
            return {
                agent: {"observation": board, "action_mask": np.eye(5, dtype=np.int8)[1]}
                for agent, board in super()._see().items()
            }

    envs = OneTeam(Board(), "own:Board")
    inputs = envs.reset(seed=0)
    assert envs.masks is not None
    assert inputs.observations["action_mask"].tolist() == [np.eye(5)[[1, 1]].tolist()]
