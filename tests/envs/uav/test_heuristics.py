from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs.uav import teams
from scrubjay.envs.uav.channel import max_coverage_elevation_deg
from scrubjay.envs.uav.heuristics import HEURISTICS, assign_channels, k_means, match_centres


def run_episode(name, env, seed=0, steps=None):
    """Run one episode; return the mean sum rate and the actions of all UAVs."""
    act = HEURISTICS[name](0)
    observations, alive = env.reset(seed=seed)
    start, rates, actions = np.ones(env.num_envs, dtype=bool), [], []
    for _ in range(steps or env.config.max_steps):
        actions.append(act(env, observations, alive, start))
        step = env.step(actions[-1])
        rates.append(step.infos["sum_rate_bps"].mean())
        observations, alive, start = step.observations, step.alive, step.dones
    return np.mean(rates), np.stack(actions)


@pytest.fixture(scope="module")
def random_rate():
    return run_episode("random", teams(32, "small"))[0]


@pytest.mark.parametrize("name", ["static", "follow"])
def test_heuristics_beat_random(name, random_rate):
    assert run_episode(name, teams(32, "small"))[0] > 1.8 * random_rate


@pytest.mark.parametrize("name", list(HEURISTICS))
@pytest.mark.parametrize("preset", ["small", "city"])
def test_same_seeds_same_actions_all_of_them_allowed(name, preset):
    changes: dict[str, Any] = {"drop_probability": 0.05} if preset == "city" else {}
    runs = [run_episode(name, teams(3, preset, **changes), seed=7, steps=30)[1] for _ in range(2)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] < teams(1, preset).single_action_space.nvec).all()
    assert (runs[0] >= 0).all()
    other = run_episode(name, teams(3, preset, **changes), seed=8, steps=30)[1]
    # `random` uses its own seed, so its actions differ only through the alive mask.
    assert name == "random" or (other != runs[0]).any()


@pytest.mark.parametrize("name", ["static", "follow"])
def test_the_dead_do_nothing_and_matter_to_nobody(name):
    all_actions = []
    for place in (0.0, 900.0):
        env = teams(4, "small", num_uavs=3)
        observations, _ = env.reset(seed=1)
        env.world.alive[:, 1] = False
        env.world.position_m[:, 1, :2] = place
        actions = HEURISTICS[name](0)(env, observations, env.world.alive, np.ones(4, dtype=bool))
        assert not actions[:, 1].any()
        all_actions.append(actions)
    np.testing.assert_array_equal(all_actions[0], all_actions[1])
    nobody = np.zeros((4, 3), dtype=bool)
    env.world.alive[:] = False
    assert not HEURISTICS[name](0)(env, observations, nobody, np.ones(4, dtype=bool)).any()


def test_static_stays_where_k_means_put_it():
    env = teams(8, "small", user_mobility="static", max_steps=100)
    _, actions = run_episode("static", env, steps=60)
    assert not actions[-10:, ..., 0].any()  # everybody hovers
    users, uavs = env.world.user_position_m.astype(float), env.world.position_m[..., :2].astype(float)
    centres = k_means(users, env.world.alive, np.random.default_rng(1))
    stride = env.config.max_speed_m_s * env.config.slot_s
    for row in range(8):
        pairs = [np.linalg.norm(uavs[row][list(order)] - centres[row], axis=1) for order in ([0, 1], [1, 0])]
        assert min(pair.max() for pair in pairs) <= stride * math.sqrt(0.5) + 1


def test_follow_keeps_up_with_its_users():
    env = teams(8, "small", num_uavs=1, hot_spots=1, min_distance_m=0)
    run_episode("follow", env, steps=49)
    mean = env.world.user_position_m.mean(axis=1)
    assert np.linalg.norm(env.world.position_m[:, 0, :2] - mean, axis=1).max() < 60


@pytest.mark.parametrize("name", ["static", "follow"])
def test_in_three_dimensions_uavs_go_to_the_height_of_widest_coverage(name):
    env = teams(
        4,
        "small",
        num_uavs=1,
        hot_spots=1,
        flight_3d=True,
        min_height_m=10.0,
        max_height_m=400.0,
        user_mobility="static",
        max_steps=200,
    )
    run_episode(name, env, steps=150)
    users, uav = env.world.user_position_m, env.world.position_m[:, 0]
    distance = np.linalg.norm(users - users.mean(axis=1, keepdims=True), axis=2).mean(axis=1)
    best = distance * math.tan(math.radians(max_coverage_elevation_deg("urban")))
    np.testing.assert_allclose(uav[:, 2], best, atol=10)


def first_moves(name, uavs, users, **changes):
    """Return the first actions for given positions in meters, in one square kilometer with moves of 40 m."""
    env = teams(1, "small", num_uavs=len(uavs), num_users=len(users), hot_spots=0, **changes)
    observations, alive = env.reset(seed=0)
    env.world.position_m[0, :, :2], env.world.user_position_m[0] = uavs, users
    return HEURISTICS[name](0)(env, observations, alive, np.ones(1, dtype=bool))[0]


@pytest.mark.parametrize("name", ["static", "follow"])
def test_nobody_leaves_the_area_to_come_nearer(name):
    moves = first_moves(name, [[975, 500], [500, 15]], [[1000, 500], [1000, 500], [500, 0], [500, 0]])[:, 0]
    assert moves.tolist() == [0, 0]
    assert first_moves(name, [[955, 500], [500, 25]], [[1000, 500], [500, 0]])[0, 0] == 1


def test_a_uav_without_users_of_its_own_goes_to_the_one_worst_off():
    users = [[800, 800], [820, 800], [800, 520]]
    hover, east, north, *_ = range(5)
    assert first_moves("follow", [[800, 700], [100, 520]], users)[:, 0].tolist() == [hover, east]
    assert first_moves("follow", [[800, 700], [800, 100]], users)[:, 0].tolist() == [hover, north]
    assert first_moves("follow", [[100, 200]], [[100, 900]])[0, 0] == north
    assert first_moves("follow", [[100, 200]], [[900, 200]])[0, 0] == east


def test_power_is_full_but_at_random():
    uavs, users = np.random.default_rng(0).uniform(0, 1000, (2, 60, 2))
    for name in ("static", "follow"):
        assert (first_moves(name, uavs, users, power_levels=4)[:, 2] == 3).all()
    assert set(first_moves("random", uavs, users, power_levels=4)[:, 2]) == {0, 1, 2, 3}


def test_channels_by_hand():
    line = np.zeros((1, 4, 3))
    line[0, :, 0] = [0, 10, 100, 12]
    flying = np.ones((1, 4), dtype=bool)
    assert assign_channels(line, flying, 2).tolist() == [[0, 1, 0, 0]]
    assert assign_channels(line, flying, 4).tolist() == [[0, 1, 2, 3]]
    flying[0, 0] = False
    assert assign_channels(line, flying, 2).tolist() == [[0, 1, 0, 0]]
    assert assign_channels(line, flying, 1).tolist() == [[0, 0, 0, 0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_each_uav_keeps_farthest_from_those_before_it(uavs, channels, seed):
    rng = np.random.default_rng(seed)
    position, alive = rng.uniform(size=(3, uavs, 3)), rng.random((3, uavs)) < 0.8
    colours = assign_channels(position, alive, channels)
    for row, uav in zip(*np.nonzero(alive), strict=True):
        before = [j for j in range(uav) if alive[row, j]]
        gaps = [
            min(
                [
                    np.linalg.norm(position[row, j] - position[row, uav])
                    for j in before
                    if colours[row, j] == c
                ]
                + [9]
            )
            for c in range(channels)
        ]
        assert gaps[colours[row, uav]] == max(gaps)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_k_means_finds_crowds_that_are_apart(crowds, seed):
    rng = np.random.default_rng(seed)
    corners = np.array(list(itertools.product((0, 1000), repeat=2)))[:crowds]
    users = corners[np.arange(12) % crowds] + rng.normal(size=(2, 12, 2))
    alive = np.zeros((2, 5), dtype=bool)
    alive[:, 1 : 1 + crowds] = True
    centres = k_means(users, alive, rng)
    means = np.stack([users[:, crowd::crowds].mean(axis=1) for crowd in range(crowds)], axis=1)
    distance = np.linalg.norm(centres[:, 1 : 1 + crowds, None] - means[:, None], axis=-1)
    assert distance.min(axis=2).max() < 1e-9
    assert distance.min(axis=1).max() < 1e-9


def test_k_means_of_fewer_places_than_uavs():
    users = np.zeros((1, 3, 2)) + 5
    centres = k_means(users, np.ones((1, 6), dtype=bool), np.random.default_rng(0))
    np.testing.assert_array_equal(centres, np.full((1, 6, 2), 5.0))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_nearest_pairs_are_matched_first(uavs, seed):
    rng = np.random.default_rng(seed)
    centres, position = rng.uniform(size=(2, uavs, 2)), rng.uniform(size=(2, uavs, 3))
    alive = rng.random((2, uavs)) < 0.7
    assigned_m = match_centres(centres, position, alive)
    for row in range(2):
        flying = np.flatnonzero(alive[row])
        pairs = sorted(
            (np.linalg.norm(position[row, uav, :2] - centres[row, centre]), uav, centre)
            for uav in flying
            for centre in flying
        )
        expected = {}
        for _, uav, centre in pairs:
            if uav not in expected and centre not in expected.values():
                expected[uav] = centre
        for uav in range(uavs):
            goal = centres[row, expected[uav]] if uav in expected else position[row, uav, :2]
            np.testing.assert_array_equal(assigned_m[row, uav], goal)
