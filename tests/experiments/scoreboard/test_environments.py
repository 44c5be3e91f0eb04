"""Environments of the scoreboard: no hidden velocity reaches the observation; views and seeds are exact."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from scrubjay.experiments.scoreboard import environments
from scrubjay.experiments.scoreboard.environments import HiddenEntries, hide_velocities


def play(env, steps=20, seed=3):
    """Return the observations and rewards of some random steps."""
    actions = np.random.default_rng(0)
    observations, rewards = [env.reset(seed=seed)[0]], []
    space = env.action_space
    for _ in range(steps):
        action = (
            actions.integers(space.n)
            if isinstance(space, gymnasium.spaces.Discrete)
            else actions.uniform(space.low, space.high).astype(space.dtype)
        )
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            break
    return np.array(observations), np.array(rewards)


def test_the_pendulum_without_velocity_has_the_first_two_entries_of_the_pendulum():
    ours, rewards = play(hide_velocities("Pendulum-v1"))
    theirs, expected_rewards = play(gymnasium.make("Pendulum-v1"))
    np.testing.assert_array_equal(ours, theirs[:, :2])
    np.testing.assert_array_equal(rewards, expected_rewards)


@pytest.mark.requires("mujoco")
@pytest.mark.parametrize("name", ["HalfCheetah-v5", "Hopper-v5"])
def test_no_velocity_reaches_the_observation(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log
    env: Any = hide_velocities(name)
    env.reset(seed=0)
    body = env.unwrapped
    structure = body.observation_structure
    assert env.observation_space.shape == (structure["qpos"],)
    positions = body.data.qpos.copy()
    for _ in range(3):
        body.set_state(positions, np.random.default_rng().normal(size=body.data.qvel.shape))
        view = env.observation(body._get_obs())
        np.testing.assert_array_equal(view, positions[structure["skipped_qpos"] :])
    ours, rewards = play(env)
    theirs, expected_rewards = play(gymnasium.make(name))
    np.testing.assert_array_equal(ours, theirs[:, : structure["qpos"]])
    np.testing.assert_array_equal(rewards, expected_rewards)


def test_hidden_entries_are_checked():
    env = gymnasium.make("Pendulum-v1")
    assert HiddenEntries(env, [0]).observation_space == gymnasium.spaces.Box(
        np.array([-1, -8], np.float32), np.array([1, 8], np.float32)
    )
    with pytest.raises(ValueError, match=r"hidden_indices=\[3\]: must be from 0 to 2"):
        HiddenEntries(env, [1, 3])
    with pytest.raises(TypeError, match="must be a Box with one axis"):
        HiddenEntries(gymnasium.make("FrozenLake-v1"), [0])
    with pytest.raises(ValueError, match="choose from Pendulum-v1, HalfCheetah-v5, Hopper-v5"):
        hide_velocities("Swimmer-v5")


@pytest.mark.requires("minigrid")
def test_symbols_are_the_view_one_hot():
    from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX

    symbols, _ = play(environments.minigrid("MiniGrid-MemoryS7-v0"))
    views = np.array([view["image"] for view in _dict_views("MiniGrid-MemoryS7-v0")])
    sizes = np.cumsum([len(OBJECT_TO_IDX), len(COLOR_TO_IDX)])
    parts = np.split(symbols.reshape(*views.shape[:3], -1), sizes, axis=-1)
    assert parts[2].shape[-1] == len(STATE_TO_IDX)
    for channel, part in enumerate(parts):
        np.testing.assert_array_equal(part.sum(-1), 1)
        np.testing.assert_array_equal(part.argmax(-1), views[..., channel])


def _dict_views(name):
    env: Any = gymnasium.make(name)
    actions = np.random.default_rng(0)
    views = [env.reset(seed=3)[0]]
    while len(views) < 21:
        views.append(env.step(actions.integers(env.action_space.n))[0])
    return views


@pytest.mark.requires("bsuite")
@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [("memory", {"memory_length": 5}, 6), ("umbrella", {"chain_length": 4}, 4), ("catch", {}, 9)],
)
def test_episodes_of_bsuite_end_by_themselves_and_follow_the_seed(name, settings, steps):
    env = environments.bsuite(name, **settings)
    first, rewards = play(env)
    assert len(rewards) == steps
    assert first.shape[1:] == env.observation_space.shape
    again, same_rewards = play(env)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(rewards, same_rewards)
    starts = {env.reset()[0].tobytes() for _ in range(30)}  # without a seed, episodes go on to differ
    assert len(starts) > 1


@pytest.mark.requires("bsuite")
def test_the_score_of_a_perfect_memory_is_one():
    """The first observation shows the bit, and the last action must repeat it."""
    env = environments.bsuite("memory", memory_length=4)
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        cue, total, is_over = int(observation[2] > 0), 0.0, False
        while not is_over:
            observation, reward, terminated, truncated, _ = env.step(cue)
            total, is_over = total + float(reward), terminated or truncated
        assert total == 1
        assert terminated
    with pytest.raises(ValueError, match="choose from catch, memory, umbrella"):
        environments.bsuite("deep_sea")
