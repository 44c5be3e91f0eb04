"""Batched environments equal single environments."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs import uav
from scrubjay.envs.uav.config import PRESETS
from scrubjay.envs.uav.observation import observe

from .scenarios import configs, random_actions


def assert_equal_arrays(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


def at(observations, row, column):
    return {name: values[row, column] for name, values in observations.items()}


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(config=configs() | st.sampled_from([make() for make in PRESETS.values()]), seed=st.integers(0, 2**40))
def test_a_row_of_many_equals_the_environment_alone_to_the_last_bit(config, seed):
    rng, rows = np.random.default_rng(seed), 4
    teams, singles = uav.teams(rows, config), [uav.parallel_env(config) for _ in range(rows)]
    observations, _ = teams.reset(seed=seed)
    single_observations = [env.reset(seed=seed + row)[0] for row, env in enumerate(singles)]
    for _ in range(14):
        for row, env in enumerate(singles):
            for column, agent in enumerate(env.possible_agents):
                assert (agent in env.agents) == teams.world.alive[row, column]
                if agent in env.agents:
                    assert_equal_arrays(single_observations[row][agent], at(observations, row, column))
        actions = random_actions(teams, rng)
        step = teams.step(actions)
        observations = step.observations
        ended_rows = np.flatnonzero(step.dones).tolist()
        for row, env in enumerate(singles):
            flew = env.agents
            columns = {agent: env.possible_agents.index(agent) for agent in flew}
            single_observations[row], rewards, terminated, truncated, infos = env.step(
                {agent: actions[row, column] for agent, column in columns.items()}
            )
            assert bool(env.agents) != step.dones[row]
            for agent, column in columns.items():
                assert rewards[agent] == step.rewards[row, column]
                assert terminated[agent] == step.terminated[row, column]
                assert truncated[agent] == (step.truncated[row] and not terminated[agent])
                assert infos[agent] == {name: values[row] for name, values in step.infos.items()}
                if step.dones[row]:
                    assert_equal_arrays(
                        single_observations[row][agent],
                        at(step.final_observations, ended_rows.index(row), column),
                    )
            if step.dones[row]:
                single_observations[row] = env.reset()[0]


def test_flat_teams_see_the_parts_one_after_another():
    options: Any = {"num_uavs": 3, "max_steps": 6, "drop_probability": 0.1}
    flat, parts = (uav.teams(4, observation=form, **options) for form in ("flat", "parts"))
    assert flat.single_observation_space == spaces.flatten_space(parts.single_observation_space)
    rng, num_dones = np.random.default_rng(0), 0

    def compare(mine, theirs):
        assert list(mine) == [""]
        sizes = {name: math.prod(leaf.shape[2:]) for name, leaf in theirs.items()}
        leaves = [theirs[name].reshape(*mine[""].shape[:2], sizes[name]) for name in sorted(theirs)]
        np.testing.assert_array_equal(mine[""], np.concatenate(leaves, axis=2))

    compare(flat.reset(seed=1)[0], parts.reset(seed=1)[0])
    for _ in range(20):
        actions = random_actions(parts, rng)
        mine, theirs = flat.step(actions), parts.step(actions)
        compare(mine.observations, theirs.observations)
        compare(mine.final_observations, theirs.final_observations)
        np.testing.assert_array_equal(mine.rewards, theirs.rewards)
        num_dones += int(mine.dones.sum())
    assert num_dones >= 8


@settings(max_examples=12, deadline=None)
@given(config=configs(), seed=st.integers(0, 2**32), before=st.integers(0, 15))
def test_state_goes_back_to_the_very_same_future(config, seed, before):
    def play(teams, steps, rng):
        return [teams.step(random_actions(teams, rng)) for _ in range(steps)]

    teams = uav.teams(4, config)
    teams.reset(seed=seed)
    play(teams, before, np.random.default_rng(seed))
    state = pickle.loads(pickle.dumps(teams.get_state()))
    future = play(teams, 12, np.random.default_rng(1))
    there = uav.teams(4, config)
    there.set_state(state)
    here = uav.teams(4, config)
    here.reset(seed=seed)
    play(here, before, np.random.default_rng(seed))
    assert_equal_arrays(observe(there.world, slice(None)), observe(here.world, slice(None)))
    for target in (teams, there):
        target.set_state(state)
        for mine, theirs in zip(play(target, 12, np.random.default_rng(1)), future, strict=True):
            assert_equal_arrays(mine.observations, theirs.observations)
            assert_equal_arrays(mine.final_observations, theirs.final_observations)
            assert_equal_arrays(mine.infos, theirs.infos)
            for name in ("alive", "rewards", "terminated", "truncated", "dones", "final_alive"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


@pytest.mark.parametrize("rows", [0, 1.5, True])
def test_invalid_num_envs_is_refused(rows):
    with pytest.raises(ValueError, match=f"num_envs={rows!r}: expected an integer"):
        uav.teams(rows)


def test_actions_outside_their_space_are_refused_and_those_of_dead_uavs_are_ignored():
    teams = uav.teams(2, "small")
    with pytest.raises(ResetNeeded, match="before reset"):
        teams.step(np.zeros((2, 2, 3), dtype=int))
    teams.reset(seed=0)
    teams.world.alive[0, 1] = False
    wrong = np.zeros((2, 2, 3), dtype=int)
    wrong[0, 1] = 99
    teams.step(wrong)
    wrong[1, 1] = teams.single_action_space.nvec
    with pytest.raises(ValueError, match="expected elements of MultiDiscrete"):
        teams.step(wrong)
    for strange in (np.zeros((2, 3), dtype=int), np.zeros((2, 2, 3))):
        with pytest.raises(ValueError, match=r"expected integers \(2, 2, 3\)"):
            teams.step(strange)


def test_a_state_of_other_settings_is_refused_and_changes_nothing():
    teams, other = uav.teams(2, "small"), uav.teams(2, "small", num_users=13)
    with pytest.raises(ResetNeeded, match="get_state"):
        teams.get_state()
    observations, _ = teams.reset(seed=0)
    other.reset(seed=0)
    with pytest.raises(ValueError, match="state has settings"):
        teams.set_state(other.get_state())
    with pytest.raises(ValueError, match="expected"):
        uav.teams(3, "small").set_state(teams.get_state())
    assert_equal_arrays(observe(teams.world, slice(None)), observations)
