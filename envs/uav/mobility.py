"""Mobility models of ground users; each environment has its own random stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from scrubjay.envs.random_streams import RowStreams
from scrubjay.envs.uav.config import UAVConfig

Points = Float32[np.ndarray, "rows points 2"]
Rows = Int64[np.ndarray, " rows"]

# Initial crowd centers stay away from the border; bounds as fractions of the side length.
_INNER, _OUTER = 0.15, 0.85


@dataclass
class UserMotion:
    """Positions, velocities and goals of users; a goal is a waypoint or the Gauss-Markov mean velocity."""

    position_m: Points
    velocity_m_s: Points
    goal: Points
    hot_spot_m: Points


def init_users(config: UAVConfig, streams: RowStreams, rows: Rows) -> UserMotion:
    """Sample users for a new episode in `rows`; user k belongs to crowd k modulo `hot_spots`."""
    hot_spots = np.zeros((len(rows), config.hot_spots, 2), dtype=np.float32)
    if config.hot_spots:
        uniform = streams.uniforms(rows, 2 * config.hot_spots).reshape(hot_spots.shape)
        hot_spots = np.float32(config.area_m) * (uniform * np.float32(_OUTER - _INNER) + np.float32(_INNER))
    position = _sample_positions(config, streams, rows, hot_spots)
    velocity = np.zeros_like(position)
    goal = np.zeros_like(position)
    if config.user_mobility == "waypoint":
        goal = _sample_positions(config, streams, rows, hot_spots)
    elif config.user_mobility == "gauss_markov":
        groups = config.hot_spots or config.num_users
        angle = streams.uniforms(rows, groups) * np.float32(2 * np.pi)
        mean = np.stack([np.cos(angle), np.sin(angle)], axis=2) * np.float32(config.user_speed_m_s)
        goal = mean[:, np.arange(config.num_users) % groups]
        velocity = goal.copy()
    return UserMotion(position, velocity, goal, hot_spots)


def move_users(config: UAVConfig, streams: RowStreams, rows: Rows, users: UserMotion) -> None:
    """Move all users for one time step, in place; users stay inside the area.

    Waypoint: constant `user_speed_m_s`, no pauses. Source: Johnson, Maltz 1996 (with pauses).
    Gauss-Markov: the new velocity is a v + (1 - a) m + sqrt(1 - a^2) s w, with the old velocity v, the mean
    velocity m of the user, a = `gauss_markov_memory`, s = `gauss_markov_std_m_s` and standard normal noise w.
    Position, velocity and mean are reflected at the border. Source: Liang, Haas 1999; Camp, Boleng, Davies
    2002.
    """
    if config.user_mobility == "waypoint":
        _move_to_waypoints(config, streams, rows, users)
    elif config.user_mobility == "gauss_markov":
        _move_gauss_markov(config, streams, rows, users)


def _move_to_waypoints(config: UAVConfig, streams: RowStreams, rows: Rows, users: UserMotion) -> None:
    slot = np.float32(config.slot_s)
    way = users.goal - users.position_m
    distance = np.sqrt(way[..., 0] ** 2 + way[..., 1] ** 2)
    stride = np.float32(config.user_speed_m_s) * slot
    has_arrived = distance <= stride
    # Repeat for both coordinates: numpy broadcasts slowly over an axis of size two.
    part = np.repeat(stride / np.maximum(distance, max(stride, np.float32(1e-6))), 2).reshape(way.shape)
    has_arrived_xy = np.repeat(has_arrived, 2).reshape(way.shape)
    users.velocity_m_s = way * (part / slot)
    users.position_m = np.where(has_arrived_xy, users.goal, users.position_m + way * part)
    rows_to_resample = np.flatnonzero(has_arrived.any(axis=1))
    if rows_to_resample.size:
        # Sample for all users of such a row, so that its stream does not depend on other rows.
        places = _sample_positions(
            config, streams, rows[rows_to_resample], users.hot_spot_m[rows_to_resample]
        )
        users.goal[rows_to_resample] = np.where(
            has_arrived[rows_to_resample][..., None], places, users.goal[rows_to_resample]
        )


def _move_gauss_markov(config: UAVConfig, streams: RowStreams, rows: Rows, users: UserMotion) -> None:
    memory = config.gauss_markov_memory
    noise = streams.normals(rows, 2 * config.num_users).reshape(users.position_m.shape)
    velocity = np.float32(memory) * users.velocity_m_s
    velocity += np.float32(1 - memory) * users.goal
    velocity += np.float32((1 - memory * memory) ** 0.5 * config.gauss_markov_std_m_s) * noise
    position = users.position_m + np.float32(config.slot_s) * velocity
    outside = (position < 0) | (position > np.float32(config.area_m))
    sign = np.where(outside, np.float32(-1), np.float32(1))
    users.position_m = _mirror(position, config.area_m)
    users.velocity_m_s = velocity * sign
    users.goal = users.goal * sign


def _sample_positions(config: UAVConfig, streams: RowStreams, rows: Rows, hot_spots: Points) -> Points:
    shape = (len(rows), config.num_users, 2)
    if not config.hot_spots:
        return streams.uniforms(rows, 2 * config.num_users).reshape(shape) * np.float32(config.area_m)
    crowd = np.arange(config.num_users) % config.hot_spots
    spread = streams.normals(rows, 2 * config.num_users).reshape(shape) * np.float32(config.hot_spot_std_m)
    return _mirror(hot_spots[:, crowd] + spread, config.area_m)


def _mirror(position: Points, area_m: float) -> Points:
    """Reflect outside points at the border once, then clip the points that are still outside."""
    area = np.float32(area_m)
    # The formula |area - |area - |x||| would round positions that are already inside.
    inside = np.where(position < 0, -position, np.where(position > area, 2 * area - position, position))
    return np.minimum(np.maximum(inside, 0), area)
