"""Mobility of users and propulsion power."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs.random_streams import RowStreams
from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.mobility import UserMotion, init_users, move_users
from scrubjay.envs.uav.world import DISC_AREA_M2, propulsion_power_w

ROWS = np.arange(200)


def simulate_users(config, steps):
    """Yield the motion of users at the start and after each of `steps` steps."""
    streams = RowStreams(len(ROWS), np.random.default_rng(0))
    users = init_users(config, streams, ROWS)
    yield UserMotion(users.position_m, users.velocity_m_s, users.goal.copy(), users.hot_spot_m)
    for _ in range(steps):
        move_users(config, streams, ROWS, users)
        yield UserMotion(users.position_m, users.velocity_m_s, users.goal.copy(), users.hot_spot_m)


def test_static_users_do_not_move():
    start, *rest = simulate_users(UAVConfig(user_mobility="static"), 3)
    assert all((users.position_m == start.position_m).all() for users in rest)


@pytest.mark.parametrize("hot_spots", [0, 3])
def test_waypoints_are_walked_to_straight_at_constant_speed_and_then_replaced(hot_spots):
    config = UAVConfig(user_mobility="waypoint", user_speed_m_s=5.0, hot_spots=hot_spots)
    moments = list(simulate_users(config, 60))
    num_replaced = 0
    for before, after in itertools.pairwise(moments):
        way = np.linalg.norm(before.goal - before.position_m, axis=2)
        distance = np.linalg.norm(after.position_m - before.position_m, axis=2)
        going = way > 10.001
        np.testing.assert_allclose(distance[going], 10.0, rtol=1e-4)
        left = np.linalg.norm(before.goal - after.position_m, axis=2)
        np.testing.assert_allclose((way - left)[going], 10.0, rtol=1e-3)
        has_arrived = way < 9.999
        np.testing.assert_array_equal(after.position_m[has_arrived], before.goal[has_arrived])
        is_new_goal = (after.goal != before.goal).any(axis=2)
        assert (is_new_goal[has_arrived]).all()
        assert not is_new_goal[going].any()
        num_replaced += is_new_goal.sum()
    assert num_replaced > 100


def test_gauss_markov_has_the_mean_spread_and_memory_it_is_given():
    # Wide area, so that no user comes near the border.
    config = UAVConfig(
        user_mobility="gauss_markov",
        area_m=1e5,
        hot_spots=1,
        user_speed_m_s=3.0,
        gauss_markov_std_m_s=2.0,
        gauss_markov_memory=0.6,
        num_users=40,
    )
    moments = list(simulate_users(config, 40))
    excess = np.stack([(users.velocity_m_s - users.goal)[..., 0] for users in moments[20:]])
    assert abs(excess.mean()) < 0.05
    assert excess.std() == pytest.approx(2.0, rel=0.02)
    assert (excess[1:] * excess[:-1]).mean() / excess.var() == pytest.approx(0.6, abs=0.02)
    np.testing.assert_allclose(np.linalg.norm(moments[0].goal, axis=2), 3.0, rtol=1e-5)
    assert (moments[0].goal == moments[0].goal[:, :1]).all()
    ahead = moments[1].position_m - moments[0].position_m
    np.testing.assert_allclose(ahead, 2.0 * moments[1].velocity_m_s, atol=0.02)


@settings(max_examples=20, deadline=None)
@given(
    mobility=st.sampled_from(["waypoint", "gauss_markov"]),
    speed=st.floats(0, 90),
    hot_spots=st.integers(0, 3),
    memory=st.floats(0, 1),
)
def test_nobody_leaves_the_area_and_the_border_turns_back(mobility, speed, hot_spots, memory):
    config = UAVConfig(
        area_m=200.0,
        user_mobility=mobility,
        user_speed_m_s=speed,
        hot_spots=hot_spots,
        hot_spot_std_m=150.0,
        gauss_markov_memory=memory,
    )
    for users in simulate_users(config, 8):
        assert np.isfinite(users.position_m).all()
        assert ((users.position_m >= 0) & (users.position_m <= 200)).all()


def test_velocity_turns_at_the_border_and_nowhere_else():
    config = UAVConfig(
        area_m=300.0, user_mobility="gauss_markov", gauss_markov_std_m_s=0.0, gauss_markov_memory=0.0
    )
    for before, after in itertools.pairwise(simulate_users(config, 40)):
        straight = before.position_m + 2 * before.goal
        outside = (straight < 0) | (straight > 300)
        np.testing.assert_array_equal(after.goal, np.where(outside, -before.goal, before.goal))
        np.testing.assert_array_equal(after.velocity_m_s, after.goal)
        reflection = 300 - np.abs(300 - np.abs(straight.astype(float)))
        np.testing.assert_allclose(after.position_m, reflection, atol=1e-3)


def test_crowds_are_of_equal_size_and_as_wide_as_said():
    config = UAVConfig(num_users=60, hot_spots=3, hot_spot_std_m=30.0, area_m=4000.0)
    users = next(simulate_users(config, 0))
    around = users.position_m.reshape(len(ROWS), 20, 3, 2) - users.hot_spot_m[:, None]
    assert around.std() == pytest.approx(30.0, rel=0.02)
    assert np.abs(around.mean(axis=1)).mean() < 10.0


def test_normals_are_normal_and_uniforms_uniform():
    streams = RowStreams(100, np.random.default_rng(3))
    normal = streams.normals(np.arange(100), 2001)
    assert normal.shape == (100, 2001)
    assert normal.dtype == np.float32
    assert abs(normal.mean()) < 0.01
    assert normal.std() == pytest.approx(1.0, abs=0.01)
    # 4.55 % lie beyond two standard deviations. Pairs come from one random word and must be uncorrelated.
    assert (np.abs(normal) > 2).mean() == pytest.approx(0.0455, abs=0.002)
    assert abs(np.corrcoef(normal[:, :1000].ravel(), normal[:, 1001:].ravel())[0, 1]) < 0.01
    uniform = streams.uniforms(np.arange(100), 2000)
    assert (uniform >= 0).all()
    assert (uniform < 1).all()
    np.testing.assert_allclose(np.histogram(uniform, 10, (0, 1))[0] / uniform.size, 0.1, atol=0.004)


def test_hovering_costs_blades_and_lift_and_slow_flight_less():
    assert propulsion_power_w(0.0) == pytest.approx(39.04 + 79.07)
    speeds = np.linspace(0, 40, 401)
    power = propulsion_power_w(speeds)
    cheapest = speeds[power.argmin()]
    assert 10 < cheapest < 25
    assert (np.diff(power[: power.argmin()]) < 0).all()
    assert (np.diff(power[power.argmin() :]) > 0).all()
    # The published formula cancels at high speed, so compare at a low speed.
    induced_w = 79.07 * np.sqrt(np.sqrt(1 + 5.0**4 / (4 * 3.6**4)) - 5.0**2 / (2 * 3.6**2))
    parasite_w = 0.5 * 0.012 * 1.225 * 0.05 * DISC_AREA_M2 * 5.0**3
    assert propulsion_power_w(5.0) == pytest.approx(39.04 * (1 + 3 * 25 / 120**2) + induced_w + parasite_w)


def test_climbing_costs_the_weight_lifted_and_sinking_gives_nothing_back():
    # Momentum theory: the power that holds a weight is the weight times the induced speed.
    level, up, down = propulsion_power_w(np.zeros(3), np.array([0.0, 2.0, -2.0]))
    assert (up - level) / 2.0 == pytest.approx(15.97, abs=0.01)
    assert down == level
