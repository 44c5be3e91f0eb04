"""Validation of `UAVConfig` and the three presets."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.envs import uav
from scrubjay.envs.uav.config import PRESETS, UAVConfig, resolve_config
from scrubjay.envs.uav.world import move_table_m


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_uavs": 0}, "num_uavs=0"),
        ({"num_uavs": True}, "num_uavs=True"),
        ({"num_users": 2.5}, "num_users=2.5"),
        ({"min_uavs": 3}, "min_uavs=3"),
        ({"directions": 6}, "directions=6"),
        ({"environment": "forest"}, "environment='forest'"),
        ({"user_mobility": "swim"}, "user_mobility='swim'"),
        ({"hot_spots": 13}, "hot_spots=13"),
        ({"drop_probability": 1.5}, "drop_probability=1.5"),
        ({"area_m": -1.0}, "area_m=-1.0"),
        ({"area_m": "wide"}, "area_m='wide'"),
        ({"noise_dbm_per_hz": float("nan")}, "noise_dbm_per_hz=nan"),
        ({"battery_j": 0.0}, "battery_j=0.0"),
        ({"flight_3d": True, "height_m": 200.0}, "height_m=200.0"),
        ({"max_speed_m_s": 600.0}, "max_speed_m_s=600.0"),
        ({"num_uavs": 10**6}, "num_uavs=1000000: expected at most 256"),
        ({"num_users": 10**9}, "num_users=1000000000: expected at most 4096"),
        ({"num_channels": 10**9}, "num_channels=1000000000: expected at most 256"),
        ({"max_steps": 10**15}, "expected at most 10000"),
        ({"num_uav": 3}, "did you mean 'num_uavs'"),
    ],
)
def test_wrong_scenarios_are_refused_by_name(overrides, message):
    with pytest.raises(ValueError, match=message):
        uav.parallel_env("small", **overrides)


def test_unknown_presets_are_refused_by_name():
    with pytest.raises(ValueError, match="preset 'tiny': choose from small, paper, city"):
        uav.teams(2, "tiny")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_found_by_name_and_changed_by_field(name):
    preset = PRESETS[name]()
    assert resolve_config(name) == resolve_config(preset) == preset
    config = resolve_config(name, num_users=7, hot_spots=0)
    assert config == dataclasses.replace(preset, num_users=7, hot_spots=0)


@given(directions=st.sampled_from([4, 8]), flight_3d=st.booleans())
def test_moves_are_as_many_as_the_table_has(directions, flight_3d):
    config = UAVConfig(directions=directions, flight_3d=flight_3d)
    assert config.num_moves == len(move_table_m(config)) == (1 + directions) * (3 if flight_3d else 1)


# Minimum and maximum height are validated only with `flight_3d`.
NUMBERS = [
    field.name
    for field in dataclasses.fields(UAVConfig)
    if field.type == "float" and field.name not in ("min_height_m", "max_height_m")
]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, True, "1", None])
def test_every_number_must_be_one(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        UAVConfig(**{field: value})
