from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.envs.uav import channel

NAMES = list(channel.SURROUNDINGS)
SCENARIOS = ["UMa-AV", "UMi-AV", "RMa-AV"]
ANGLES = np.array([10, 30, 45, 60, 90.0])
DISTANCES = np.array([0, 100, 300, 500, 1000.0])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("suburban", [0.6494, 0.9999, 1, 1, 1]),
        ("urban", [0.0997, 0.7310, 0.9677, 0.9970, 1]),
        ("dense_urban", [0.0618, 0.3728, 0.7558, 0.9416, 0.9977]),
        ("highrise", [0.0092, 0.0438, 0.1321, 0.3357, 0.8478]),
    ],
)
def test_line_of_sight_table(environment, expected):
    assert channel.los_probability(ANGLES, environment).round(4).tolist() == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("suburban", [80.15, 83.16, 90.44, 99.21, 116.35]),
        ("urban", [81.05, 84.67, 104.36, 111.91, 119.09]),
        ("dense_urban", [81.69, 89.88, 109.99, 115.68, 122.24]),
        ("highrise", [87.17, 112.87, 123.48, 127.87, 133.88]),
    ],
)
def test_mean_path_loss_table(environment, expected):
    assert channel.mean_path_loss_db(DISTANCES, 100, 2.4e9, environment).round(2).tolist() == expected


def test_free_space_table():
    loss = channel.free_space_path_loss_db(np.hypot(DISTANCES, 100), 2.4e9)
    assert loss.round(2).tolist() == [80.05, 83.06, 90.05, 94.20, 100.09]


@pytest.mark.parametrize("environment", NAMES)
def test_angles_are_degrees_from_end_to_end(environment):
    """With radians, a UAV right overhead would have no line of sight."""
    a, b, los_db, nlos_db = channel.SURROUNDINGS[environment]
    overhead = 1 / (1 + a * math.exp(-b * (90 - a)))
    assert channel.los_probability(90.0, environment) == pytest.approx(overhead)
    assert channel.elevation_deg(100.0, 100.0) == pytest.approx(45)
    excess = channel.mean_path_loss_db(0, 100, 2e9, environment) - channel.free_space_path_loss_db(100.0, 2e9)
    assert excess == pytest.approx(overhead * los_db + (1 - overhead) * nlos_db)
    assert excess < (los_db + nlos_db) / 2


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.floats(0, 1e4),
    st.floats(1, 1e4),
    st.floats(1, 1e3),
    st.sampled_from([9e8, 2e9, 6e9]),
)
def test_loss_grows_outwards_and_sight_upwards(environment, ground, further, height, frequency):
    near, far = channel.mean_path_loss_db(
        np.array([ground, ground + further]), height, frequency, environment
    )
    assert far > near
    assert near > channel.free_space_path_loss_db(math.hypot(ground, height), frequency)
    low, high = channel.los_probability(
        channel.elevation_deg(ground + 1, np.array([height, height + further])), environment
    )
    assert 0 < low <= high < 1 + 1e-15
    gain = channel.mean_gain(ground, height, frequency, environment)
    assert gain == pytest.approx(channel.db_to_linear(-near), rel=1e-12)


@pytest.mark.parametrize("environment", NAMES)
def test_gain_keeps_single_precision(environment):
    ground = np.linspace(0, 5000, 1001)
    single = channel.mean_gain(ground.astype(np.float32), np.float32(100), 2e9, environment)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, channel.mean_gain(ground, 100.0, 2e9, environment), rtol=3e-5)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [("suburban", 20.34), ("urban", 42.44), ("dense_urban", 54.62), ("highrise", 75.52)],
)
def test_best_elevation(environment, expected):
    """A grid search for the widest cell, based on the path loss alone, gives the same angle."""
    best = channel.max_coverage_elevation_deg(environment)
    assert round(best, 2) == expected
    angles = np.radians(np.arange(0.5, 89.5, 0.01))
    for allowed_db, frequency in ((100.0, 2e9), (115.0, 5e9)):
        low, high = np.full_like(angles, 1e-6), np.full_like(angles, 1e6)
        for _ in range(100):
            radius = np.sqrt(low * high)
            too_far = (
                channel.mean_path_loss_db(radius, radius * np.tan(angles), frequency, environment)
                > allowed_db
            )
            low, high = np.where(too_far, low, radius), np.where(too_far, radius, high)
        assert np.degrees(angles[np.argmax(low)]) == pytest.approx(best, abs=0.01)


def test_sinr_against_a_plain_loop():
    rng = np.random.default_rng(0)
    gain, power = rng.exponential(size=(3, 4, 5)), rng.exponential(size=(3, 4))
    power[:, 1] = 0
    sub_channel = rng.integers(2, size=(3, 4))
    result = channel.sinr(power, gain, sub_channel, 0.1)
    for row, uav, user in np.ndindex(3, 4, 5):
        others = [j for j in range(4) if j != uav and sub_channel[row, j] == sub_channel[row, uav]]
        interference = 0.1 + sum(power[row, j] * gain[row, j, user] for j in others)
        assert result[row, uav, user] == pytest.approx(power[row, uav] * gain[row, uav, user] / interference)


def test_a_weak_rival_beside_a_strong_signal_counts():
    gain = np.array([[[1.0], [1e-9]]], dtype=np.float32)
    power = np.ones((1, 2), dtype=np.float32)
    alone = channel.sinr(power, gain, np.array([[0, 1]]), 1e-12)[0, 0, 0]
    shared = channel.sinr(power, gain, np.array([[0, 0]]), 1e-12)[0, 0, 0]
    assert alone == pytest.approx(1e12, rel=1e-5)
    assert shared == pytest.approx(1 / 1.001e-9, rel=1e-5)


def test_closed_forms_of_rates_and_units():
    np.testing.assert_allclose(channel.rate_bps(np.array([0, 1, 3, 1023.0]), 1e6), [0, 1e6, 2e6, 1e7])
    assert channel.rate_bps(1e-14, 1e6) == pytest.approx(1e-8 / math.log(2), rel=1e-12)
    assert channel.rate_bps(np.ones(2, np.float32), 1e6).dtype == np.float32
    assert channel.dbm_to_w(30.0) == pytest.approx(1)
    assert channel.dbm_to_w(-170.0) == pytest.approx(1e-20)
    assert channel.w_to_dbm(0.1) == pytest.approx(20)
    assert channel.linear_to_db(channel.db_to_linear(-37.5)) == pytest.approx(-37.5)
    assert channel.noise_w(1e6, -174) == pytest.approx(10**-14.4)


def test_36777_closed_forms():
    """Path loss by hand for each scenario: height 100 m, distance 900 m, 2 GHz, default mast height."""
    carrier, fortieth = 20 * math.log10(2), 20 * math.log10(40 * math.pi * 2 / 3)
    for scenario, mast, los_db, nlos_db in (
        ("UMa-AV", 25, lambda d: 28 + 22 * d + carrier, lambda d: -17.5 + 32 * d + fortieth),
        ("UMi-AV", 10, lambda d: 30.9 + 21.25 * d + carrier, lambda d: 32.4 + 28 * d + carrier),
        ("RMa-AV", 35, lambda d: 20.3 * d + fortieth, lambda d: -12 + 24.4 * d + fortieth),
    ):
        decades = math.log10(math.hypot(900, 100 - mast))
        assert channel.tr36777_path_loss_db(900.0, 100.0, 2e9, scenario, True) == pytest.approx(
            los_db(decades)
        )
        # Without line of sight RMa-AV and UMi-AV are never below the loss with one.
        expected = nlos_db(decades) if scenario == "UMa-AV" else max(los_db(decades), nlos_db(decades))
        assert channel.tr36777_path_loss_db(900.0, 100.0, 2e9, scenario, False) == pytest.approx(expected)
    user_link_db = channel.tr36777_path_loss_db(300.0, 101.5, 2e9, "UMa-AV", True, mast_height_m=1.5)
    assert user_link_db == pytest.approx(28 + 22 * math.log10(math.hypot(300, 100)) + carrier)


def test_36777_line_of_sight_closed_forms():
    for scenario, height, near, scale in (
        ("UMa-AV", 100.0, 220, 4800),
        ("UMi-AV", 100.0, 155.16, 467.01),
        ("RMa-AV", 40.0, 1350.8 * math.log10(40) - 1602, 15021 * math.log10(40) - 16053),
        ("RMa-AV", 10.5, 18, 1000),
    ):
        far = near + 500.0
        expected = near / far + math.exp(-far / scale) * (1 - near / far)
        probability = channel.tr36777_los_probability(np.array([0, near, far]), height, scenario)
        np.testing.assert_allclose(probability, [1, 1, expected], rtol=1e-12)
    for scenario, height in (("UMa-AV", 101.0), ("RMa-AV", 41.0)):
        assert channel.tr36777_los_probability(1e4, height, scenario) == 1


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SCENARIOS), st.floats(0, 4000), st.floats(1, 4000), st.floats(22.6, 100))
def test_36777_orders(scenario, ground, further, height):
    both = np.array([ground, ground + further])
    los_db, nlos_db = (
        channel.tr36777_path_loss_db(both, height, 2e9, scenario, flag) for flag in (True, False)
    )
    assert los_db[0] <= los_db[1]
    assert nlos_db[0] <= nlos_db[1]
    probability = channel.tr36777_los_probability(both, height, scenario)
    assert 0 <= probability[1] <= probability[0] <= 1
    mixed_db = channel.tr36777_path_loss_db(both, height, 2e9, scenario, np.array([True, False]))
    assert mixed_db.tolist() == [los_db[0], nlos_db[1]]


def test_36777_shadowing():
    assert channel.tr36777_shadowing_db(100.0, "UMa-AV", True) == pytest.approx(4.64 * math.exp(-0.66))
    assert channel.tr36777_shadowing_db(50.0, "UMi-AV", True) == pytest.approx(5 * math.exp(-0.5))
    assert channel.tr36777_shadowing_db(200.0, "UMi-AV", True) == 2
    assert channel.tr36777_shadowing_db(100.0, "RMa-AV", True) == pytest.approx(4.2 * math.exp(-0.46))
    nlos_db = [float(channel.tr36777_shadowing_db(100.0, scenario, False)) for scenario in SCENARIOS]
    assert nlos_db == [6, 8, 6]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: channel.los_probability(45, "village"), "village.*suburban"),
        (lambda: channel.los_probability(np.array([10, 91.0]), "urban"), "91.*degrees"),
        (lambda: channel.los_probability(np.array([math.nan]), "urban"), "nan"),
        (lambda: channel.mean_path_loss_db(-1, 100, 2e9, "urban"), "-1.*at least 0"),
        (lambda: channel.mean_gain(1, 0, 2e9, "urban"), "height_m=0"),
        (lambda: channel.mean_path_loss_db(1, 100, 0, "urban"), "frequency_hz=0"),
        (lambda: channel.max_coverage_elevation_deg("moon"), "moon"),
        (lambda: channel.sinr(np.ones((1, 1)), np.ones((1, 1, 1)), np.zeros((1, 1), int), 0), "noise_w=0"),
        (lambda: channel.tr36777_los_probability(1, 22.5, "UMa-AV"), "22.5"),
        (lambda: channel.tr36777_shadowing_db(301, "RMa-AV", True), "301"),
        (lambda: channel.tr36777_path_loss_db(1, 100, 2e9, "UMa", True), "'UMa'.*UMa-AV"),
        (lambda: channel.tr36777_path_loss_db(-1, 100, 2e9, "UMa-AV", True), "-1"),
        (lambda: channel.tr36777_path_loss_db(1, 100, -1, "UMa-AV", True), "frequency_hz=-1"),
    ],
)
def test_errors_name_the_bad_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
