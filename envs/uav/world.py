"""Batched dynamics of the UAV downlink: flight, users, radio and reward, without automatic resets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from scrubjay.envs.random_streams import RowState, RowStreams
from scrubjay.envs.uav.channel import dbm_to_w, mean_gain, noise_w, sinr
from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.mobility import UserMotion, init_users, move_users

Rows = Int64[np.ndarray, " rows"]


class UAVWorld(RowState):
    """Batch of `num_envs` (R) environments with `num_uavs` (M) UAVs and `num_users` (K) users each.

    One step runs in this order:

    1. Flying UAVs move and set sub-channel and power. A move that would leave the area or the allowed heights
       stops at the border and is penalized.
    2. Users move.
    3. Every user joins the flying UAV with the strongest mean gain; ties go to the lowest index. All flying
       UAVs transmit for the whole step. The users of a UAV share its time equally: a user's rate is
       B log2(1 + SINR) divided by the number of users of the UAV, with B = `bandwidth_hz`.
    4. Pairs of flying UAVs at most `min_distance_m` apart collide. Both are penalized and keep flying.
    5. UAVs with an empty battery and UAVs that fail at random are terminated. They still receive the reward
       of this step.

    The reward of a flying UAV starts from the sum of its users' rates divided by B. As the users share the
    UAV's time, this sum is the mean of log2(1 + SINR) over these users, in bit/s/Hz. Fairness "std" computes
    rate x K / (B x number of flying UAVs) for each user and subtracts `fairness_weight` times the standard
    deviation of these values over all users. Fairness "jain" multiplies by Jain's
    index of all users' rates. The result is multiplied by `reward_per_bps_hz`; then the penalties are
    subtracted. Reward "team" gives each flying UAV the mean reward of all flying UAVs.

    Result arrays (`rate_bps`, `collisions`, ...) belong to the last step. Each environment depends only on
    its own random stream and actions, bit for bit.
    """

    row_arrays = (
        "time",
        "alive",
        "position_m",
        "displacement_m",
        "channel",
        "power_level",
        "battery_j",
        "user_position_m",
        "user_velocity_m_s",
        "user_goal",
        "hot_spot_m",
        "association",
        "load",
        "own_bps_hz",
        "efficiency",
        "rate_bps",
        "rate_sum_bps",
        "collisions",
    )

    def __init__(self, num_envs: int, config: UAVConfig) -> None:
        rows, uavs, users = num_envs, config.num_uavs, config.num_users
        self.config, self.settings = config, asdict(config)
        self.num_envs = num_envs
        self.streams = RowStreams(num_envs, np.random.default_rng())
        self.all_rows = np.arange(num_envs)
        self._uavs = np.arange(uavs)

        def zeros(*shape: int, dtype: type[np.generic] = np.float32) -> Any:
            return np.zeros((rows, *shape), dtype=dtype)

        self.time: Int64[np.ndarray, " R"] = zeros(dtype=np.int64)
        """Steps since the start of the episode."""
        self.alive: Bool[np.ndarray, "R M"] = zeros(uavs, dtype=np.bool_)
        self.position_m: Float32[np.ndarray, "R M 3"] = zeros(uavs, 3)
        self.displacement_m: Float32[np.ndarray, "R M 3"] = zeros(uavs, 3)
        """Displacement in the last step."""
        self.channel: Int64[np.ndarray, "R M"] = zeros(uavs, dtype=np.int64)
        self.power_level: Int64[np.ndarray, "R M"] = zeros(uavs, dtype=np.int64)
        self.battery_j: Float32[np.ndarray, "R M"] = zeros(uavs)
        """Remaining energy; always 0 if batteries are unlimited."""
        self.user_position_m: Float32[np.ndarray, "R K 2"] = zeros(users, 2)
        self.user_velocity_m_s: Float32[np.ndarray, "R K 2"] = zeros(users, 2)
        self.user_goal: Float32[np.ndarray, "R K 2"] = zeros(users, 2)
        self.hot_spot_m: Float32[np.ndarray, "R H 2"] = zeros(config.hot_spots, 2)
        self.association: Int64[np.ndarray, "R K"] = zeros(users, dtype=np.int64)
        """Index of the UAV that served each user in the last slot; -1 if none was flying."""
        self.load: Int64[np.ndarray, "R M"] = zeros(uavs, dtype=np.int64)
        """Number of users served by each UAV."""
        self.own_bps_hz: Float32[np.ndarray, "R M"] = zeros(uavs)
        """Sum of the rates of each UAV's users over B, which is their mean spectral efficiency."""
        self.efficiency: Float32[np.ndarray, "R K"] = zeros(users)
        """Spectral efficiency log2(1 + SINR) of each user in bit/s/Hz, before time sharing."""
        self.rate_bps: Float32[np.ndarray, "R K"] = zeros(users)
        self.rate_sum_bps: Float32[np.ndarray, "R K"] = zeros(users)
        """Sum of rates over the steps of the episode."""
        self.collisions: Int64[np.ndarray, "R M"] = zeros(uavs, dtype=np.int64)
        """Number of collisions of each UAV in the last step."""
        self.uav_offset_m: Float32[np.ndarray, "3 R M M"] = np.zeros((3, rows, uavs, uavs), np.float32)
        """Position of UAV j relative to UAV i at [:, row, i, j]. This and the next two arrays are computed
        from positions."""
        self.user_offset_m: Float32[np.ndarray, "2 R M K"] = np.zeros((2, rows, uavs, users), np.float32)
        """Ground positions of users relative to each UAV."""
        self.user_distance_m: Float32[np.ndarray, "R M K"] = zeros(uavs, users)
        """Ground distance from each UAV to each user."""
        self._moves = move_table_m(config)
        self._move_energy_j = _move_energy_j(config)
        self._low = np.array([0, 0, config.min_height_m if config.flight_3d else config.height_m], np.float32)
        self._high = np.array(
            [config.area_m, config.area_m, config.max_height_m if config.flight_3d else config.height_m],
            np.float32,
        )
        self._unit_power_w = np.float32(float(dbm_to_w(config.max_power_dbm)) / config.power_levels)
        self._noise_w = noise_w(config.bandwidth_hz, config.noise_dbm_per_hz)

    @property
    def power_w(self) -> Float32[np.ndarray, "R M"]:
        """Transmit power of each UAV; 0 for dead UAVs."""
        return self._power_w(slice(None))

    def reset(self, rows: Rows) -> None:
        """Start a new episode in each environment of `rows`."""
        config, count, uavs = self.config, len(rows), self.config.num_uavs
        fewest = uavs if config.min_uavs is None else config.min_uavs
        flying = fewest + self.streams.integers(rows, uavs - fewest + 1, 1)
        self.time[rows] = 0
        self.alive[rows] = self._uavs < flying
        start = self.streams.uniforms(rows, 2 * uavs).reshape(count, uavs, 2)
        self.position_m[rows, :, :2] = start * np.float32(config.area_m)
        self.position_m[rows, :, 2] = config.height_m
        self.displacement_m[rows] = 0
        self.channel[rows] = self.streams.integers(rows, config.num_channels, uavs)
        self.power_level[rows] = config.power_levels - 1
        self.battery_j[rows] = config.battery_j or 0
        self.collisions[rows] = 0
        users = init_users(config, self.streams, rows)
        self.user_position_m[rows] = users.position_m
        self.user_velocity_m_s[rows] = users.velocity_m_s
        self.user_goal[rows] = users.goal
        self.hot_spot_m[rows] = users.hot_spot_m
        self._update_offsets(rows)
        self._transmit(rows)
        self.rate_sum_bps[rows] = 0

    def step(self, actions: Int64[np.ndarray, "R M 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step all environments; return rewards, terminated and truncated.

        Rewards (float64) and terminated are `[environments, UAVs]`, truncated is `[environments]`. Actions of
        dead UAVs have no effect, but must lie in the action space too.
        """
        alive = self.alive
        outside = self._move_uavs(actions, alive)
        users = UserMotion(self.user_position_m, self.user_velocity_m_s, self.user_goal, self.hot_spot_m)
        move_users(self.config, self.streams, self.all_rows, users)
        self.user_position_m, self.user_velocity_m_s = users.position_m, users.velocity_m_s
        self.user_goal = users.goal
        self._update_offsets(slice(None))
        own = self._transmit(slice(None))
        self.rate_sum_bps += self.rate_bps
        self.collisions = self._collide()
        rewards = self._rewards(own, outside)
        self.time = self.time + 1
        terminated = self._terminate_uavs(actions[..., 0])
        self.alive = alive & ~terminated
        return rewards, terminated, self.time >= self.config.max_steps

    def metrics(self) -> dict[str, Float64[np.ndarray, " R"]]:
        """Return metrics of the last step per environment: user rates, Jain's index and collisions."""
        rates = self.rate_bps
        total, squares = _moments(rates)
        place = 0.05 * (self.config.num_users - 1)
        below = int(place)
        above = min(below + 1, self.config.num_users - 1)
        smallest_rates = np.partition(rates, (below, above), axis=1)
        fifth = smallest_rates[:, below] * (below + 1 - place) + smallest_rates[:, above] * (place - below)
        return {
            "sum_rate_bps": total,
            "fifth_percentile_rate_bps": fifth.astype(np.float64),
            "jain": _jain(total, squares, self.config.num_users),
            "collisions": self.collisions.sum(axis=1) / 2,
        }

    def uav_within(self, distance_m: float, rows: Rows | slice = slice(None)) -> Bool[np.ndarray, "rows M M"]:
        """Return the mask of flying UAV pairs at most `distance_m` apart, pairs (i, i) included."""
        east, north, up = self.uav_offset_m[:, rows]
        alive = self.alive[rows]
        near = east * east + north * north + up * up <= np.float32(distance_m) ** 2
        near &= alive[:, :, None]
        near &= alive[:, None, :]
        return near

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state` exactly.

        Raises ValueError, and changes nothing, if `check_state` rejects the state.
        """
        super().set_state(state)
        self._update_offsets(slice(None))

    def _move_uavs(self, actions: np.ndarray, alive: np.ndarray) -> Bool[np.ndarray, "R M"]:
        step = self._moves[actions[..., 0]] * alive[..., None]
        target = self.position_m + step
        position = np.minimum(np.maximum(target, self._low), self._high)
        self.displacement_m = position - self.position_m
        self.position_m = position
        self.channel, self.power_level = actions[..., 1].copy(), actions[..., 2].copy()
        beyond = position != target
        return beyond[..., 0] | beyond[..., 1] | beyond[..., 2]

    def _power_w(self, rows: Rows | slice) -> Float32[np.ndarray, "rows M"]:
        return (self.power_level[rows] + 1).astype(np.float32) * self._unit_power_w * self.alive[rows]

    def _transmit(self, rows: Rows | slice) -> Float64[np.ndarray, "rows M"]:
        """Serve the users of environments `rows` for one step; return the rate sum of each UAV in bit/s/Hz.

        The rate sum of a UAV is the sum of the rates of its users, divided by the bandwidth.
        """
        gain = self._gain(rows)
        count, uavs, users = gain.shape
        association = _argmax_uav(gain)
        # Flat indices are several times as fast in numpy as pairs of indices.
        uav = association + (np.arange(count) * uavs)[:, None]
        ratio = sinr(self._power_w(rows), gain, self.channel[rows], self._noise_w)
        serving_sinr = ratio.ravel().take(uav * users + np.arange(users))
        efficiency = np.log1p(serving_sinr) * np.float32(1 / np.log(2))
        load = np.bincount(uav.ravel(), minlength=count * uavs)
        shared = efficiency / load.take(uav)
        own = np.bincount(uav.ravel(), shared.ravel(), count * uavs).reshape(count, uavs)
        rate = (shared * self.config.bandwidth_hz).astype(np.float32)
        any_alive = np.any(self.alive[rows], axis=1, keepdims=True)
        association[~any_alive[:, 0]] = -1
        self.association[rows], self.efficiency[rows], self.rate_bps[rows] = association, efficiency, rate
        self.load[rows] = load.reshape(count, uavs) * any_alive
        self.own_bps_hz[rows] = own
        return own

    def _update_offsets(self, rows: Rows | slice) -> None:
        """Update the offsets from each UAV to the UAVs and users in environments `rows`."""
        uav = np.moveaxis(self.position_m[rows], 2, 0).copy()
        user = np.moveaxis(self.user_position_m[rows], 2, 0).copy()
        self.uav_offset_m[:, rows] = uav[:, :, None, :] - uav[:, :, :, None]
        # With all rows, write in place: the arrays are large and each is written once per step.
        all_rows = isinstance(rows, slice)
        offset = np.subtract(
            user[:, :, None, :], uav[:2, :, :, None], out=self.user_offset_m if all_rows else None
        )
        distance = np.multiply(offset[0], offset[0], out=self.user_distance_m if all_rows else None)
        distance += offset[1] * offset[1]
        np.sqrt(distance, out=distance)
        if not all_rows:
            self.user_offset_m[:, rows], self.user_distance_m[rows] = offset, distance

    def _gain(self, rows: Rows | slice) -> Float32[np.ndarray, "rows M K"]:
        ground = self.user_distance_m[rows]
        # Copy, because numpy is slower on broadcast operands and may round them differently.
        height = np.broadcast_to(self.position_m[rows, :, 2, None], ground.shape).copy()
        gain = mean_gain(ground, height, self.config.frequency_hz, self.config.environment)
        gain *= self.alive[rows].astype(np.float32)[:, :, None]
        return gain

    def _collide(self) -> Int64[np.ndarray, "R M"]:
        close = self.uav_within(self.config.min_distance_m)
        close[:, self._uavs, self._uavs] = False
        return close.sum(axis=2)

    def _rewards(self, own: np.ndarray, outside: np.ndarray) -> Float64[np.ndarray, "R M"]:
        config, alive = self.config, self.alive
        flying = alive.sum(axis=1)
        if config.fairness != "none":
            total, squares = _moments(self.rate_bps)
            if config.fairness == "jain":
                own = own * _jain(total, squares, config.num_users)[:, None]
            else:
                mean = total / config.num_users
                spread = np.sqrt(np.maximum(squares / config.num_users - mean * mean, 0))
                scale = config.fairness_weight * config.num_users / config.bandwidth_hz
                own = own - (scale * spread / np.maximum(flying, 1))[:, None]
        rewards = own * config.reward_per_bps_hz
        rewards -= config.collision_penalty * self.collisions + config.boundary_penalty * outside
        rewards *= alive
        if config.reward == "team":
            rewards = (rewards.sum(axis=1) / np.maximum(flying, 1))[:, None] * alive
        return rewards

    def _terminate_uavs(self, moves: np.ndarray) -> Bool[np.ndarray, "R M"]:
        terminated = np.zeros_like(self.alive)
        if self.config.battery_j is not None:
            used = self._move_energy_j[moves] + self.power_w * np.float32(self.config.slot_s)
            self.battery_j = np.maximum(self.battery_j - used * self.alive, 0)
            terminated |= self.battery_j <= 0
        if self.config.drop_probability:
            uniform = self.streams.uniforms(self.all_rows, self.config.num_uavs)
            terminated |= uniform < np.float32(self.config.drop_probability)
        return terminated & self.alive


def move_table_m(config: UAVConfig) -> Float32[np.ndarray, "moves 3"]:
    """Return the displacement of every move: hover, then headings counter-clockwise from east.

    With D directions, level moves are 0 .. D. With `flight_3d`, climbing moves are D + 1 .. 2 D + 1 and
    descending moves follow.
    """
    angle = np.arange(config.directions) * (2 * np.pi / config.directions)
    level = np.zeros((1 + config.directions, 3))
    # Round, so that "north" has no eastward component from floating-point error.
    level[1:, 0], level[1:, 1] = np.round(np.cos(angle), 12), np.round(np.sin(angle), 12)
    level *= config.max_speed_m_s * config.slot_s
    climb = np.array([0, 0, config.max_climb_m_s * config.slot_s])
    moves = [level, level + climb, level - climb] if config.flight_3d else [level]
    return np.concatenate(moves).astype(np.float32)


def _move_energy_j(config: UAVConfig) -> Float32[np.ndarray, " moves"]:
    """Return the propulsion energy of every move for one step; stopping at the border does not reduce it."""
    speed = move_table_m(config).astype(np.float64) / config.slot_s
    power = propulsion_power_w(np.hypot(speed[:, 0], speed[:, 1]), speed[:, 2])
    return (power * config.slot_s).astype(np.float32)


def _argmax_uav(values: Float32[np.ndarray, "R M K"]) -> Int64[np.ndarray, "R K"]:
    """Return `values.argmax(axis=1)`, several times as fast as numpy if there are few UAVs."""
    largest = values == values.max(axis=1, keepdims=True)
    count = values.shape[1]
    rank = np.arange(count, 0, -1, dtype=np.uint8 if count < 256 else np.int64)
    return count - (largest * rank[:, None]).max(axis=1).astype(np.int64)


def _moments(rates: Float32[np.ndarray, "R K"]) -> tuple[np.ndarray, np.ndarray]:
    exact = rates.astype(np.float64)
    return exact.sum(axis=1), (exact * exact).sum(axis=1)


def _jain(total: np.ndarray, squares: np.ndarray, users: int) -> Float64[np.ndarray, " R"]:
    """Return Jain's index: 1 if all K users have equal rates, 1 / K if only one user has a positive rate.

    `total` is the sum of the rates and `squares` the sum of their squares. The index is 0 if all rates are 0.
    Source: Jain, Chiu, Hawe 1984.
    """
    return total * total / np.maximum(users * squares, np.finfo(np.float64).tiny)


BLADE_W = 39.04
"""Blade profile power in hover."""
INDUCED_W = 79.07
"""Induced power in hover."""
TIP_SPEED_M_S = 120.0
INDUCED_SPEED_M_S = 3.6
"""Mean rotor induced velocity in hover."""
DRAG_RATIO = 0.012
SOLIDITY = 0.05
AIR_DENSITY_KG_M3 = 1.225
DISC_AREA_M2 = 0.503
WEIGHT_N = 2 * AIR_DENSITY_KG_M3 * DISC_AREA_M2 * INDUCED_SPEED_M_S**2
"""Weight from the induced velocity by momentum theory: about 16 N."""


def propulsion_power_w(
    speed_m_s: float | Float[np.ndarray, "..."], climb_m_s: float | Float[np.ndarray, "..."] = 0.0
) -> Float[np.ndarray, "..."]:
    """Return the propulsion power at a ground speed and a climb speed.

    Climbing adds weight times climb speed; descending adds nothing. Hovering takes more power than slow
    flight, and the power has one minimum over speed.

    Paper: Zeng, Xu, Zhang 2019, "Energy minimization for wireless communication with rotary-wing UAV",
    equation 12; constants of a small UAV as used with AB-MAPPO. The climb term is not in the paper.
    """
    square = np.square(np.asarray(speed_m_s, dtype=np.float64))
    ratio = square / (2 * INDUCED_SPEED_M_S**2)
    # sqrt(1 + x^2) - x, written without cancellation at high speed
    induced_ratio = np.sqrt(1 / (np.sqrt(1 + ratio**2) + ratio))
    parasite = 0.5 * DRAG_RATIO * AIR_DENSITY_KG_M3 * SOLIDITY * DISC_AREA_M2 * square**1.5
    climbing = WEIGHT_N * np.maximum(climb_m_s, 0)
    return BLADE_W * (1 + 3 * square / TIP_SPEED_M_S**2) + INDUCED_W * induced_ratio + parasite + climbing
