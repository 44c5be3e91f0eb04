"""Observations of UAVs and the global state for a centralized critic; all values lie in [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float32

from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.world import Rows, UAVWorld

MAX_BPS_HZ = 20.0
"""Spectral efficiency that is normalized to 1; larger values are clipped."""
_OWN = 11
_USER = 5
_NEIGHBOUR = 4
_BLOCK = 1 << 18  # numbers per block of `_build_users`; a block fits in the CPU cache


def observation_space(config: UAVConfig) -> spaces.Dict:
    """Return the observation space of one UAV; observations of dead UAVs are zero.

    N is `num_channels`, K is `num_users` and M is `num_uavs`. "(3: ...)" means that the entry has 3 numbers.

    =============== ========== ==========================================================================
    key             shape      meaning
    =============== ========== ==========================================================================
    own             [11 + N]   position (3: area and height range scaled to -1 .. 1; the height is -1
                               without `flight_3d`), last displacement (3: relative to the largest
                               possible), power and battery (fractions of the maximum; battery 1 if
                               unlimited), own spectral efficiency (relative to 20 bit/s/Hz), fraction
                               of users served, elapsed time (fraction of `max_steps`), sub-channel
                               (one-hot)
    users           [K, 5]     position relative to the UAV (2: in side lengths), spectral efficiency of
                               the user's link (relative to 20 bit/s/Hz), mean rate so far (-1 for zero, 0
                               for the mean over users, 1 for twice that or more), served by this UAV (0/1)
    users_mask      [K]        users within `sensing_radius_m`
    neighbours      [M, 4 + N] position relative to the UAV (3: in side lengths and height ranges), power,
                               sub-channel (one-hot)
    neighbours_mask [M]        other flying UAVs within `communication_radius_m`
    adjacency       [M]        neighbours_mask, with 1 also for the UAV itself
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
    """Return the flat observation space of one UAV: the concatenated parts of `observation_space`.

    The order is alphabetical, as in `gymnasium.spaces.flatten`: adjacency [M], neighbours
    [M (4 + N)], neighbours_mask [M], own [11 + N], users [5 K], users_mask [K], with M, N and K as in
    `observation_space`. `gymnasium.spaces.unflatten` restores the parts.
    """
    flat = spaces.flatten_space(observation_space(config))
    assert isinstance(flat, spaces.Box)
    return flat


def flatten_observations(parts: Mapping[str, np.ndarray]) -> Float32[np.ndarray, "rows M features"]:
    """Concatenate the parts of observations, each `[environments, UAVs, ...]`, into one array."""
    # Explicit sizes: reshape cannot infer -1 for zero rows.
    leaves = [leaf.reshape(*leaf.shape[:2], math.prod(leaf.shape[2:])) for _, leaf in sorted(parts.items())]
    return np.concatenate(leaves, axis=2, dtype=np.float32)


def state_space(config: UAVConfig) -> spaces.Box:
    """Return the space of `global_state`."""
    return _box(config.num_uavs * (1 + _OWN + config.num_channels) + config.num_users * 6)


def observe(world: UAVWorld, rows: Rows | slice) -> dict[str, np.ndarray]:
    """Return the observations of all UAVs in environments `rows`: new arrays `[environments, UAVs, ...]`."""
    alive = world.alive[rows]
    visible = _find_visible_users(world, rows)
    adjacency = _build_adjacency(world, rows)
    others = adjacency & ~np.eye(world.config.num_uavs, dtype=np.bool_)
    return {
        "own": _build_own(world, rows) * alive[..., None].astype(np.float32),
        "users": _build_users(world, rows, visible),
        "users_mask": visible.view(np.int8),
        "neighbours": _build_neighbours(world, rows, others),
        "neighbours_mask": others.view(np.int8),
        "adjacency": adjacency.view(np.int8),
    }


def global_state(world: UAVWorld, rows: Rows | slice) -> Float32[np.ndarray, "rows features"]:
    """Return the global state for a centralized critic.

    Features of each UAV: alive (0/1), then the features "own" of `observation_space`. Features of each user:
    position (2: area scaled to -1 .. 1), velocity (2: relative to the UAV speed), and spectral efficiency and
    mean rate as in "users" of `observation_space`.
    """
    config, alive = world.config, world.alive[rows]
    count = len(alive)
    uavs = np.concatenate(
        [alive[..., None].astype(np.float32), _build_own(world, rows) * alive[..., None]], axis=2
    )
    users = np.empty((count, config.num_users, 6), dtype=np.float32)
    users[..., :2] = world.user_position_m[rows] / np.float32(config.area_m / 2) - np.float32(1)
    velocity = world.user_velocity_m_s[rows] * np.float32(1 / config.max_speed_m_s)
    users[..., 2:4] = np.clip(velocity, -1, 1)
    users[..., 4] = _normalize_efficiency(world.efficiency[rows])
    users[..., 5] = _relative_mean_rate(world, rows)
    return np.concatenate([uavs.reshape(count, -1), users.reshape(count, -1)], axis=1)


def _build_own(world: UAVWorld, rows: Rows | slice) -> Float32[np.ndarray, "rows M features"]:
    config = world.config
    position, displacement = world.position_m[rows], world.displacement_m[rows]
    own = np.empty((*position.shape[:2], _OWN + config.num_channels), dtype=np.float32)
    own[..., :2] = position[..., :2] / np.float32(config.area_m / 2) - np.float32(1)
    floor = config.min_height_m if config.flight_3d else config.height_m
    own[..., 2] = (position[..., 2] - np.float32(floor)) / _height_span(config) * 2 - 1
    own[..., 3:5] = displacement[..., :2] / np.float32(config.max_speed_m_s * config.slot_s)
    own[..., 5] = displacement[..., 2] / np.float32(config.max_climb_m_s * config.slot_s)
    own[..., 6] = (world.power_level[rows] + 1) * np.float32(1 / config.power_levels)
    own[..., 7] = 1 if config.battery_j is None else world.battery_j[rows] / np.float32(config.battery_j)
    own[..., 8] = _normalize_efficiency(world.own_bps_hz[rows])
    own[..., 9] = world.load[rows] * np.float32(1 / config.num_users)
    own[..., 10] = (world.time[rows] * np.float32(1 / config.max_steps))[:, None]
    own[..., _OWN:] = world.channel[rows][..., None] == np.arange(config.num_channels)
    # Rounding can push a displacement slightly over its maximum, so clip.
    return np.minimum(np.maximum(own, -1, out=own), 1, out=own)


def _find_visible_users(world: UAVWorld, rows: Rows | slice) -> Bool[np.ndarray, "rows M K"]:
    radius = world.config.sensing_radius_m
    if radius is None:
        return np.repeat(world.alive[rows][..., None], world.config.num_users, axis=2)
    return (world.user_distance_m[rows] <= np.float32(radius)) & world.alive[rows][..., None]


def _build_users(
    world: UAVWorld, rows: Rows | slice, visible: np.ndarray
) -> Float32[np.ndarray, "rows M K features"]:
    config = world.config
    east, north = world.user_offset_m[:, rows]
    efficiency, mean_rate = _normalize_efficiency(world.efficiency[rows]), _relative_mean_rate(world, rows)
    # Comparing narrow integers is several times as fast; copying floats is twice as fast as copying booleans.
    narrow = np.int16 if config.num_uavs < 2**15 else np.int64
    association, uavs = (
        world.association[rows].astype(narrow),
        np.arange(config.num_uavs, dtype=narrow)[:, None],
    )
    users = np.empty((*visible.shape, _USER), dtype=np.float32)
    block = max(1, _BLOCK // math.prod(users.shape[1:]))
    for first in range(0, len(users), block):
        some = slice(first, first + block)
        visible_float, out = visible[some].astype(np.float32), users[some]
        scale = visible_float * _reciprocal(config.area_m)
        # Write one feature at a time over contiguous users: numpy is slow if the innermost axis is short.
        np.multiply(east[some], scale, out=out[..., 0])
        np.multiply(north[some], scale, out=out[..., 1])
        np.multiply(efficiency[some, None], visible_float, out=out[..., 2])
        np.multiply(mean_rate[some, None], visible_float, out=out[..., 3])
        out[..., 4] = ((association[some, None] == uavs) & visible[some]).astype(np.float32)
    return users


def _build_adjacency(world: UAVWorld, rows: Rows | slice) -> Bool[np.ndarray, "rows M M"]:
    radius = world.config.communication_radius_m
    if radius is None:
        alive = world.alive[rows]
        return alive[:, :, None] & alive[:, None, :]
    return world.uav_within(radius, rows)


def _build_neighbours(
    world: UAVWorld, rows: Rows | slice, others: np.ndarray
) -> Float32[np.ndarray, "rows M M features"]:
    config = world.config
    mask = others.astype(np.float32)
    scale = mask * _reciprocal(config.area_m)
    east, north, up = world.uav_offset_m[:, rows]
    neighbours = np.empty((*others.shape, _NEIGHBOUR + config.num_channels), dtype=np.float32)
    np.multiply(east, scale, out=neighbours[..., 0])
    np.multiply(north, scale, out=neighbours[..., 1])
    np.multiply(up / _height_span(config), mask, out=neighbours[..., 2])
    power = (world.power_level[rows] + 1).astype(np.float32) * np.float32(1 / config.power_levels)
    np.multiply(power[:, None], mask, out=neighbours[..., 3])
    for channel in range(config.num_channels):
        uses = (world.channel[rows] == channel).astype(np.float32)
        np.multiply(uses[:, None], mask, out=neighbours[..., _NEIGHBOUR + channel])
    return neighbours


def _reciprocal(length_m: float) -> np.float32:
    """Return 1 / `length_m` rounded down, so that `length_m` times the result never exceeds 1."""
    return np.nextafter(np.float32(1 / length_m), np.float32(0))


def _height_span(config: UAVConfig) -> np.float32:
    """Return the scale that normalizes heights; 1 if all heights are equal."""
    return np.float32(config.max_height_m - config.min_height_m if config.flight_3d else 1) or np.float32(1)


def _relative_mean_rate(world: UAVWorld, rows: Rows | slice) -> Float32[np.ndarray, "rows K"]:
    total = world.rate_sum_bps[rows]
    mean = total.mean(axis=1, keepdims=True)
    relative = total / np.maximum(mean, np.float32(1e-6)) - 1
    return np.minimum(relative, 1) * (mean > 0).astype(np.float32)


def _normalize_efficiency(efficiency: np.ndarray) -> np.ndarray:
    return np.minimum(efficiency * np.float32(1 / MAX_BPS_HZ), 1)


def _box(*shape: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, shape, np.float32)
