"""Propulsion power model of a rotary-wing UAV."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

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
