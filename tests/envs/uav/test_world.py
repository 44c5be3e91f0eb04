"""Invariants of the downlink dynamics in every scenario."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs import uav
from scrubjay.envs.uav.channel import dbm_to_w, mean_path_loss_db
from scrubjay.envs.uav.config import PRESETS, UAVConfig
from scrubjay.envs.uav.world import move_table_m

from .scenarios import configs, random_actions

ROWS = 3


def play_steps(config, seed, steps):
    """Yield the environments, the alive mask before the step and the result of each random step."""
    teams, rng = uav.teams(ROWS, config), np.random.default_rng(seed)
    teams.reset(seed=seed)
    for _ in range(steps):
        before = teams.world.alive.copy()
        yield teams, before, teams.step(random_actions(teams, rng))


every_config = given(config=configs(), seed=st.integers(0, 2**32))


few = settings(max_examples=25, deadline=None)


@few
@every_config
def test_rates_powers_and_shares_stay_within_their_bounds(config, seed):
    for teams, _, _ in play_steps(config, seed, 6):
        world = teams.world
        assert (world.rate_bps >= 0).all()
        assert np.isfinite(world.rate_bps).all()
        assert (world.power_w >= 0).all()
        assert (world.power_w <= dbm_to_w(config.max_power_dbm) * (1 + 1e-6)).all()
        assert not world.power_w[~world.alive].any()
        assert ((world.user_position_m >= 0) & (world.user_position_m <= config.area_m)).all()
        assert (world.position_m[..., :2] >= 0).all()
        assert (world.position_m[..., :2] <= config.area_m).all()
        speed = np.linalg.norm(world.displacement_m[..., :2], axis=-1) / config.slot_s
        assert (speed <= config.max_speed_m_s * (1 + 1e-4)).all()


@few
@given(config=configs(drop_probability=0.0, battery_j=None), seed=st.integers(0, 2**32))
def test_a_sub_channels_time_is_handed_out_once_or_not_at_all(config, seed):
    for teams, _, _ in play_steps(config, seed, 4):
        world = teams.world
        share = world.rate_bps / config.bandwidth_hz / np.maximum(world.efficiency, 1e-30)
        is_served = world.association[:, None, :] == np.arange(config.num_uavs)[:, None]
        used = (share[:, None, :] * is_served).sum(axis=2)
        np.testing.assert_allclose(used, world.load > 0, atol=1e-5)
        assert (world.load.sum(axis=1) == config.num_users).all()
        assert not world.load[~world.alive].any()


@few
@every_config
def test_the_dead_see_nothing_do_nothing_and_earn_nothing(config, seed):
    for teams, before, step in play_steps(config, seed, 8):
        assert not step.rewards[~before].any()
        assert not step.terminated[~before].any()
        assert (step.terminated <= before).all()
        going = ~step.dones
        assert (teams.world.alive[going] == (before & ~step.terminated)[going]).all()
        for values in step.observations.values():
            assert not values[~step.alive].any()
        for values in step.final_observations.values():
            assert not values[~step.final_alive].any()


@few
@given(config=configs(num_uavs=2, min_uavs=None), seed=st.integers(0, 2**32))
def test_actions_of_dead_uavs_do_not_matter(config, seed):
    def play(noise):
        teams, rng = uav.teams(ROWS, config), np.random.default_rng(seed)
        teams.reset(seed=seed)
        teams.world.alive[:, 0] = False
        result = []
        for _ in range(config.max_steps - 1):
            actions = random_actions(teams, rng)
            actions[:, 0] = noise
            step = teams.step(actions)
            if step.dones.any():
                break
            result.append(np.concatenate([step.rewards.ravel(), teams.world.rate_bps.ravel()]))
        return np.array(result)

    np.testing.assert_array_equal(play(0), play(-77))


@few
@every_config
def test_observations_and_state_lie_in_their_spaces(config, seed):
    env, rng = uav.parallel_env(config), np.random.default_rng(seed)
    observations, _ = env.reset(seed=seed)
    while env.agents:
        for agent in env.agents:
            assert env.observation_space(agent).contains(observations[agent])
        assert env.state_space.contains(env.state())
        actions = {agent: rng.integers(0, env.action_space(agent).nvec) for agent in env.agents}
        observations = env.step(actions)[0]


@few
@given(config=configs(min_distance_m=150.0), seed=st.integers(0, 2**32))
def test_collisions_are_symmetric_and_counted_once(config, seed):
    for teams, before, step in play_steps(config, seed, 4):
        if step.dones.any():
            continue
        world = teams.world
        for row in range(ROWS):
            partners = np.zeros(config.num_uavs, dtype=int)
            for i in range(config.num_uavs):
                for j in range(i):
                    apart = np.linalg.norm(world.position_m[row, i] - world.position_m[row, j])
                    if before[row, i] and before[row, j] and apart <= config.min_distance_m:
                        partners[[i, j]] += 1
            np.testing.assert_array_equal(world.collisions[row], partners)
            assert step.infos["collisions"][row] * 2 == partners.sum()


@few
@given(
    # Wide area, so that no two UAVs reach the same corner; ties in gain go to the first UAV.
    config=configs(drop_probability=0.0, min_distance_m=100.0, max_steps=12, area_m=1000.0),
    seed=st.integers(0, 2**32),
)
def test_permuting_uavs_permutes_everything(config, seed):
    rng = np.random.default_rng(seed)
    order = rng.permutation(config.num_uavs)
    left, right = uav.teams(ROWS, config), uav.teams(ROWS, config)
    left.reset(seed=seed)
    state = left.get_state()
    back = np.argsort(order)
    for name in (
        "alive",
        "position_m",
        "displacement_m",
        "channel",
        "power_level",
        "battery_j",
        "collisions",
    ):
        state[name] = state[name][:, order]
    for name in ("load", "own_bps_hz"):
        state[name] = state[name][:, order]
    state["association"] = back[state["association"]]
    right.set_state(state)
    for _ in range(5):
        actions = random_actions(left, rng)
        one, other = left.step(actions), right.step(actions[:, order])
        if one.dones.any():
            break
        np.testing.assert_allclose(one.rewards[:, order], other.rewards, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(one.terminated[:, order], other.terminated)
        for name in one.infos:
            np.testing.assert_allclose(one.infos[name], other.infos[name], rtol=1e-5)
        for name, values in one.observations.items():
            expected = values[:, order]
            if name in ("neighbours", "neighbours_mask", "adjacency"):
                expected = expected[:, :, order]
            np.testing.assert_allclose(expected, other.observations[name], rtol=1e-4, atol=1e-5)


def test_one_step_by_hand():
    """Two UAVs, three users, one shared sub-channel: all values computed from the definitions in float64."""
    config = UAVConfig(
        num_uavs=2,
        num_users=3,
        hot_spots=0,
        user_mobility="static",
        num_channels=2,
        power_levels=2,
        fairness="std",
        fairness_weight=0.7,
        boundary_penalty=0.3,
    )
    teams = uav.teams(1, config)
    teams.reset(seed=0)
    world = teams.world
    world.position_m[0] = [[200, 300, 100], [20, 700, 100]]
    world.user_position_m[0] = [[250, 300], [300, 350], [100, 900]]
    # UAV 0 north at half power, UAV 1 west into the border at full power, both on sub-channel 1
    step = teams.step(np.array([[[2, 1, 0], [3, 1, 1]]]))
    np.testing.assert_allclose(world.position_m[0], [[200, 340, 100], [0, 700, 100]], atol=1e-4)
    power = np.array([0.5, 1.0]) * 10e-3
    ground = np.linalg.norm(world.position_m[0, :, None, :2].astype(float) - world.user_position_m[0], axis=2)
    gain = 10 ** (-mean_path_loss_db(ground, 100.0, 2.4e9, "urban") / 10)
    received_w = power[:, None] * gain
    noise = 10 ** (-170 / 10) * 1e-3 * 180e3
    server = np.array([0, 0, 1])
    signal = received_w[server, np.arange(3)]
    efficiency = np.log2(1 + signal / (received_w.sum(axis=0) - signal + noise))
    rate = 180e3 * efficiency / np.array([2, 2, 1])
    np.testing.assert_array_equal(world.association[0], server)
    np.testing.assert_allclose(world.rate_bps[0], rate, rtol=1e-5)
    unfair = 0.7 * (rate * 3 / (180e3 * 2)).std()
    own = np.array([efficiency[:2].mean(), efficiency[2]])
    np.testing.assert_allclose(step.rewards[0], 0.1 * (own - unfair) - [0, 0.3], rtol=1e-5)
    np.testing.assert_allclose(step.infos["sum_rate_bps"], rate.sum(), rtol=1e-5)
    np.testing.assert_allclose(step.infos["fifth_percentile_rate_bps"], np.percentile(rate, 5), rtol=1e-5)
    np.testing.assert_allclose(step.infos["jain"], rate.sum() ** 2 / (3 * (rate**2).sum()), rtol=1e-5)


def test_apart_in_frequency_is_better_than_together():
    config = UAVConfig()
    rates = []
    for channel in (0, 1):
        teams = uav.teams(64, config)
        teams.reset(seed=0)
        actions = np.zeros((64, 2, 3), dtype=int)
        actions[:, 1, 1] = channel
        rates.append(teams.step(actions).infos["sum_rate_bps"])
    assert (rates[1] > rates[0]).all()


def test_team_reward_is_the_mean_of_the_individual_ones():
    results = []
    for reward in ("individual", "team"):
        config = UAVConfig.paper()
        teams = uav.teams(8, dataclasses.replace(config, reward=reward, min_uavs=1))
        teams.reset(seed=1)
        results.append((teams.world.alive.copy(), teams.step(np.ones((8, 4, 3), dtype=int)).rewards))
    (alive, individual), (_, team) = results
    mean = individual.sum(axis=1) / alive.sum(axis=1)
    np.testing.assert_allclose(team, mean[:, None] * alive, rtol=1e-12)
    assert len(set(alive.sum(axis=1))) > 1


def test_jain_multiplies_and_no_fairness_ignores():
    results = {}
    for fairness in ("none", "jain"):
        teams = uav.teams(8, UAVConfig(fairness=fairness, boundary_penalty=0.0))
        teams.reset(seed=1)
        results[fairness] = teams.step(np.zeros((8, 2, 3), dtype=int))
    expected = results["none"].rewards * results["none"].infos["jain"][:, None]
    np.testing.assert_allclose(results["jain"].rewards, expected, rtol=1e-6)


def test_an_empty_battery_ends_the_flight_and_hovering_costs_more_than_cruising():
    config = UAVConfig(battery_j=1000.0, max_steps=40)
    ends = []
    for move in (0, 1):
        teams = uav.teams(1, config)
        teams.reset(seed=0)
        steps = 0
        while True:
            steps += 1
            step = teams.step(np.full((1, 2, 3), [move, 0, 0]))
            if step.dones[0]:
                break
        assert step.terminated.all()
        assert not step.truncated.any()
        assert step.rewards.any()
        ends.append(steps)
    # 118.11 W against 58 W: the fifth and the ninth slot of 2 s end 1000 J
    assert ends == [5, 9]


def test_the_number_of_uavs_varies_and_failures_are_as_frequent_as_said():
    teams = uav.teams(400, UAVConfig(num_uavs=5, min_uavs=2, drop_probability=0.1))
    _, alive = teams.reset(seed=0)
    counts = np.bincount(alive.sum(axis=1), minlength=6)
    assert not counts[:2].any()
    assert (counts[2:] > 60).all()
    step = teams.step(np.zeros((400, 5, 3), dtype=int))
    assert 0.07 < step.terminated[alive].mean() < 0.13


@pytest.mark.parametrize("directions", [4, 8])
def test_moves_keep_the_speed_limit_and_come_in_opposites(directions):
    config = UAVConfig(directions=directions, flight_3d=True)
    moves = move_table_m(config).reshape(3, 1 + directions, 3)
    assert config.num_moves == 3 * (1 + directions)
    np.testing.assert_allclose(np.linalg.norm(moves[:, 1:, :2], axis=2), 40.0, rtol=1e-6)
    assert not moves[:, 0, :2].any()
    np.testing.assert_array_equal(moves[..., 2], np.array([0, 10, -10])[:, None] * np.ones(1 + directions))
    np.testing.assert_allclose(
        moves[0, 1 : 1 + directions // 2, :2], -moves[0, 1 + directions // 2 :, :2], atol=1e-4
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_random_flight_is_worth_about_one_tenth_to_one(preset):
    teams, rng = uav.teams(16, preset), np.random.default_rng(0)
    teams.reset(seed=0)
    mean = np.mean([teams.step(random_actions(teams, rng)).rewards.mean() for _ in range(30)])
    assert 0.01 < mean < 1


def test_everything_that_depends_on_the_scenario_is_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        teams = uav.teams(4, "city", num_users=1, hot_spots=0, num_uavs=1, drop_probability=0.5)
        teams.reset(seed=0)
        for _ in range(20):
            teams.step(np.zeros((4, 1, 3), dtype=int))
