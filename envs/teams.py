"""Many teams stepped at once: one row is a team, one column an agent, all agents alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class TeamStep(NamedTuple):
    """What one step of every row came to. A row whose episode ended shows the first step of its next one."""

    observations: dict[str, np.ndarray]
    """Leaves of every agent's observation, `[rows, agents, ...]`; a space that is no Dict has the one leaf ""."""
    alive: Bool[np.ndarray, "rows agents"]
    """Who acts next."""
    rewards: Float[np.ndarray, "rows agents"]
    """Reward of the action just taken; 0 for those who were not alive."""
    terminated: Bool[np.ndarray, "rows agents"]
    """True where the action ended the agent's own episode for good."""
    truncated: Bool[np.ndarray, " rows"]
    """True where the row's episode was cut off."""
    ended: Bool[np.ndarray, " rows"]
    """True where a new episode has begun: the row was cut off, or nobody is left in it."""
    final_observations: dict[str, np.ndarray]
    """What the ended rows saw last, `[ended rows, agents, ...]`, in the order of rows."""
    final_alive: Bool[np.ndarray, "ended agents"]
    """Who was still alive then."""
    infos: dict[str, Float[np.ndarray, " rows"]]
    """What was measured in the step, such as the sum of rates."""
