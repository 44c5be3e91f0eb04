"""Observations, compared value by value with loops over UAVs and users."""

from __future__ import annotations

import numpy as np
import pytest

from scrubjay.envs import uav
from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.observation import global_state, observe

CONFIG = UAVConfig(
    num_uavs=4,
    num_users=9,
    num_channels=3,
    power_levels=4,
    flight_3d=True,
    directions=8,
    battery_j=5000.0,
    drop_probability=0.03,
    sensing_radius_m=400.0,
    communication_radius_m=500.0,
)


def run_teams(config, steps, rows=6):
    """Return teams after `steps` random steps, and the user rates of each step."""
    teams, rng = uav.teams(rows, config), np.random.default_rng(4)
    teams.reset(seed=4)
    rates = []
    for _ in range(steps):
        step = teams.step(rng.integers(0, teams.single_action_space.nvec, (rows, config.num_uavs, 3)))
        assert not step.dones.any()
        rates.append(teams.world.rate_bps.copy())
    return teams, rates


@pytest.fixture(scope="module")
def rollout():
    teams, rates = run_teams(CONFIG, 7)
    assert not teams.world.alive.all()
    return teams.world, observe(teams.world, slice(None)), np.mean(rates, axis=0)


def normalize_efficiency(efficiency):
    return min(efficiency / 20, 1)


def test_own(rollout):
    world, observed, _ = rollout
    for row, agent in np.argwhere(world.alive):
        mine = world.association[row] == agent
        x, y, z = world.position_m[row, agent]
        expected = [
            x / 500 - 1,
            y / 500 - 1,
            (z - 50) / 50 - 1,
            *(world.displacement_m[row, agent] / [40, 40, 10]),
            (world.power_level[row, agent] + 1) / 4,
            world.battery_j[row, agent] / 5000,
            normalize_efficiency(world.efficiency[row][mine].mean()) if mine.any() else 0,
            mine.sum() / 9,
            7 / 50,
            *np.eye(3)[world.channel[row, agent]],
        ]
        np.testing.assert_allclose(observed["own"][row, agent], expected, atol=1e-5)


def test_users(rollout):
    world, observed, mean_rate = rollout
    for row, agent in np.argwhere(world.alive):
        for user in range(CONFIG.num_users):
            offset = world.user_position_m[row, user] - world.position_m[row, agent, :2]
            near = np.hypot(*offset) <= 400
            assert observed["users_mask"][row, agent, user] == near
            expected = [
                *(offset / 1000),
                normalize_efficiency(world.efficiency[row, user]),
                min(mean_rate[row, user] / mean_rate[row].mean() - 1, 1),
                world.association[row, user] == agent,
            ]
            np.testing.assert_allclose(
                observed["users"][row, agent, user], np.multiply(expected, near), atol=1e-5
            )
    assert 0 < observed["users_mask"].mean() < 1


def test_neighbours(rollout):
    world, observed, _ = rollout
    for row, agent in np.argwhere(world.alive):
        for other in range(CONFIG.num_uavs):
            offset = world.position_m[row, other] - world.position_m[row, agent]
            is_connected = world.alive[row, other] and np.linalg.norm(offset) <= 500
            assert observed["adjacency"][row, agent, other] == is_connected
            assert observed["neighbours_mask"][row, agent, other] == (is_connected and other != agent)
            expected = [
                *(offset / [1000, 1000, 100]),
                (world.power_level[row, other] + 1) / 4,
                *np.eye(3)[world.channel[row, other]],
            ]
            np.testing.assert_allclose(
                observed["neighbours"][row, agent, other],
                np.multiply(expected, is_connected and other != agent),
                atol=1e-5,
            )
    others = observed["neighbours_mask"].mean()
    assert 0 < others < 1


def test_global_state(rollout):
    world, observed, mean_rate = rollout
    state = global_state(world, slice(None))
    uavs = state[:, : 4 * 15].reshape(-1, 4, 15)
    np.testing.assert_array_equal(uavs[..., 0], world.alive)
    np.testing.assert_array_equal(uavs[..., 1:], observed["own"])
    users = state[:, 4 * 15 :].reshape(-1, 9, 6)
    np.testing.assert_allclose(users[..., :2], world.user_position_m / 500 - 1, atol=1e-5)
    np.testing.assert_allclose(users[..., 2:4], np.clip(world.user_velocity_m_s / 20, -1, 1), atol=1e-5)
    np.testing.assert_allclose(users[..., 4], np.minimum(world.efficiency / 20, 1), atol=1e-5)
    relative = mean_rate / mean_rate.mean(axis=1, keepdims=True) - 1
    np.testing.assert_allclose(users[..., 5], np.minimum(relative, 1), atol=1e-5)


def test_observations_of_some_rows_equal_those_of_all_rows(rollout):
    world, observed, _ = rollout
    rows = np.array([1, 4])
    for name, values in observe(world, rows).items():
        np.testing.assert_array_equal(values, observed[name][rows])
    np.testing.assert_array_equal(global_state(world, rows), global_state(world, slice(None))[rows])


def test_without_radii_in_2d_and_at_the_start_of_an_episode():
    teams = uav.teams(3, "small", max_steps=2)
    first, _ = teams.reset(seed=0)
    actions = np.zeros((3, 2, 3), dtype=int)
    teams.step(actions)
    again = teams.step(actions).observations
    for observed in (first, again):
        assert observed["users_mask"].all()
        assert observed["adjacency"].all()
        assert (observed["neighbours_mask"] == 1 - np.eye(2)).all()
        # height and climbing, then battery and time
        np.testing.assert_array_equal(observed["own"][..., [2, 5, 7, 10]], np.tile([-1, 0, 1, 0], (3, 2, 1)))
        assert not observed["users"][..., 3].any()
    assert (first["users"] != again["users"]).any()
