"""T-Maze against a plain-Python reference and the closed forms of its docstring."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import seeding
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs.tmaze import TMaze, TMazeVector

RIGHT, UP, LEFT, DOWN = range(4)
MASK = 2**64 - 1


def mix(word):
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


class SlowTMaze:
    """Reference implementation for one maze with Python integers."""

    def __init__(self, length, active, seed):
        self.length, self.active = length, active
        self.word = int(seeding.np_random(seed)[0].integers(2**64, dtype=np.uint64))
        self.reset()

    def reset(self):
        self.word = (self.word + 0x9E3779B97F4A7C15) & MASK
        self.goal = "up" if mix(self.word) >> 63 else "down"
        self.cell, self.steps = 0, 0
        return self.look()

    def look(self, goal=None):
        oracle = -1 if self.active else 0
        if goal:
            return [0, 0, 0, 0]
        if self.cell == oracle:
            return [1, 0, 0, 1 if self.goal == "up" else -1]
        return [0, 0, 1, 0] if self.cell == self.length else [0, 1, 0, 0]

    def step(self, action):
        self.steps += 1
        goal = None
        if self.cell == self.length and action in (UP, DOWN):
            goal = "up" if action == UP else "down"
        elif action == RIGHT and self.cell < self.length:
            self.cell += 1
        elif action == LEFT and self.cell > (-1 if self.active else 0):
            self.cell -= 1
        last = goal is not None or self.steps == self.length + (3 if self.active else 1)
        if last:
            reward = 1.0 if goal == self.goal else 0.0
        else:
            expected_cell = self.steps - (2 if self.active else 0)
            reward = -1 / self.length if self.cell < expected_cell else 0.0
        info = {"success": float(goal == self.goal), "reached": float(goal is not None)}
        return self.look(goal), reward, last, info if last else {}


def batch_with_both_cues(length, active, rows=2) -> Any:
    env = TMazeVector(rows, length, active, autoreset_mode="Disabled")
    env.reset(seed=0)
    env.set_state({**env.get_state(), "cue": np.resize([1, -1], rows)})
    return env


def play(env, policy):
    """Run one episode per row with `policy(observations, step)`; return returns and successes."""
    observations = env._observe(slice(None))
    returns, success = np.zeros(env.num_envs), np.zeros(env.num_envs)
    alive = np.ones(env.num_envs, dtype=bool)
    for step in range(env.horizon):
        observations, rewards, terminated, _, infos = env.step(policy(observations, step))
        returns += alive * rewards
        if terminated.any():
            success += alive * infos["success"]
            alive &= ~terminated
            env.reset(options={"reset_mask": terminated})
        if not alive.any():
            return returns, success
    raise AssertionError("the horizon did not end the episode")


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 12),
    active=st.booleans(),
    seed=st.integers(0, 2**63),
    actions=st.lists(st.sampled_from([RIGHT, RIGHT, RIGHT, UP, LEFT, DOWN]), min_size=1, max_size=80),
)
def test_equals_the_slow_reference(length, active, seed, actions):
    env, slow = TMaze(length, active), SlowTMaze(length, active, seed)
    assert env.reset(seed=seed)[0].tolist() == slow.look()
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert (observation.tolist(), reward, terminated, info) == slow.step(action)
        assert not truncated
        if terminated:
            assert env.reset()[0].tolist() == slow.reset()


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("length", [1, 2, 13, 10_000, pytest.param(1_000_000, marks=pytest.mark.matrix)])
def test_with_memory_return_and_success_are_one(length, active):
    env = batch_with_both_cues(length, active)
    cue = np.zeros(2)

    def policy(observations, step):
        cue[:] = np.where(observations[:, 0] == 1, observations[:, 3], cue)
        if active and step == 0:
            return np.full(2, LEFT)
        return np.where(observations[:, 2] == 1, np.where(cue > 0, UP, DOWN), RIGHT)

    returns, success = play(env, policy)
    assert returns.tolist() == success.tolist() == [1.0, 1.0]
    assert env.time.tolist() == [0, 0]


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("length", [1, 3])
def test_no_memoryless_policy_does_better_than_chance(length, active):
    """Enumerate all 4^4 maps from {cue up, cue down, corridor, junction} to actions, under both cues."""
    tables = np.repeat(list(itertools.product(range(4), repeat=4)), 2, axis=0)
    env = batch_with_both_cues(length, active, rows=len(tables))
    rows = np.arange(len(tables))

    def policy(observations, step):
        kind = np.select(
            [observations[:, 3] == 1, observations[:, 3] == -1, observations[:, 1] == 1], [0, 1, 2], default=3
        )
        return tables[rows, kind]

    returns, success = play(env, policy)
    assert success.reshape(-1, 2).mean(axis=1).max() == 0.5
    assert returns.reshape(-1, 2).mean(axis=1).max() == 0.5


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 9), active=st.booleans(), seed=st.integers(0, 2**32))
def test_away_from_the_oracle_nothing_depends_on_the_cue(length, active, seed):
    env = batch_with_both_cues(length, active)
    rng = np.random.default_rng(seed)
    for _ in range(env.horizon):
        action = RIGHT if rng.random() < 0.7 else rng.integers(4)
        observations, rewards, terminated, _, _ = env.step(np.full(2, action))
        assert terminated[0] == terminated[1]
        assert (observations[0, :3] == observations[1, :3]).all()
        assert (observations[:, 3] == [observations[0, 0], -observations[0, 0]]).all()
        if terminated[0]:
            return
        assert rewards[0] == rewards[1]


@pytest.mark.parametrize(("active", "free"), [(False, 0), (True, 2)])
def test_standing_still_costs_one(active, free):
    returns, success = play(batch_with_both_cues(8, active), lambda observations, step: np.full(2, UP))
    np.testing.assert_allclose(returns, -1.0)
    assert success.tolist() == [0.0, 0.0]


def test_cues_are_fair_coins():
    env = TMazeVector(20_000, 1)
    ups = [env.reset(seed=4)[0][:, 3], env.reset()[0][:, 3]]
    for sample in (*ups, ups[0] * ups[1]):
        assert abs(sample.mean()) < 5 / np.sqrt(20_000)


def test_spaces_do_not_depend_on_the_length():
    spaces = [
        TMaze(length, active).observation_space for length in (1, 50, 1_000_000) for active in (False, True)
    ]
    assert all(space == spaces[0] for space in spaces)
    assert spaces[0].shape == (4,)


@pytest.mark.parametrize("length", [0, -3, 1_000_001, 2.5, "9", True, None])
def test_impossible_lengths_are_refused_by_name(length):
    with pytest.raises(
        ValueError, match=f"corridor_length={length!r}: expected an integer from 1 to 1,000,000"
    ):
        gymnasium.make("scrubjay.envs:scrubjay/TMaze-v0", corridor_length=length)


def test_active_must_be_a_boolean():
    with pytest.raises(ValueError, match="active='no': expected True or False"):
        TMaze(active="no")  # pyright: ignore[reportArgumentType]
