"""Configuration of the UAV downlink: sizes, flight, users, radio and reward, with three presets."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from scrubjay.envs.batched_env import is_integer
from scrubjay.envs.uav.channel import SURROUNDINGS

Mobility = Literal["static", "waypoint", "gauss_markov"]
RewardKind = Literal["individual", "team"]
Fairness = Literal["none", "std", "jain"]


@dataclass(frozen=True)
class UAVConfig:
    """Scenario in which UAVs act as flying base stations for users on the ground of a square area.

    Raises:
        ValueError: If a value is invalid. The message names the field.
    """

    num_uavs: int = 2
    """Maximum number of UAVs, which are the agents."""
    min_uavs: int | None = None
    """Minimum number of UAVs at the start of an episode. The number of UAVs is sampled uniformly from
    `min_uavs` to `num_uavs`. None: every episode starts with `num_uavs` UAVs."""
    drop_probability: float = 0.0
    """Probability that a flying UAV fails permanently at the end of a step."""
    num_users: int = 12
    """Number of users on the ground."""
    max_steps: int = 50
    """Steps after which an episode is truncated."""

    area_m: float = 1000.0
    """Side length of the square area."""
    slot_s: float = 2.0
    """Duration of one step."""
    max_speed_m_s: float = 20.0
    """Ground speed of a UAV that does not hover."""
    directions: int = 4
    """Number of headings in the action space, 4 or 8."""
    flight_3d: bool = False
    """Let UAVs climb and descend."""
    max_climb_m_s: float = 5.0
    """Maximum vertical speed of climbing and descending, in addition to the ground speed."""
    height_m: float = 100.0
    """Initial height of UAVs; constant unless `flight_3d` is set."""
    min_height_m: float = 50.0
    """Minimum height with `flight_3d`."""
    max_height_m: float = 150.0
    """Maximum height with `flight_3d`."""
    min_distance_m: float = 20.0
    """Collision distance: two UAVs at most this far apart at the end of a step collide."""

    user_mobility: Mobility = "gauss_markov"
    """Mobility model of users. "static": users do not move. "waypoint": users walk straight to successive
    random points. "gauss_markov": the velocity is autoregressive (`gauss_markov_memory`) around a mean
    velocity."""
    user_speed_m_s: float = 6.0
    """Walking speed ("waypoint") or norm of the mean velocity ("gauss_markov")."""
    gauss_markov_memory: float = 0.9
    """Autoregressive coefficient of the velocity, from 0 to 1."""
    gauss_markov_std_m_s: float = 1.0
    """Stationary standard deviation of each velocity component."""
    hot_spots: int = 2
    """Number of crowds. Crowds have equally many users, and users of a crowd share a mean velocity. 0: no
    crowds; users are distributed uniformly, and each has its own mean velocity."""
    hot_spot_std_m: float = 60.0
    """Standard deviation of user positions in a crowd, per axis."""

    environment: str = "urban"
    """Area type of the channel model: suburban, urban, dense_urban or highrise."""
    frequency_hz: float = 2.4e9
    """Carrier frequency."""
    num_channels: int = 2
    """Number of sub-channels; UAVs on the same sub-channel interfere."""
    bandwidth_hz: float = 180e3
    """Bandwidth of one sub-channel."""
    noise_dbm_per_hz: float = -170.0
    """Noise power density at a user."""
    max_power_dbm: float = 10.0
    """Transmit power at the highest level."""
    power_levels: int = 3
    """Number P of power levels; level i transmits (i + 1) / P of the highest power."""

    battery_j: float | None = None
    """Battery capacity; a UAV with an empty battery is terminated. None: unlimited."""
    sensing_radius_m: float | None = None
    """Ground distance up to which a UAV observes users; None: unlimited."""
    communication_radius_m: float | None = None
    """Distance up to which UAVs observe each other; None: unlimited."""

    reward: RewardKind = "individual"
    """Reward of a UAV. "individual": its own reward. "team": the mean reward of all flying UAVs."""
    fairness: Fairness = "std"
    """Fairness term of the reward. "std": subtract the standard deviation of the user rates. "jain": multiply
    by Jain's index of the user rates. "none": no fairness term."""
    fairness_weight: float = 0.5
    """Weight of the standard deviation of user rates; only fairness "std" uses it."""
    reward_per_bps_hz: float = 0.1
    """Reward per bit/s/Hz of the users that the UAV serves, after the fairness term."""
    collision_penalty: float = 1.0
    """Penalty for both UAVs of each colliding pair."""
    boundary_penalty: float = 0.1
    """Penalty for a UAV whose move would leave the area or the allowed heights."""

    def __post_init__(self) -> None:
        for name, (least, most) in _INTEGERS.items():
            _require(self, name, is_integer(getattr(self, name)), "an integer")
            _require(self, name, getattr(self, name) >= least, f"at least {least}")
            _require(self, name, getattr(self, name) <= most, f"at most {most}")
        for name in (*_POSITIVE, *_NOT_NEGATIVE, *_SIGNED):
            _require(self, name, _is_number(getattr(self, name)), "a finite number")
        for name in _POSITIVE:
            _require(self, name, getattr(self, name) > 0, "above 0")
        for name in _NOT_NEGATIVE:
            _require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("battery_j", "sensing_radius_m", "communication_radius_m"):
            value = getattr(self, name)
            _require(self, name, value is None or (_is_number(value) and value > 0), "above 0, or None")
        for name, choices in _CHOICES.items():
            _require(self, name, getattr(self, name) in choices, "one of " + ", ".join(map(str, choices)))
        for name in ("drop_probability", "gauss_markov_memory"):
            _require(self, name, getattr(self, name) <= 1, "from 0 to 1")
        if self.min_uavs is not None:
            within = is_integer(self.min_uavs) and 1 <= self.min_uavs <= self.num_uavs
            _require(self, "min_uavs", within, f"from 1 to num_uavs={self.num_uavs}, or None")
        _require(self, "hot_spots", self.hot_spots <= self.num_users, f"at most num_users={self.num_users}")
        if self.flight_3d:
            heights_in_order = 0 < self.min_height_m <= self.height_m <= self.max_height_m
            _require(
                self, "height_m", heights_in_order, f"from {self.min_height_m} to {self.max_height_m} in 3-D"
            )
        for name in ("max_speed_m_s", "user_speed_m_s", "gauss_markov_std_m_s"):
            limit = self.area_m / self.slot_s
            _require(self, name, getattr(self, name) < limit, f"below area_m / slot_s = {limit:g}")

    @property
    def num_moves(self) -> int:
        """Number of moves: hover and all headings; with `flight_3d` also each of these up and down."""
        return (1 + self.directions) * (3 if self.flight_3d else 1)

    @classmethod
    def small(cls) -> UAVConfig:
        """Return the config of two UAVs and two moving crowds of six users on one square kilometer.

        Training takes minutes.
        """
        return cls()

    @classmethod
    def paper(cls) -> UAVConfig:
        """Return the config of four UAVs with three sub-channels on four square kilometers.

        The sizes are close to published ones.
        """
        return cls(
            num_uavs=4,
            num_users=40,
            max_steps=100,
            area_m=2000.0,
            directions=8,
            hot_spots=5,
            hot_spot_std_m=120.0,
            num_channels=3,
            communication_radius_m=1500.0,
        )

    @classmethod
    def city(cls) -> UAVConfig:
        """Return the config of ten UAVs in 3-D, with 100 users in three crowds, batteries and failures."""
        return cls(
            num_uavs=10,
            num_users=100,
            max_steps=100,
            area_m=3000.0,
            directions=8,
            flight_3d=True,
            user_mobility="waypoint",
            user_speed_m_s=1.5,
            hot_spots=3,
            hot_spot_std_m=250.0,
            num_channels=5,
            environment="dense_urban",
            battery_j=20e3,
            drop_probability=0.001,
            sensing_radius_m=1000.0,
            communication_radius_m=1500.0,
        )


PRESETS: dict[str, Callable[[], UAVConfig]] = {
    "small": UAVConfig.small,
    "paper": UAVConfig.paper,
    "city": UAVConfig.city,
}
"""Functions that return the config of a preset, by its name."""


def resolve_config(preset: str | UAVConfig, **overrides: Any) -> UAVConfig:
    """Return the preset with this name, or the config itself, with `overrides` applied.

    Raises:
        ValueError: For an unknown preset or field and for an invalid value.
    """
    if isinstance(preset, UAVConfig):
        config = preset
    elif preset in PRESETS:
        config = PRESETS[preset]()
    else:
        raise ValueError(f"preset {preset!r}: choose from {', '.join(PRESETS)}, or pass a UAVConfig")
    field_names = [field.name for field in fields(UAVConfig)]
    for name in overrides:
        if name not in field_names:
            close = difflib.get_close_matches(name, field_names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"UAVConfig has no field {name!r}{hint}")
    return replace(config, **overrides)


_INTEGERS = {
    "num_uavs": (1, 256),
    "num_users": (1, 4096),
    "max_steps": (1, 10_000),
    "directions": (4, 8),
    "hot_spots": (0, 4096),
    "num_channels": (1, 256),
    "power_levels": (1, 256),
}
"""Minimum and maximum of integer fields. Cost grows with the number of UAV-user pairs."""
_POSITIVE = (
    "area_m",
    "slot_s",
    "max_speed_m_s",
    "max_climb_m_s",
    "height_m",
    "hot_spot_std_m",
    "frequency_hz",
    "bandwidth_hz",
    "reward_per_bps_hz",
)
_NOT_NEGATIVE = (
    "drop_probability",
    "gauss_markov_memory",
    "min_distance_m",
    "user_speed_m_s",
    "gauss_markov_std_m_s",
    "fairness_weight",
    "collision_penalty",
    "boundary_penalty",
)
_SIGNED = ("noise_dbm_per_hz", "max_power_dbm")
_CHOICES = {
    "directions": (4, 8),
    "user_mobility": get_args(Mobility),
    "environment": tuple(SURROUNDINGS),
    "reward": get_args(RewardKind),
    "fairness": get_args(Fairness),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(config: UAVConfig, name: str, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"{name}={getattr(config, name)!r}: expected {expected}")
