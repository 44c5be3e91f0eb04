"""Heuristic baselines for the UAV downlink; they have access to the full state of the environment.

All heuristics except `random` share the choice of sub-channels and power:

- Sub-channels: greedy coloring in every step. UAVs choose in the order of their indices. Each UAV takes an
  unused sub-channel. If earlier UAVs use all sub-channels, the UAV takes the sub-channel whose nearest
  earlier UAV is farthest away. Ties go to the first sub-channel, counted from the UAV's index modulo the
  number of sub-channels.
- Power: always the highest level.

No heuristic avoids collisions. With `flight_3d`, the target height of a UAV is the mean ground distance of
its users times the tangent of `max_coverage_elevation_deg`, within the height limits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int64

from scrubjay.envs.uav.channel import max_coverage_elevation_deg
from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.world import UAVWorld, move_table_m

Actions = Int64[np.ndarray, "rows uavs 3"]
Positions = Float[np.ndarray, "rows uavs 3"]
Users = Float[np.ndarray, "rows users 2"]
AliveMask = Bool[np.ndarray, "rows uavs"]


class HasWorld(Protocol):
    """Protocol of environments that expose their `UAVWorld`."""

    world: UAVWorld


class Heuristic(ABC):
    """Policy of all UAVs; `seed` starts its random numbers."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(
        self,
        env: HasWorld,
        observations: Mapping[str, Any],
        alive: AliveMask,
        start: Bool[np.ndarray, " rows"],
    ) -> Actions:
        """Return the actions of all UAVs; dead UAVs get zeros."""
        return self._act(env.world, alive, start) * alive[..., None]

    @abstractmethod
    def _act(self, world: UAVWorld, alive: AliveMask, start: Bool[np.ndarray, " rows"]) -> Actions:
        """Return the actions of all UAVs; those of dead UAVs do not matter."""


class Random(Heuristic):
    """Uniformly random policy over moves, sub-channels and power levels."""

    def _act(self, world: UAVWorld, alive: AliveMask, start: Bool[np.ndarray, " rows"]) -> Actions:
        config = world.config
        choices = [config.num_moves, config.num_channels, config.power_levels]
        return self._rng.integers(choices, size=(*alive.shape, 3))


class Static(Heuristic):
    """Policy that flies to the k-means centers of the initial user positions and hovers there.

    There is one center per flying UAV. Centers are assigned greedily, the nearest UAV-center pair first.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self._goal_m = np.zeros((0, 0, 3))

    def _act(self, world: UAVWorld, alive: AliveMask, start: Bool[np.ndarray, " rows"]) -> Actions:
        if self._goal_m.shape != world.position_m.shape:
            self._goal_m = world.position_m.astype(float)
        rows = np.flatnonzero(start)
        if rows.size:
            users, position = world.user_position_m[rows].astype(float), world.position_m[rows].astype(float)
            centres = match_centres(k_means(users, alive[rows], self._rng), position, alive[rows])
            self._goal_m[rows] = _add_height(world.config, centres, users, alive[rows], position)
        return _build_actions(world, self._goal_m, alive)


class Follow(Heuristic):
    """Policy that assigns each user to the nearest flying UAV; UAVs fly to the mean position of their users.

    A UAV without users flies toward the user with the largest distance to its nearest flying UAV.
    """

    def _act(self, world: UAVWorld, alive: AliveMask, start: Bool[np.ndarray, " rows"]) -> Actions:
        users, position = world.user_position_m.astype(float), world.position_m.astype(float)
        square, nearest = _find_nearest(users, position[..., :2], alive)
        mean, count = _average_groups(users, nearest, alive.shape[1])
        worst = np.take_along_axis(users, square.argmax(axis=1)[:, None, None], axis=1)
        goal = np.where(count[..., None] > 0, mean, worst)
        return _build_actions(world, _add_height(world.config, goal, users, alive, position), alive)


HEURISTICS: dict[str, Callable[[int], Heuristic]] = {
    "random": Random,
    "static": Static,
    "follow": Follow,
}
"""Heuristics by name; each value takes a seed and returns the policy."""


def assign_channels(
    position_m: Positions, alive: AliveMask, num_channels: int
) -> Int64[np.ndarray, "rows uavs"]:
    """Assign sub-channels to UAVs by greedy coloring; dead UAVs are ignored and get 0."""
    rows, uavs = alive.shape
    between = np.linalg.norm(position_m[:, :, None] - position_m[:, None, :], axis=-1)
    channel, first = np.zeros((rows, uavs), dtype=np.int64), np.arange(num_channels)
    for uav in range(uavs):
        mine = alive[:, :uav, None] & (channel[:, :uav, None] == first)
        distance = np.where(mine, between[:, uav, :uav, None], np.inf).min(axis=1, initial=np.inf)
        order = (uav + first) % num_channels
        channel[:, uav] = order[distance[:, order].argmax(axis=1)]
    return channel * alive


def k_means(
    users_m: Users, alive: AliveMask, rng: np.random.Generator, restarts: int = 8, rounds: int = 20
) -> Float[np.ndarray, "rows uavs 2"]:
    """Compute a k-means center for every flying UAV: the best of several restarts of Lloyd's algorithm.

    Initial centers are user positions, sampled with probability proportional to the squared distance to the
    nearest center so far. Source: Arthur, Vassilvitskii 2007, "k-means++".
    """
    rows, uavs = alive.shape
    users, flies = np.tile(users_m, (restarts, 1, 1)), np.tile(alive, (restarts, 1))
    centres = np.zeros((restarts * rows, uavs, 2))
    square = np.full(users.shape[:2], np.inf)
    for uav in range(uavs):
        chance = np.where(np.isinf(square), 1.0, square).cumsum(axis=1)
        user_index = (chance <= rng.random((len(users), 1)) * chance[:, -1:]).sum(axis=1)
        user_index = np.minimum(user_index, users.shape[1] - 1)
        centres[:, uav] = users[np.arange(len(users)), user_index]
        distance = np.square(users - centres[:, None, uav]).sum(axis=-1)
        square = np.where(flies[:, uav, None], np.minimum(square, distance), square)
    for _ in range(rounds):
        mean, count = _average_groups(users, _find_nearest(users, centres, flies)[1], uavs)
        centres = np.where(count[..., None] > 0, mean, centres)
    inertia = _find_nearest(users, centres, flies)[0].sum(axis=1).reshape(restarts, rows)
    return centres.reshape(restarts, rows, uavs, 2)[inertia.argmin(axis=0), np.arange(rows)]


def match_centres(
    centres_m: Float[np.ndarray, "rows uavs 2"], position_m: Positions, alive: AliveMask
) -> Float[np.ndarray, "rows uavs 2"]:
    """Assign centers to UAVs greedily, the nearest pair first; return the centers in UAV order."""
    rows, uavs = alive.shape
    row = np.arange(rows)
    square = np.square(position_m[:, :, None, :2] - centres_m[:, None]).sum(axis=-1)
    square[~alive] = np.inf
    square[~np.broadcast_to(alive[:, None, :], square.shape)] = np.inf
    assigned_m = position_m[..., :2].copy()
    for _ in range(uavs):
        uav, centre = np.divmod(square.reshape(rows, -1).argmin(axis=1), uavs)
        some = np.isfinite(square[row, uav, centre])
        assigned_m[row[some], uav[some]] = centres_m[row[some], centre[some]]
        square[row, uav, :] = np.inf
        square[row, :, centre] = np.inf
    return assigned_m


def _build_actions(world: UAVWorld, goal_m: Positions, alive: AliveMask) -> Actions:
    """Build actions: sub-channel, power, and the allowed move that ends nearest to the UAV's goal."""
    config, position = world.config, world.position_m.astype(float)
    destination = position[:, :, None] + move_table_m(config)
    square = np.square(destination - goal_m[:, :, None]).sum(axis=-1)
    outside = (destination[..., :2] < 0).any(axis=-1) | (destination[..., :2] > config.area_m).any(axis=-1)
    if config.flight_3d:
        outside |= (destination[..., 2] < config.min_height_m) | (destination[..., 2] > config.max_height_m)
    move = np.where(outside, np.inf, square).argmin(axis=-1)
    channel = assign_channels(position, alive, config.num_channels)
    power = np.full_like(channel, config.power_levels - 1)
    return np.stack([move, channel, power], axis=-1)


def _add_height(
    config: UAVConfig, ground_m: np.ndarray, users_m: Users, alive: AliveMask, position_m: Positions
) -> Positions:
    """Append target heights to ground positions."""
    height = position_m[..., 2]
    if config.flight_3d:
        square, nearest = _find_nearest(users_m, ground_m, alive)
        total, count = _sum_groups(np.sqrt(square), nearest, alive.shape[1])
        best = (
            total
            / np.maximum(count, 1)
            * math.tan(math.radians(max_coverage_elevation_deg(config.environment)))
        )
        height = np.clip(best, config.min_height_m, config.max_height_m)
    return np.concatenate([ground_m, height[..., None]], axis=-1)


def _find_nearest(users_m: Users, ground_m: np.ndarray, alive: AliveMask) -> tuple[np.ndarray, np.ndarray]:
    """Return each user's squared distance to the nearest flying UAV, and the index of that UAV."""
    square = np.square(users_m[:, :, None] - ground_m[:, None]).sum(axis=-1)
    square = np.where(alive[:, None], square, np.inf)
    nearest = square.argmin(axis=-1)
    return np.take_along_axis(square, nearest[..., None], axis=-1)[..., 0], nearest


def _sum_groups(values: np.ndarray, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of the `values` in each group: two arrays `[environments, groups]`."""
    rows = len(group)
    flat = (group + groups * np.arange(rows)[:, None]).ravel()
    total = np.bincount(flat, values.ravel(), rows * groups)
    return total.reshape(rows, groups), np.bincount(flat, minlength=rows * groups).reshape(rows, groups)


def _average_groups(users_m: Users, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean user position of each group, `[rows, groups, 2]`, and the number of users."""
    east, count = _sum_groups(users_m[..., 0], group, groups)
    north, _ = _sum_groups(users_m[..., 1], group, groups)
    return np.stack([east, north], axis=-1) / np.maximum(count, 1)[..., None], count
