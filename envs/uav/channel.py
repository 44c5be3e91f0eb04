"""Radio channel models between UAVs and the ground: pure array functions, each citing its source.

Angles are in degrees, distances in meters, frequencies in hertz, losses in decibels; gains, SINR and powers
are linear. All functions broadcast and preserve the input precision (float32 stays float32).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SPEED_OF_LIGHT_M_S = 3e8
"""Rounded as in 3GPP's formulas and the published tables; lowers the loss by 0.006 dB."""
Array = Float[np.ndarray, "..."]
Numbers = float | np.floating | Array

_DECIBEL = math.log(10) / 10


class Surroundings(NamedTuple):
    """Constants of the air-to-ground channel for one type of built-up area."""

    a: float
    """Offset of the line-of-sight probability's sigmoid, degrees."""
    b: float
    """Slope of the line-of-sight probability's sigmoid, per degree."""
    los_excess_db: float
    """Mean loss in addition to the free-space loss, dB; for links with line of sight."""
    nlos_excess_db: float
    """Mean loss in addition to the free-space loss, dB; for links without line of sight."""


SURROUNDINGS: Mapping[str, Surroundings] = MappingProxyType(
    {
        "suburban": Surroundings(4.88, 0.43, 0.1, 21.0),
        "urban": Surroundings(9.61, 0.16, 1.0, 20.0),
        "dense_urban": Surroundings(12.08, 0.11, 1.6, 23.0),
        "highrise": Surroundings(27.23, 0.08, 2.3, 34.0),
    }
)
"""Fitted at 2 GHz. Source: Al-Hourani, Kandeepan, Lardner, "Optimal LAP Altitude for Maximum Coverage",
2014."""


def db_to_linear(decibels: Numbers) -> Array:
    """Convert decibels to a power ratio: 3 dB is about 2."""
    return np.exp(np.multiply(decibels, _DECIBEL))


def linear_to_db(ratio: Numbers) -> Array:
    """Convert a power ratio to decibels."""
    return 10 * np.log10(ratio)


def dbm_to_w(power_dbm: Numbers) -> Array:
    """Convert dBm to watts: 30 dBm is 1 W."""
    return db_to_linear(np.subtract(power_dbm, 30))


def w_to_dbm(power_w: Numbers) -> Array:
    """Convert watts to dBm, decibels relative to one milliwatt."""
    return linear_to_db(power_w) + 30


def elevation_deg(ground_distance_m: Numbers, height_m: Numbers) -> Array:
    """Return the elevation angle of the UAV above a user in degrees: 0 at the horizon, 90 overhead."""
    return np.arctan2(height_m, ground_distance_m) * (180 / math.pi)  # np.degrees is three times as slow


def free_space_path_loss_db(distance_m: Numbers, frequency_hz: float) -> Array:
    """Return the Friis free-space path loss between isotropic antennas, 20 log10(4 pi f d / c)."""
    return 20 * np.log10(distance_m) + 20 * math.log10(4 * math.pi * frequency_hz / SPEED_OF_LIGHT_M_S)


def los_probability(elevation_deg: Numbers, environment: str) -> Array:
    """Return the line-of-sight probability between a user and a UAV at an elevation angle in DEGREES.

    Raises:
        ValueError: for an unknown environment, or an angle outside 0 to 90 degrees.

    Source: Al-Hourani et al. 2014, P = 1 / (1 + a exp(-b (theta - a))) with the elevation angle theta and
    the constants a and b of `Surroundings`.
    """
    surroundings = _surroundings(environment)
    angles = np.asarray(elevation_deg)
    if angles.size and not (angles.min() >= 0 and angles.max() <= 90):
        raise ValueError(f"elevation_deg spans {angles.min()} to {angles.max()}: must be in degrees, 0 to 90")
    return _los_probability(angles, surroundings)


def mean_path_loss_db(
    ground_distance_m: Numbers, height_m: Numbers, frequency_hz: float, environment: str
) -> Array:
    """Return the mean path loss in decibels: the average of the losses with and without line of sight.

    Args:
        ground_distance_m: distance from the user to the point below the UAV.
        height_m: height of the UAV above the user.
        frequency_hz: carrier frequency.
        environment: one of `SURROUNDINGS`.

    Raises:
        ValueError: for an unknown environment, a negative distance, or a height or frequency not above 0.

    Source: Al-Hourani et al. 2014. The mean is the free-space loss plus P x `los_excess_db` +
    (1 - P) x `nlos_excess_db`, with P from `los_probability` and the excess losses from `Surroundings`.
    """
    surroundings, ground, height = _validate_link(ground_distance_m, height_m, frequency_hz, environment)
    loss = 10 * np.log10(ground * ground + height * height)
    loss += 20 * math.log10(4 * math.pi * frequency_hz / SPEED_OF_LIGHT_M_S)
    p_los = _los_probability(elevation_deg(ground, height), surroundings)
    loss += p_los * (surroundings.los_excess_db - surroundings.nlos_excess_db) + surroundings.nlos_excess_db
    return loss


def mean_gain(ground_distance_m: Numbers, height_m: Numbers, frequency_hz: float, environment: str) -> Array:
    """Return 10^(-L/10), the linear gain for L = `mean_path_loss_db`, without computing L, for speed."""
    surroundings, ground, height = _validate_link(ground_distance_m, height_m, frequency_hz, environment)
    gain = _los_probability(elevation_deg(ground, height), surroundings)
    # Excess loss and carrier term together need one multiplication and one addition before the exponential.
    gain *= (surroundings.nlos_excess_db - surroundings.los_excess_db) * _DECIBEL
    gain += (
        2 * math.log(SPEED_OF_LIGHT_M_S / (4 * math.pi * frequency_hz))
        - surroundings.nlos_excess_db * _DECIBEL
    )
    gain = np.exp(gain)
    gain /= ground * ground + height * height
    return gain


def max_coverage_elevation_deg(environment: str) -> float:
    """Return the UAV's elevation angle, seen from the cell edge, that gives the largest cell radius.

    The optimal height is the cell radius times the tangent of this angle. The angle depends neither on the
    carrier frequency nor on the path loss allowed at the edge: for a fixed mean loss, 20 log10 of the radius
    is a constant plus f(theta) = 20 log10 cos(theta) - eta(theta), where eta is the mean excess loss in
    decibels at elevation theta. This function maximizes f.

    Raises:
        ValueError: for an unknown environment.

    Source: problem of Al-Hourani et al. 2014; the values are computed, not taken from a table.
    """
    surroundings = _surroundings(environment)

    def shortfall_db(angle: float) -> float:
        p_los = _los_probability(np.asarray(angle), surroundings)
        excess = (
            surroundings.nlos_excess_db + (surroundings.los_excess_db - surroundings.nlos_excess_db) * p_los
        )
        return float(excess - 20 * math.log10(math.cos(math.radians(angle))))

    from scipy.optimize import minimize_scalar  # imported here because scipy.optimize is slow to import

    # "highrise" has a second, lower maximum near the horizon, so the search starts at the best whole degree.
    best = min(range(1, 89), key=shortfall_db)
    result = minimize_scalar(
        shortfall_db, bounds=(best - 1, best + 1), method="bounded", options={"xatol": 1e-9}
    )
    return float(result.x)


def sinr(
    power_w: Float[np.ndarray, "*rows uavs"],
    gain: Float[np.ndarray, "*rows uavs users"],
    sub_channel: Int[np.ndarray, "*rows uavs"],
    noise_w: float,
) -> Float[np.ndarray, "*rows uavs users"]:
    """Return the signal-to-interference-and-noise ratio from every UAV to every user.

    Only other UAVs on the same sub-channel interfere. A UAV that does not transmit has power 0.

    Raises:
        ValueError: if `noise_w` is not above 0.
    """
    if not noise_w > 0:
        raise ValueError(f"noise_w={noise_w}: must be above 0")
    received_w = gain * power_w[..., None]
    interferes = sub_channel[..., :, None] == sub_channel[..., None, :]
    interferes &= ~np.eye(interferes.shape[-1], dtype=bool)
    # Sum over the interferers. The total minus the own signal would lose weak interferers to rounding.
    interference_w = interferes.astype(received_w.dtype) @ received_w
    interference_w += noise_w
    received_w /= interference_w
    return received_w


def rate_bps(sinr: Numbers, bandwidth_hz: Numbers) -> Array:
    """Return the Shannon capacity B log2(1 + SINR) in bit/s."""
    return np.log1p(sinr) * (bandwidth_hz / math.log(2))


def noise_w(bandwidth_hz: float, density_dbm_per_hz: float = -174.0) -> float:
    """Return the noise power in watts: density times bandwidth. -174 dBm/Hz is thermal noise at 290 K."""
    return float(dbm_to_w(density_dbm_per_hz)) * bandwidth_hz


def tr36777_los_probability(ground_distance_m: Numbers, height_m: Numbers, scenario: str) -> Array:
    """Return the line-of-sight probability to an aerial terminal.

    Args:
        ground_distance_m: horizontal distance d2D.
        height_m: height of the aerial terminal over ground: more than 22.5 m (RMa-AV: 10 m), at most 300 m.
        scenario: UMa-AV, UMi-AV or RMa-AV: urban macro, urban micro or rural macro cell with aerial vehicles.

    Raises:
        ValueError: for an unknown scenario, a negative distance or a height outside the stated range.

    Source: 3GPP TR 36.777, table B-1. The table models the link from a base station on a mast to a UAV. The
    link is reciprocal, so that the table also holds if the UAV is the base station.
    """
    ground, height = _validate_aerial_link(ground_distance_m, height_m, scenario)
    logarithm = np.log10(height)
    if scenario == "UMa-AV":
        near, scale, always_los = 460 * logarithm - 700, 4300 * logarithm - 3800, height > 100
    elif scenario == "UMi-AV":
        near, scale, always_los = 294.05 * logarithm - 432.94, 233.98 * logarithm - 0.95, False
    else:
        near, scale = 1350.8 * logarithm - 1602, np.maximum(15021 * logarithm - 16053, 1000)
        always_los = height > 40
    near = np.maximum(near, 18)
    share = near / np.maximum(ground, near)
    return np.where(always_los, 1.0, share + np.exp(-ground / scale) * (1 - share))


def tr36777_path_loss_db(
    ground_distance_m: Numbers,
    height_m: Numbers,
    frequency_hz: float,
    scenario: str,
    line_of_sight: bool | np.ndarray,
    mast_height_m: float | None = None,
) -> Array:
    """Return the path loss to an aerial terminal, without shadowing.

    Args:
        ground_distance_m: horizontal distance d2D.
        height_m: height of the aerial terminal above ground, as in `tr36777_los_probability`. The formula
            without line of sight holds up to 100 m (UMa-AV) or 40 m (RMa-AV). Higher terminals always have
            line of sight.
        frequency_hz: carrier frequency in HERTZ (the report's formulas take gigahertz).
        scenario: UMa-AV, UMi-AV or RMa-AV: urban macro, urban micro or rural macro cell with aerial vehicles.
        line_of_sight: True with line of sight; broadcasts.
        mast_height_m: height of the terminal on the ground side. The default is the height of the report's
            base station: 25 m for UMa-AV, 10 m for UMi-AV, 35 m for RMa-AV. For a UAV that serves a user on
            the street, pass the user's height, 1.5 m.

    Raises:
        ValueError: for an unknown scenario, a negative distance, a height outside the range or a frequency
            not above 0.

    Source: 3GPP TR 36.777, table B-2.
    """
    ground, height = _validate_aerial_link(ground_distance_m, height_m, scenario)
    _check_frequency(frequency_hz)
    mast = _MAST_HEIGHT_M[scenario] if mast_height_m is None else mast_height_m
    # The far-field formulas do not hold right above the mast: clamp the distance to at least one metre.
    distance = np.maximum(np.hypot(ground, height - mast), 1)
    far, high, carrier = np.log10(distance), np.log10(height), 20 * math.log10(frequency_hz / 1e9)
    fortieth = 20 * math.log10(40 * math.pi / 3) + carrier
    if scenario == "UMa-AV":
        los_db = 28 + 22 * far + carrier
        nlos_db = -17.5 + (46 - 7 * high) * far + fortieth
    elif scenario == "UMi-AV":
        free = free_space_path_loss_db(distance, frequency_hz)
        los_db = np.maximum(free, 30.9 + (22.25 - 0.5 * high) * far + carrier)
        nlos_db = np.maximum(los_db, 32.4 + (43.2 - 7.6 * high) * far + carrier)
    else:
        los_db = np.maximum(23.9 - 1.8 * high, 20) * far + fortieth
        nlos_db = np.maximum(los_db, -12 + (35 - 5.3 * high) * far + fortieth)
    return np.where(line_of_sight, los_db, nlos_db)


def tr36777_shadowing_db(height_m: Numbers, scenario: str, line_of_sight: bool | np.ndarray) -> Array:
    """Return the standard deviation of log-normal shadowing around `tr36777_path_loss_db`.

    Raises:
        ValueError: for an unknown scenario or a height outside the range.

    Source: 3GPP TR 36.777, table B-3.
    """
    _, height = _validate_aerial_link(0.0, height_m, scenario)
    if scenario == "UMa-AV":
        los_db, nlos_db = 4.64 * np.exp(-0.0066 * height), 6.0
    elif scenario == "UMi-AV":
        los_db, nlos_db = np.maximum(5 * np.exp(-0.01 * height), 2), 8.0
    else:
        los_db, nlos_db = 4.2 * np.exp(-0.0046 * height), 6.0
    return np.where(line_of_sight, los_db, nlos_db)


_MAST_HEIGHT_M: Mapping[str, float] = MappingProxyType({"UMa-AV": 25.0, "UMi-AV": 10.0, "RMa-AV": 35.0})


def _surroundings(environment: str) -> Surroundings:
    if environment not in SURROUNDINGS:
        raise ValueError(f"environment={environment!r}: unknown; choose from {', '.join(SURROUNDINGS)}")
    return SURROUNDINGS[environment]


def _los_probability(angles: Array, surroundings: Surroundings) -> Array:
    # a exp(-b (theta - a)) = exp(ln a + b a - b theta): one multiplication and one addition before the
    # exponential.
    falling = angles * -surroundings.b
    falling += math.log(surroundings.a) + surroundings.a * surroundings.b
    falling = np.exp(falling)
    falling += 1
    return 1 / falling


def _validate_link(
    ground_distance_m: Numbers, height_m: Numbers, frequency_hz: float, environment: str
) -> tuple[Surroundings, np.ndarray, np.ndarray]:
    surroundings = _surroundings(environment)
    _check_frequency(frequency_hz)
    ground, height = np.asarray(ground_distance_m), np.asarray(height_m)
    _check_ground(ground)
    if height.size and not height.min() > 0:
        raise ValueError(f"height_m={height.min()}: must be above 0; a UAV flies higher than the users")
    return surroundings, ground, height


def _validate_aerial_link(
    ground_distance_m: Numbers, height_m: Numbers, scenario: str
) -> tuple[np.ndarray, np.ndarray]:
    if scenario not in _MAST_HEIGHT_M:
        raise ValueError(f"scenario={scenario!r}: unknown; choose from {', '.join(_MAST_HEIGHT_M)}")
    ground, height = np.asarray(ground_distance_m), np.asarray(height_m)
    _check_ground(ground)
    lowest = 10 if scenario == "RMa-AV" else 22.5
    if height.size and not (height.min() > lowest and height.max() <= 300):
        raise ValueError(
            f"height_m spans {height.min()} to {height.max()}: {scenario} needs heights above {lowest} and "
            "up to 300 m"
        )
    return ground, height


def _check_ground(ground: np.ndarray) -> None:
    if ground.size and not ground.min() >= 0:
        raise ValueError(f"ground_distance_m={ground.min()}: must be at least 0")


def _check_frequency(frequency_hz: float) -> None:
    if not frequency_hz > 0:
        raise ValueError(f"frequency_hz={frequency_hz}: must be above 0")
