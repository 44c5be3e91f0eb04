"""One environment in a rollout: its episode ends without a reset, and agents that left have no entries."""

import gymnasium
import numpy as np

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
