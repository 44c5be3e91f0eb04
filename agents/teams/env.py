"""What a learner asks of many teams stepped at once; `scrubjay.envs` has them, but is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float


class TeamStep(Protocol):
    """What one step of every row came to. A row whose episode ended shows the first step of its next one."""

    @property
    def observations(self) -> Mapping[str, np.ndarray]:
        """Leaves of observations, `[rows, agents, ...]`; a space that is no Dict has the one leaf ""."""
        ...

    @property
    def alive(self) -> Bool[np.ndarray, "rows agents"]:
        """Who acts next."""
        ...

    @property
    def rewards(self) -> Float[np.ndarray, "rows agents"]:
        """Reward of the action just taken; 0 for those who were not alive."""
        ...

    @property
    def terminated(self) -> Bool[np.ndarray, "rows agents"]:
        """True where the action ended the agent's own episode for good."""
        ...

    @property
    def truncated(self) -> Bool[np.ndarray, " rows"]:
        """True where the row's episode was cut off."""
        ...

    @property
    def ended(self) -> Bool[np.ndarray, " rows"]:
        """True where a new episode has begun: the row was cut off, or nobody is left in it."""
        ...

    @property
    def final_observations(self) -> Mapping[str, np.ndarray]:
        """What the ended rows saw last, `[ended rows, agents, ...]`, in the order of rows."""
        ...

    @property
    def final_alive(self) -> Bool[np.ndarray, "ended agents"]:
        """Who was still alive then."""
        ...

    @property
    def infos(self) -> Mapping[str, Float[np.ndarray, " rows"]]:
        """What was measured in the step, such as the sum of rates."""
        ...


class TeamEnv(Protocol):
    """Rows of teams whose agents are alike: one observation space and one action space for all."""

    num_envs: int
    possible_agents: list[str]

    @property
    def single_observation_space(self) -> spaces.Space:
        """Of one agent."""
        ...

    @property
    def single_action_space(self) -> spaces.Space:
        """Of one agent."""
        ...

    def reset(
        self, *, seed: int | None = None
    ) -> tuple[Mapping[str, np.ndarray], Bool[np.ndarray, "rows agents"]]:
        """Begin an episode in every row; return observations and who is alive."""
        ...

    def step(self, actions: np.ndarray) -> TeamStep:
        """Take the actions `[rows, agents, ...]`; those of agents that are not alive are passed over."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Return all that decides the future. May be absent: runs then begin new episodes when resumed."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go back to where `get_state` was called."""
        ...

    def close(self) -> None:
        """Release what the environments hold."""
        ...
