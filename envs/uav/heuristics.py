"""Rules of thumb for the downlink, to compare what was learned with: they see every user and every UAV.

All of them but `random` choose sub-channels and power by the same rules:

- Sub-channels: UAVs choose in the order of their numbers. Each takes the one whose nearest user among the
  UAVs that have chosen is farthest away, a free one if there is one, and of equals the first from its number
  modulo the number of sub-channels on: greedy colouring of the graph of distances. They choose anew at every
  step.
- Power: always the highest level.

Nobody avoids collisions. Those that fly in three dimensions go to the height at which the mean distance of
their users is seen under the elevation of widest coverage, as far as the limits allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int64

from scrubjay.envs.uav.channel import max_coverage_elevation_deg
from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.world import UAVWorld, move_table_m

Actions = Int64[np.ndarray, "rows uavs 3"]
Places = Float[np.ndarray, "rows uavs 3"]
Users = Float[np.ndarray, "rows users 2"]
Uavs = Bool[np.ndarray, "rows uavs"]


class HasWorld(Protocol):
    """An environment whose world is open to be looked at."""

    world: UAVWorld


class Random:
    """Every action with the same chance: moves, sub-channels and power."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(
        self, env: HasWorld, observations: Mapping[str, Any], alive: Uavs, start: Bool[np.ndarray, " rows"]
    ) -> Actions:
        """Return actions of all UAVs; those that do not fly get zeros."""
        config = env.world.config
        choices = [config.num_moves, config.num_channels, config.power_levels]
        return self._rng.integers(choices, size=(*alive.shape, 3)) * alive[..., None]


class Static:
    """Fly to the centres of k-means over the users as the episode begins, and stay there.

    As many centres as UAVs fly; the nearest pair of centre and UAV is matched first, then the next.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._goal_m = np.zeros((0, 0, 3))

    def __call__(
        self, env: HasWorld, observations: Mapping[str, Any], alive: Uavs, start: Bool[np.ndarray, " rows"]
    ) -> Actions:
        """Return actions of all UAVs; those that do not fly get zeros."""
        world = env.world
        if self._goal_m.shape != world.position_m.shape:
            self._goal_m = world.position_m.astype(float)
        rows = np.flatnonzero(start)
        if rows.size:
            users, position = world.user_position_m[rows].astype(float), world.position_m[rows].astype(float)
            centres = match(k_means(users, alive[rows], self._rng), position, alive[rows])
            self._goal_m[rows] = _at_height(world.config, centres, users, alive[rows], position)
        return _act(world, self._goal_m, alive)


class Follow:
    """Fly towards the mean of the users that have no nearer UAV; without any, to the user worst off.

    Worst off is whoever is farthest from every UAV in the air.
    """

    def __init__(self, seed: int = 0) -> None:
        pass

    def __call__(
        self, env: HasWorld, observations: Mapping[str, Any], alive: Uavs, start: Bool[np.ndarray, " rows"]
    ) -> Actions:
        """Return actions of all UAVs; those that do not fly get zeros."""
        world = env.world
        users, position = world.user_position_m.astype(float), world.position_m.astype(float)
        square, nearest = _nearest(users, position[..., :2], alive)
        mean, count = _means(users, nearest, alive.shape[1])
        worst = np.take_along_axis(users, square.argmax(axis=1)[:, None, None], axis=1)
        goal = np.where(count[..., None] > 0, mean, worst)
        return _act(world, _at_height(world.config, goal, users, alive, position), alive)


HEURISTICS: dict[str, Callable[[int], Random | Static | Follow]] = {
    "random": Random,
    "static": Static,
    "follow": Follow,
}
"""By name, each made from a seed."""


def colour_channels(position_m: Places, alive: Uavs, num_channels: int) -> Int64[np.ndarray, "rows uavs"]:
    """Return every UAV's sub-channel by greedy colouring; those that do not fly get 0 and do not count."""
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
    users_m: Users, alive: Uavs, rng: np.random.Generator, restarts: int = 8, rounds: int = 20
) -> Float[np.ndarray, "rows uavs 2"]:
    """Return a centre for every UAV that flies: the best of several restarts of Lloyd's rounds.

    Each begins with users drawn with a chance that grows with the square of the distance to those drawn
    before. Source: Arthur, Vassilvitskii 2007, "k-means++".
    """
    rows, uavs = alive.shape
    users, flies = np.tile(users_m, (restarts, 1, 1)), np.tile(alive, (restarts, 1))
    centres = np.zeros((restarts * rows, uavs, 2))
    square = np.full(users.shape[:2], np.inf)
    for uav in range(uavs):
        chance = np.where(np.isinf(square), 1.0, square).cumsum(axis=1)
        drawn = (chance <= rng.random((len(users), 1)) * chance[:, -1:]).sum(axis=1)
        drawn = np.minimum(drawn, users.shape[1] - 1)
        centres[:, uav] = users[np.arange(len(users)), drawn]
        distance = np.square(users - centres[:, None, uav]).sum(axis=-1)
        square = np.where(flies[:, uav, None], np.minimum(square, distance), square)
    for _ in range(rounds):
        mean, count = _means(users, _nearest(users, centres, flies)[1], uavs)
        centres = np.where(count[..., None] > 0, mean, centres)
    inertia = _nearest(users, centres, flies)[0].sum(axis=1).reshape(restarts, rows)
    return centres.reshape(restarts, rows, uavs, 2)[inertia.argmin(axis=0), np.arange(rows)]


def match(
    centres_m: Float[np.ndarray, "rows uavs 2"], position_m: Places, alive: Uavs
) -> Float[np.ndarray, "rows uavs 2"]:
    """Return the centres in the order of the UAVs that take them: the nearest pair first, then the next."""
    rows, uavs = alive.shape
    row = np.arange(rows)
    square = np.square(position_m[:, :, None, :2] - centres_m[:, None]).sum(axis=-1)
    square[~alive] = np.inf
    square[~np.broadcast_to(alive[:, None, :], square.shape)] = np.inf
    taken = position_m[..., :2].copy()
    for _ in range(uavs):
        uav, centre = np.divmod(square.reshape(rows, -1).argmin(axis=1), uavs)
        some = np.isfinite(square[row, uav, centre])
        taken[row[some], uav[some]] = centres_m[row[some], centre[some]]
        square[row, uav, :] = np.inf
        square[row, :, centre] = np.inf
    return taken


def _act(world: UAVWorld, goal_m: Places, alive: Uavs) -> Actions:
    """Return the moves that end nearest to the goals within the area, with sub-channels and power."""
    config, position = world.config, world.position_m.astype(float)
    reached = position[:, :, None] + move_table_m(config)
    square = np.square(reached - goal_m[:, :, None]).sum(axis=-1)
    outside = (reached[..., :2] < 0).any(axis=-1) | (reached[..., :2] > config.area_m).any(axis=-1)
    if config.flight_3d:
        outside |= (reached[..., 2] < config.min_height_m) | (reached[..., 2] > config.max_height_m)
    move = np.where(outside, np.inf, square).argmin(axis=-1)
    channel = colour_channels(position, alive, config.num_channels)
    power = np.full_like(channel, config.power_levels - 1)
    return np.stack([move, channel, power], axis=-1) * alive[..., None]


def _at_height(
    config: UAVConfig, ground_m: np.ndarray, users_m: Users, alive: Uavs, position_m: Places
) -> Places:
    """Return the places on the ground with the heights to fly at above them."""
    height = position_m[..., 2]
    if config.flight_3d:
        square, nearest = _nearest(users_m, ground_m, alive)
        total, count = _sums(np.sqrt(square), nearest, alive.shape[1])
        best = (
            total
            / np.maximum(count, 1)
            * math.tan(math.radians(max_coverage_elevation_deg(config.environment)))
        )
        height = np.clip(best, config.min_height_m, config.max_height_m)
    return np.concatenate([ground_m, height[..., None]], axis=-1)


def _nearest(users_m: Users, ground_m: np.ndarray, alive: Uavs) -> tuple[np.ndarray, np.ndarray]:
    """Return every user's squared distance to the nearest place of a UAV that flies, and its number."""
    square = np.square(users_m[:, :, None] - ground_m[:, None]).sum(axis=-1)
    square = np.where(alive[:, None], square, np.inf)
    nearest = square.argmin(axis=-1)
    return np.take_along_axis(square, nearest[..., None], axis=-1)[..., 0], nearest


def _sums(values: np.ndarray, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of values `[rows, users]` and their number in each group of a row."""
    rows = len(group)
    flat = (group + groups * np.arange(rows)[:, None]).ravel()
    total = np.bincount(flat, values.ravel(), rows * groups)
    return total.reshape(rows, groups), np.bincount(flat, minlength=rows * groups).reshape(rows, groups)


def _means(users_m: Users, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean place of each group's users, `[rows, groups, 2]`, and their number."""
    east, count = _sums(users_m[..., 0], group, groups)
    north, _ = _sums(users_m[..., 1], group, groups)
    return np.stack([east, north], axis=-1) / np.maximum(count, 1)[..., None], count
