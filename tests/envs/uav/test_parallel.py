"""Interfaces and input validation of the PettingZoo environment and the batched environment."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from typing import Any, cast

import numpy as np
import pettingzoo
import pytest
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test, render_test

from scrubjay.envs import uav
from scrubjay.envs.uav.config import PRESETS, UAVConfig

LAYOUT = ("adjacency", "neighbours", "neighbours_mask", "own", "users", "users_mask")
"""Order of the leaves in a flat observation."""
every_preset = pytest.mark.parametrize("preset", PRESETS)


@every_preset
def test_pettingzoos_own_test_of_parallel_environments(preset):
    parallel_api_test(uav.parallel_env(preset), num_cycles=150)


def test_pettingzoos_own_test_where_uavs_drop_out():
    parallel_api_test(uav.parallel_env("small", num_uavs=4, drop_probability=0.1), num_cycles=150)


@every_preset
def test_pettingzoos_own_test_of_seeds(preset):
    parallel_seed_test(lambda: uav.parallel_env(preset), num_cycles=60)


def test_pettingzoos_own_test_of_environments_that_act_in_turn():
    with warnings.catch_warnings():
        # `api_test` does not support Dict observations and warns.
        warnings.simplefilter("ignore")
        api_test(uav.env("small"), num_cycles=120)


def test_pettingzoos_own_test_of_rendering():
    def make(render_mode: str) -> Any:
        # `render_test` also creates a "human" environment, which it never renders and we lack.
        return uav.env("small", max_steps=3, render_mode=None if render_mode == "human" else render_mode)

    render_test(cast(Any, make))


@every_preset
def test_flat_observations_are_the_parts_one_after_another(preset):
    options: Any = {"num_uavs": 4, "drop_probability": 0.05}
    flat, parts = (uav.parallel_env(preset, observation=form, **options) for form in ("flat", "parts"))
    space = cast(spaces.Dict, parts.observation_space("uav_0"))
    assert flat.observation_space("uav_0") == spaces.flatten_space(space)
    rng = np.random.default_rng(0)
    (flat_observations, _), (whole, _) = flat.reset(seed=5), parts.reset(seed=5)
    for _ in range(30):
        assert flat_observations.keys() == whole.keys()
        for agent in flat_observations:
            assert flat.observation_space(agent).contains(flat_observations[agent])
            by_hand = np.concatenate([np.ravel(whole[agent][name]) for name in LAYOUT])
            np.testing.assert_array_equal(flat_observations[agent], by_hand)
            np.testing.assert_array_equal(flat_observations[agent], spaces.flatten(space, whole[agent]))
        actions = {agent: rng.integers(parts.action_space(agent).nvec) for agent in parts.agents}
        if not actions:
            break
        (flat_observations, *others), (whole, *results) = flat.step(actions), parts.step(actions)
        assert others == results
    assert 1 <= len(flat.agents) < 4 or not flat.agents


def test_pettingzoos_own_tests_of_flat_observations():
    options: Any = {"num_uavs": 4, "drop_probability": 0.1, "observation": "flat"}
    parallel_api_test(uav.parallel_env("small", **options), num_cycles=150)
    parallel_seed_test(lambda: uav.parallel_env("small", **options), num_cycles=60)
    with warnings.catch_warnings():
        # `api_test` warns about MultiDiscrete actions as unusual.
        warnings.filterwarnings("ignore", message="Action space for each agent")
        api_test(uav.env("small", observation="flat"), num_cycles=120)


def test_spaces_of_two_agents_draw_for_themselves():
    for form in ("parts", "flat"):
        env = uav.parallel_env("small", observation=form)
        first, second = (env.observation_space(agent) for agent in env.possible_agents)
        first.seed(0)
        expected = spaces.flatten(first, first.sample())
        first.seed(0)
        second.sample()
        np.testing.assert_array_equal(spaces.flatten(first, first.sample()), expected)


def test_registered_with_pettingzoo_in_both_forms():
    single: Any = pettingzoo.make("parallel", "scrubjay/UAV-v0", preset="paper")
    assert single.config == UAVConfig.paper()
    assert pettingzoo.make("aec", "scrubjay/UAV-v0", num_uavs=3).possible_agents == [
        "uav_0",
        "uav_1",
        "uav_2",
    ]


def test_import_loads_nothing_heavy_and_may_be_repeated():
    code = (
        "import importlib, sys, scrubjay.envs.uav as uav\n"
        "importlib.reload(uav)\n"
        "uav.parallel_env('small').reset(seed=0)\n"
        "print([name for name in ('torch', 'ray', 'PIL', 'matplotlib') if name in sys.modules])\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def assert_equal_arrays(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        np.testing.assert_array_equal(left[name], right[name])


def test_state_of_the_environment_alone_knows_who_flies():
    env, other = (uav.parallel_env("small", num_uavs=4, drop_probability=0.2) for _ in range(2))
    env.reset(seed=5)
    act = {agent: np.array([1, 0, 2]) for agent in env.possible_agents}
    while len(env.agents) == 4:
        env.step(act)
    state = pickle.loads(pickle.dumps(env.get_state()))
    other.set_state(state)
    while env.agents:
        one, two = env.step(act), other.step(act)
        assert one[1:] == two[1:]
        np.testing.assert_array_equal(env.state(), other.state())
    assert_equal_arrays(env.reset()[0]["uav_0"], other.reset()[0]["uav_0"])


def test_results_and_states_are_copies():
    teams, twin = uav.teams(3, "small", max_steps=5), uav.teams(3, "small", max_steps=5)
    for each in (teams, twin):
        each.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(12):
        actions = rng.integers(0, teams.single_action_space.nvec, (3, 2, 3))
        modified_step, intact = teams.step(actions), twin.step(actions)
        np.testing.assert_array_equal(modified_step.rewards, intact.rewards)
        assert_equal_arrays(modified_step.observations, intact.observations)
        for values in (
            modified_step.observations,
            modified_step.final_observations,
            modified_step.infos,
            teams.get_state(),
        ):
            for array in values.values():
                if isinstance(array, np.ndarray):
                    array[...] = 0
        for array in modified_step:
            if isinstance(array, np.ndarray):
                array[...] = 0


@every_preset
def test_pictures_keep_their_size_and_change(preset):
    env = uav.parallel_env(preset, render_mode="rgb_array")
    env.reset(seed=0)
    frames: list[Any] = [env.render()]
    for _ in range(3):
        env.step({agent: np.array([1, 0, 1]) for agent in env.agents})
        frames.append(env.render())
    assert len({frame.shape for frame in frames}) == 1
    assert len({frame.tobytes() for frame in frames}) == 4
    assert uav.parallel_env(preset).render() is None


def test_wrong_use_is_refused_by_name():
    env = uav.parallel_env("small")
    with pytest.raises(ResetNeeded):
        env.step({})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="no action for uav_1"):
        env.step({"uav_0": [0, 0, 0]})
    with pytest.raises(ValueError, match="action of uav_1"):
        env.step({"uav_0": np.array([0, 0, 0]), "uav_1": np.array([5, 0, 0])})
    with pytest.raises(ValueError, match="render_mode='ascii'"):
        uav.parallel_env("small", render_mode="ascii")
    with pytest.raises(ResetNeeded):
        uav.parallel_env("small", render_mode="rgb_array").render()
    makers: list[Any] = [uav.parallel_env, uav.env, lambda **form: uav.teams(2, **form)]
    for make in makers:
        with pytest.raises(ValueError, match="observation='images': choose from 'parts', 'flat'"):
            make(observation="images")
    with pytest.raises(ValueError, match="num_envs=0"):
        uav.teams(0)
    teams = uav.teams(2)
    for call in (lambda: teams.step(np.zeros((2, 2, 3), dtype=int)), teams.get_state):
        with pytest.raises(ResetNeeded):
            call()
    teams.reset(seed=0)
    for actions in (np.zeros((2, 2)), np.zeros((2, 2, 3)), np.full((2, 2, 3), 2) + 3, np.full((2, 2, 3), -1)):
        with pytest.raises(ValueError, match="actions"):
            teams.step(actions)
    state = teams.get_state()
    with pytest.raises(ValueError, match="settings"):
        uav.teams(2, num_users=13).set_state(state)
    with pytest.raises(ValueError, match="expected"):
        uav.teams(3).set_state(state)
    with pytest.raises(ValueError, match="lacks 'channel'"):
        teams.set_state({name: values for name, values in state.items() if name != "channel"})
    with pytest.raises(ValueError, match="lacks 'agents'"):
        env.set_state({name: values for name, values in env.get_state().items() if name != "agents"})
