"""Hypothesis strategy for small scenarios with all options."""

from __future__ import annotations

from hypothesis import strategies as st

from scrubjay.envs.uav.config import UAVConfig


@st.composite
def configs(draw, **overrides):
    uavs = draw(st.integers(1, 6))
    users = draw(st.integers(1, 20))
    values = {
        "num_uavs": uavs,
        "min_uavs": draw(st.none() | st.integers(1, uavs)),
        "drop_probability": draw(st.sampled_from([0.0, 0.05])),
        "num_users": users,
        "max_steps": draw(st.integers(2, 12)),
        "area_m": draw(st.sampled_from([200.0, 1000.0])),
        "directions": draw(st.sampled_from([4, 8])),
        "flight_3d": draw(st.booleans()),
        "min_distance_m": draw(st.sampled_from([0.0, 60.0])),
        "user_mobility": draw(st.sampled_from(["static", "waypoint", "gauss_markov"])),
        "hot_spots": draw(st.integers(0, min(users, 3))),
        "environment": draw(st.sampled_from(["suburban", "urban", "dense_urban", "highrise"])),
        "num_channels": draw(st.integers(1, 3)),
        "power_levels": draw(st.integers(1, 3)),
        "battery_j": draw(st.sampled_from([None, 1500.0])),
        "sensing_radius_m": draw(st.sampled_from([None, 150.0])),
        "communication_radius_m": draw(st.sampled_from([None, 150.0])),
        "reward": draw(st.sampled_from(["individual", "team"])),
        "fairness": draw(st.sampled_from(["none", "std", "jain"])),
    }
    return UAVConfig(**(values | overrides))


def random_actions(teams, rng):
    return rng.integers(0, teams.single_action_space.nvec, (*teams.world.alive.shape, 3))
