"""What UAVs see, and what a central critic may see; all numbers from -1 to 1."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float32

from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.world import Rows, UAVWorld

MOST_BPS_HZ = 20.0
"""Spectral efficiency that is shown as 1; more is cut."""
_OWN = 11
_USER = 5
_NEIGHBOUR = 4
_BLOCK = 1 << 18  # numbers that are written feature by feature before the next: they stay in the cache


def observation_space(config: UAVConfig) -> spaces.Dict:
    """Return the space of one UAV's observation; dead UAVs see zeros.

    =============== ========== ==========================================================================
    leaf            shape      meaning
    =============== ========== ==========================================================================
    own             [11 + N]   place (3: the area and the heights are -1 .. 1; in 2-D -1), last
                               displacement (3: of the largest), power, battery (1 where it lasts), own
                               spectral efficiency (of 20 bit/s/Hz), share of all users it serves, time
                               passed, sub-channel (one-hot)
    users           [K, 5]     place relative to the UAV (2: of the area's side), spectral efficiency of
                               the user's link (of 20 bit/s/Hz), mean rate so far relative to the mean
                               user's (-1 none, 0 the mean's, 1 twice or more), whether this UAV serves it
    users_mask      [K]        users within `sensing_radius_m`
    neighbours      [M, 4 + N] place relative to the UAV (3: of the area's side, and of the heights'
                               span), power, sub-channel (one-hot)
    neighbours_mask [M]        other flying UAVs within `communication_radius_m`
    adjacency       [M]        the same, and the UAV itself
    =============== ========== ==========================================================================
    """
    users, uavs = config.num_users, config.num_uavs
    return spaces.Dict(
        {
            "own": _box(_OWN + config.num_channels),
            "users": _box(users, _USER),
            "users_mask": spaces.MultiBinary(users),
            "neighbours": _box(uavs, _NEIGHBOUR + config.num_channels),
            "neighbours_mask": spaces.MultiBinary(uavs),
            "adjacency": spaces.MultiBinary(uavs),
        }
    )


def flat_space(config: UAVConfig) -> spaces.Box:
    """Return the space of one UAV's observation as one vector: `observation_space`'s leaves, flattened.

    They stand in the order of their names, as `gymnasium.spaces.flatten` puts them: adjacency [M], neighbours
    [M (4 + N)], neighbours_mask [M], own [11 + N], users [5 K], users_mask [K]; `unflatten` of
    `observation_space` gives the parts back.
    """
    flat = spaces.flatten_space(observation_space(config))
    assert isinstance(flat, spaces.Box)
    return flat


def flattened(parts: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "rows M features"]:
    """Return leaves `[rows, M, ...]` of `observe` as elements of `flat_space`."""
    # Sizes by hand, since -1 fits anything where there are no rows.
    leaves = [leaf.reshape(*leaf.shape[:2], math.prod(leaf.shape[2:])) for _, leaf in sorted(parts.items())]
    return np.concatenate(leaves, axis=2, dtype=np.float32)


def state_space(config: UAVConfig) -> spaces.Box:
    """Return the space of `global_state`."""
    return _box(config.num_uavs * (1 + _OWN + config.num_channels) + config.num_users * 6)


def observe(world: UAVWorld, rows: Rows | slice) -> dict[str, np.ndarray]:
    """Return all UAVs' observations in `rows`, leaves `[rows, M, ...]` in fresh arrays."""
    alive = world.alive[rows]
    seen = _seen(world, rows)
    adjacency = _adjacency(world, rows)
    others = adjacency & ~np.eye(world.config.num_uavs, dtype=np.bool_)
    return {
        "own": _own(world, rows) * alive[..., None].astype(np.float32),
        "users": _users(world, rows, seen),
        "users_mask": seen.view(np.int8),
        "neighbours": _neighbours(world, rows, others),
        "neighbours_mask": others.view(np.int8),
        "adjacency": adjacency.view(np.int8),
    }


def global_state(world: UAVWorld, rows: Rows | slice) -> Float32[np.ndarray, "rows features"]:
    """Return everything at once, for a central critic.

    Of every UAV whether it flies and its `own`, then of every user place (2: the area is -1 .. 1), velocity
    (2: of the UAVs' speed), spectral efficiency and mean rate as in `users`.
    """
    config, alive = world.config, world.alive[rows]
    count = len(alive)
    uavs = np.concatenate([alive[..., None].astype(np.float32), _own(world, rows) * alive[..., None]], axis=2)
    users = np.empty((count, config.num_users, 6), dtype=np.float32)
    users[..., :2] = world.user_position_m[rows] / np.float32(config.area_m / 2) - np.float32(1)
    velocity = world.user_velocity_m_s[rows] * np.float32(1 / config.max_speed_m_s)
    users[..., 2:4] = np.clip(velocity, -1, 1)
    users[..., 4] = _shown(world.efficiency[rows])
    users[..., 5] = _relative_mean_rate(world, rows)
    return np.concatenate([uavs.reshape(count, -1), users.reshape(count, -1)], axis=1)


def _own(world: UAVWorld, rows: Rows | slice) -> Float32[np.ndarray, "rows M features"]:
    config = world.config
    position, moved = world.position_m[rows], world.displacement_m[rows]
    own = np.empty((*position.shape[:2], _OWN + config.num_channels), dtype=np.float32)
    own[..., :2] = position[..., :2] / np.float32(config.area_m / 2) - np.float32(1)
    floor = config.min_height_m if config.flight_3d else config.height_m
    own[..., 2] = (position[..., 2] - np.float32(floor)) / _height_span(config) * 2 - 1
    own[..., 3:5] = moved[..., :2] / np.float32(config.max_speed_m_s * config.slot_s)
    own[..., 5] = moved[..., 2] / np.float32(config.max_climb_m_s * config.slot_s)
    own[..., 6] = (world.power_level[rows] + 1) * np.float32(1 / config.power_levels)
    own[..., 7] = 1 if config.battery_j is None else world.battery_j[rows] / np.float32(config.battery_j)
    own[..., 8] = _shown(world.own_bps_hz[rows])
    own[..., 9] = world.load[rows] * np.float32(1 / config.num_users)
    own[..., 10] = (world.time[rows] * np.float32(1 / config.max_steps))[:, None]
    own[..., _OWN:] = world.channel[rows][..., None] == np.arange(config.num_channels)
    # A displacement is a difference, and may be its largest and a rounding.
    return np.minimum(np.maximum(own, -1, out=own), 1, out=own)


def _seen(world: UAVWorld, rows: Rows | slice) -> Bool[np.ndarray, "rows M K"]:
    radius = world.config.sensing_radius_m
    if radius is None:
        return np.repeat(world.alive[rows][..., None], world.config.num_users, axis=2)
    return (world.user_distance_m[rows] <= np.float32(radius)) & world.alive[rows][..., None]


def _users(world: UAVWorld, rows: Rows | slice, seen: np.ndarray) -> Float32[np.ndarray, "rows M K features"]:
    config = world.config
    east, north = world.user_offset_m[:, rows]
    efficiency, mean_rate = _shown(world.efficiency[rows]), _relative_mean_rate(world, rows)
    # Narrow numbers are compared several times as fast, floats copied as fast again as truth values.
    narrow = np.int16 if config.num_uavs < 2**15 else np.int64
    association, uavs = (
        world.association[rows].astype(narrow),
        np.arange(config.num_uavs, dtype=narrow)[:, None],
    )
    users = np.empty((*seen.shape, _USER), dtype=np.float32)
    block = max(1, _BLOCK // math.prod(users.shape[1:]))
    for first in range(0, len(users), block):
        some = slice(first, first + block)
        shown, out = seen[some].astype(np.float32), users[some]
        scale = shown * _reciprocal(config.area_m)
        # Feature by feature over contiguous users, because numpy is slow where the innermost axis is short.
        np.multiply(east[some], scale, out=out[..., 0])
        np.multiply(north[some], scale, out=out[..., 1])
        np.multiply(efficiency[some, None], shown, out=out[..., 2])
        np.multiply(mean_rate[some, None], shown, out=out[..., 3])
        out[..., 4] = ((association[some, None] == uavs) & seen[some]).astype(np.float32)
    return users


def _adjacency(world: UAVWorld, rows: Rows | slice) -> Bool[np.ndarray, "rows M M"]:
    radius = world.config.communication_radius_m
    if radius is None:
        alive = world.alive[rows]
        return alive[:, :, None] & alive[:, None, :]
    return world.uav_within(radius, rows)


def _neighbours(
    world: UAVWorld, rows: Rows | slice, others: np.ndarray
) -> Float32[np.ndarray, "rows M M features"]:
    config = world.config
    heard = others.astype(np.float32)
    scale = heard * _reciprocal(config.area_m)
    east, north, up = world.uav_offset_m[:, rows]
    neighbours = np.empty((*others.shape, _NEIGHBOUR + config.num_channels), dtype=np.float32)
    np.multiply(east, scale, out=neighbours[..., 0])
    np.multiply(north, scale, out=neighbours[..., 1])
    np.multiply(up / _height_span(config), heard, out=neighbours[..., 2])
    power = (world.power_level[rows] + 1).astype(np.float32) * np.float32(1 / config.power_levels)
    np.multiply(power[:, None], heard, out=neighbours[..., 3])
    for channel in range(config.num_channels):
        uses = (world.channel[rows] == channel).astype(np.float32)
        np.multiply(uses[:, None], heard, out=neighbours[..., _NEIGHBOUR + channel])
    return neighbours


def _reciprocal(length_m: float) -> np.float32:
    """Return a number whose product with any part of the length is at most 1, rounding included."""
    return np.nextafter(np.float32(1 / length_m), np.float32(0))


def _height_span(config: UAVConfig) -> np.float32:
    """Return what heights are measured by; where they cannot differ, any number will do."""
    return np.float32(config.max_height_m - config.min_height_m if config.flight_3d else 1) or np.float32(1)


def _relative_mean_rate(world: UAVWorld, rows: Rows | slice) -> Float32[np.ndarray, "rows K"]:
    total = world.rate_sum_bps[rows]
    mean = total.mean(axis=1, keepdims=True)
    relative = total / np.maximum(mean, np.float32(1e-6)) - 1
    return np.minimum(relative, 1) * (mean > 0).astype(np.float32)


def _shown(efficiency: np.ndarray) -> np.ndarray:
    return np.minimum(efficiency * np.float32(1 / MOST_BPS_HZ), 1)


def _box(*shape: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, shape, np.float32)
