"""How users on the ground are spread and walk; every row draws from its own stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from scrubjay.envs.streams import RowStreams
from scrubjay.envs.uav.config import UAVConfig

Points = Float32[np.ndarray, "rows points 2"]
Rows = Int64[np.ndarray, " rows"]

# Crowds begin away from the border, as shares of the area's side.
_INNER, _OUTER = 0.15, 0.85


@dataclass
class Walk:
    """Where users are and what they are up to: a waypoint's target, or the mean velocity of Gauss-Markov."""

    position_m: Points
    velocity_m_s: Points
    goal: Points
    hot_spot_m: Points


def begin_walk(config: UAVConfig, streams: RowStreams, rows: Rows) -> Walk:
    """Return users at the start of an episode in `rows`; user k belongs to crowd k modulo `hot_spots`."""
    hot_spots = np.zeros((len(rows), config.hot_spots, 2), dtype=np.float32)
    if config.hot_spots:
        drawn = streams.uniforms(rows, 2 * config.hot_spots).reshape(hot_spots.shape)
        hot_spots = np.float32(config.area_m) * (drawn * np.float32(_OUTER - _INNER) + np.float32(_INNER))
    position = _places(config, streams, rows, hot_spots)
    velocity = np.zeros_like(position)
    goal = np.zeros_like(position)
    if config.user_mobility == "waypoint":
        goal = _places(config, streams, rows, hot_spots)
    elif config.user_mobility == "gauss_markov":
        groups = config.hot_spots or config.num_users
        angle = streams.uniforms(rows, groups) * np.float32(2 * np.pi)
        mean = np.stack([np.cos(angle), np.sin(angle)], axis=2) * np.float32(config.user_speed_m_s)
        goal = mean[:, np.arange(config.num_users) % groups]
        velocity = goal.copy()
    return Walk(position, velocity, goal, hot_spots)


def walk(config: UAVConfig, streams: RowStreams, rows: Rows, users: Walk) -> None:
    """Let all users walk for one slot, in place; they stay inside the area.

    Waypoint: straight at `user_speed_m_s`, no pause. Source: Johnson, Maltz 1996 (there with pauses).
    Gauss-Markov: v' = a v + (1 - a) mean + sqrt(1 - a^2) std w with w standard normal; at the border
    position, velocity and mean are mirrored. Source: Liang, Haas 1999; Camp, Boleng, Davies 2002.
    """
    if config.user_mobility == "waypoint":
        _walk_to_waypoints(config, streams, rows, users)
    elif config.user_mobility == "gauss_markov":
        _walk_gauss_markov(config, streams, rows, users)


def _walk_to_waypoints(config: UAVConfig, streams: RowStreams, rows: Rows, users: Walk) -> None:
    slot = np.float32(config.slot_s)
    way = users.goal - users.position_m
    distance = np.sqrt(way[..., 0] ** 2 + way[..., 1] ** 2)
    stride = np.float32(config.user_speed_m_s) * slot
    arrived = distance <= stride
    # Of both coordinates: numpy is slow where it has to spread numbers over an axis of two.
    part = np.repeat(stride / np.maximum(distance, max(stride, np.float32(1e-6))), 2).reshape(way.shape)
    there = np.repeat(arrived, 2).reshape(way.shape)
    users.velocity_m_s = way * (part / slot)
    users.position_m = np.where(there, users.goal, users.position_m + way * part)
    some = np.flatnonzero(arrived.any(axis=1))
    if some.size:
        # All users of such a row draw, so that a row's stream does not depend on other rows.
        places = _places(config, streams, rows[some], users.hot_spot_m[some])
        users.goal[some] = np.where(arrived[some][..., None], places, users.goal[some])


def _walk_gauss_markov(config: UAVConfig, streams: RowStreams, rows: Rows, users: Walk) -> None:
    memory = config.gauss_markov_memory
    noise = streams.normals(rows, 2 * config.num_users).reshape(users.position_m.shape)
    velocity = np.float32(memory) * users.velocity_m_s
    velocity += np.float32(1 - memory) * users.goal
    velocity += np.float32((1 - memory * memory) ** 0.5 * config.gauss_markov_std_m_s) * noise
    position = users.position_m + np.float32(config.slot_s) * velocity
    outside = (position < 0) | (position > np.float32(config.area_m))
    turned = np.where(outside, np.float32(-1), np.float32(1))
    users.position_m = _mirror(position, config.area_m)
    users.velocity_m_s = velocity * turned
    users.goal = users.goal * turned


def _places(config: UAVConfig, streams: RowStreams, rows: Rows, hot_spots: Points) -> Points:
    shape = (len(rows), config.num_users, 2)
    if not config.hot_spots:
        return streams.uniforms(rows, 2 * config.num_users).reshape(shape) * np.float32(config.area_m)
    crowd = np.arange(config.num_users) % config.hot_spots
    spread = streams.normals(rows, 2 * config.num_users).reshape(shape) * np.float32(config.hot_spot_std_m)
    return _mirror(hot_spots[:, crowd] + spread, config.area_m)


def _mirror(position: Points, area_m: float) -> Points:
    """Return points beyond the border mirrored inside; farther out than the area is wide: on its edge."""
    area = np.float32(area_m)
    # Not by |area - |area - |x|||, which would round the places of those inside.
    inside = np.where(position < 0, -position, np.where(position > area, 2 * area - position, position))
    return np.minimum(np.maximum(inside, 0), area)
