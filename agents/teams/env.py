"""Interface of vectorized multi-agent environments; `scrubjay.envs` has implementations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float


class TeamStep(Protocol):
    """Result of one step of all environments.

    Where an episode has ended, `observations` and `alive` belong to the first step of the next episode.
    """

    @property
    def observations(self) -> Mapping[str, np.ndarray]:
        """Leaves of the observations, `[num_envs, agents, ...]`; a space without keys has one leaf ""."""
        ...

    @property
    def alive(self) -> Bool[np.ndarray, "rows agents"]:
        """True for agents that act next."""
        ...

    @property
    def rewards(self) -> Float[np.ndarray, "rows agents"]:
        """Reward of each action; 0 for agents that were not alive."""
        ...

    @property
    def terminated(self) -> Bool[np.ndarray, "rows agents"]:
        """True where the action led to a terminal state of the agent."""
        ...

    @property
    def truncated(self) -> Bool[np.ndarray, " rows"]:
        """True where the episode of the environment was truncated."""
        ...

    @property
    def dones(self) -> Bool[np.ndarray, " rows"]:
        """True where a new episode began because the last was truncated or had no living agents left."""
        ...

    @property
    def final_observations(self) -> Mapping[str, np.ndarray]:
        """Last observations of the episodes that ended, `[ended, agents, ...]`, ordered by environment."""
        ...

    @property
    def final_alive(self) -> Bool[np.ndarray, "ended agents"]:
        """True for agents that were alive in `final_observations`."""
        ...

    @property
    def infos(self) -> Mapping[str, Float[np.ndarray, " rows"]]:
        """Metrics of the step by name, with one value per environment."""
        ...


class TeamEnv(Protocol):
    """Interface of vectorized team environments; all agents have the same observation and action space."""

    num_envs: int
    possible_agents: list[str]

    @property
    def single_observation_space(self) -> spaces.Space:
        """Observation space of one agent."""
        ...

    @property
    def single_action_space(self) -> spaces.Space:
        """Action space of one agent."""
        ...

    def reset(
        self, *, seed: int | None = None
    ) -> tuple[Mapping[str, np.ndarray], Bool[np.ndarray, "rows agents"]]:
        """Reset every environment; return observations and alive masks."""
        ...

    def step(self, actions: np.ndarray) -> TeamStep:
        """Take `actions`, `[num_envs, agents, ...]`. Actions of agents that are not alive are ignored."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Return the complete state. Optional: without this method a resumed run begins new episodes."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state that `get_state` returned."""
        ...

    def close(self) -> None:
        """Release the resources of the environments."""
        ...
