"""What a downlink from UAVs is made of: sizes, flight, users, radio and reward, and three ready scenarios."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from scrubjay.envs.batched import is_integer
from scrubjay.envs.uav.channel import SURROUNDINGS

Mobility = Literal["static", "waypoint", "gauss_markov"]
RewardKind = Literal["individual", "team"]
Fairness = Literal["none", "std", "jain"]


@dataclass(frozen=True)
class UAVConfig:
    """A scenario: UAVs as flying base stations that serve users on the ground of a square area.

    A wrong value raises ValueError, which names it.
    """

    num_uavs: int = 2
    """UAVs at most; the agents."""
    min_uavs: int | None = None
    """Fewest UAVs an episode begins with, drawn uniformly from here to `num_uavs`; None: always all."""
    drop_probability: float = 0.0
    """Chance that a flying UAV fails for good at the end of a step."""
    num_users: int = 12
    """Users on the ground."""
    max_steps: int = 50
    """Steps after which an episode is cut off."""

    area_m: float = 1000.0
    """Side of the square."""
    slot_s: float = 2.0
    """Time that one step takes."""
    max_speed_m_s: float = 20.0
    """Speed over ground of a UAV that does not hover."""
    directions: int = 4
    """Headings to choose from, 4 or 8."""
    flight_3d: bool = False
    """Let UAVs climb and sink."""
    max_climb_m_s: float = 5.0
    """Speed of climbing and sinking, beside that over ground."""
    height_m: float = 100.0
    """Height at which UAVs begin, and stay unless `flight_3d`."""
    min_height_m: float = 50.0
    """Floor of flight in 3-D."""
    max_height_m: float = 150.0
    """Ceiling of flight in 3-D."""
    min_distance_m: float = 20.0
    """Two UAVs no farther apart than this at the end of a step collide."""

    user_mobility: Mobility = "gauss_markov"
    """Users stand; or walk straight to one random point after another; or at a velocity that keeps a part of
    its last value (`gauss_markov_memory`) and is drawn back to a mean velocity."""
    user_speed_m_s: float = 6.0
    """Speed of walking, or length of the mean velocity."""
    gauss_markov_memory: float = 0.9
    """Part of the last velocity that is kept, from 0 to 1."""
    gauss_markov_std_m_s: float = 1.0
    """Standard deviation of each component of the velocity."""
    hot_spots: int = 2
    """Crowds that users are split over evenly, of one mean velocity each; 0: users spread uniformly, each its
    own."""
    hot_spot_std_m: float = 60.0
    """Standard deviation of a crowd in each direction."""

    environment: str = "urban"
    """Surroundings of the channel: suburban, urban, dense_urban or highrise."""
    frequency_hz: float = 2.4e9
    """Carrier."""
    num_channels: int = 2
    """Sub-channels; UAVs on the same one interfere."""
    bandwidth_hz: float = 180e3
    """Width of one sub-channel."""
    noise_dbm_per_hz: float = -170.0
    """Density of noise at a user."""
    max_power_dbm: float = 10.0
    """Radiated power at the highest level."""
    power_levels: int = 3
    """Levels to choose from: level i of P radiates (i + 1) / P of the highest power."""

    battery_j: float | None = None
    """Energy on board; a UAV that has none left drops out. None: it lasts."""
    sensing_radius_m: float | None = None
    """Ground distance up to which a UAV sees users; None: all."""
    communication_radius_m: float | None = None
    """Distance up to which UAVs hear each other; None: all."""

    reward: RewardKind = "individual"
    """A UAV's own performance, or the mean of all flying."""
    fairness: Fairness = "std"
    """Subtract the standard deviation of users' rates, or multiply by Jain's index, or ignore it."""
    fairness_weight: float = 0.5
    """Factor of the standard deviation."""
    reward_per_bps_hz: float = 0.1
    """Reward of one bit per second and hertz of a UAV's own sub-channel."""
    collision_penalty: float = 1.0
    """Taken from both UAVs of every pair that collides."""
    boundary_penalty: float = 0.1
    """Taken from a UAV whose move would have left the area or the heights allowed."""

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
            ordered = 0 < self.min_height_m <= self.height_m <= self.max_height_m
            _require(self, "height_m", ordered, f"from {self.min_height_m} to {self.max_height_m} in 3-D")
        for name in ("max_speed_m_s", "user_speed_m_s", "gauss_markov_std_m_s"):
            limit = self.area_m / self.slot_s
            _require(self, name, getattr(self, name) < limit, f"below area_m / slot_s = {limit:g}")

    @property
    def num_moves(self) -> int:
        """Number of moves to choose from: hovering and the directions, in 3-D level, climbing or sinking."""
        return (1 + self.directions) * (3 if self.flight_3d else 1)

    @classmethod
    def small(cls) -> UAVConfig:
        """Two UAVs and two crowds of six that wander through a square kilometre: learned in minutes."""
        return cls()

    @classmethod
    def paper(cls) -> UAVConfig:
        """Four UAVs that share three sub-channels over four square kilometres: about the published sizes."""
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
        """Ten UAVs in 3-D over 100 users in three crowds, with batteries and failures."""
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


def resolve_config(preset: str | UAVConfig, **overrides: Any) -> UAVConfig:
    """Return the preset of that name, or the config, with some fields changed.

    Raises ValueError for an unknown preset or field, and where `UAVConfig` does.
    """
    if isinstance(preset, UAVConfig):
        config = preset
    elif preset in PRESETS:
        config = PRESETS[preset]()
    else:
        raise ValueError(f"preset {preset!r}: choose from {', '.join(PRESETS)}, or pass a UAVConfig")
    known = [field.name for field in fields(UAVConfig)]
    for name in overrides:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
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
"""Least and most; of UAVs and users every pair is computed."""
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


def _require(config: UAVConfig, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r}: expected {expected}")
