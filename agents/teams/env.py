"""Interface of vectorized multi-agent environments, and how a rollout steps them.

`scrubjay.envs` has implementations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float

from scrubjay.agents.rl.exits import EXITS, EnvExitError
from scrubjay.agents.rl.observations import check_indices, leaf_spaces
from scrubjay.agents.rl.rollout import ActorInput, Environments, EnvStep


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


class TeamEnvs(Environments):
    """Environments of a vectorized team environment."""

    def __init__(self, env: TeamEnv) -> None:
        self.env = env
        self.num_envs, self.num_agents = env.num_envs, len(env.possible_agents)
        self.leaves = leaf_spaces(env.single_observation_space)

    def reset(self, seed: int | None = None) -> ActorInput:  # noqa: D102
        try:
            observations, alive = self.env.reset(seed=seed)
        except EXITS as error:
            raise EnvExitError.from_error(error) from error
        check_indices(self.leaves, observations)
        starts = np.ones(self.num_envs, dtype=np.bool_)
        return ActorInput(observations, starts, np.array(alive, dtype=np.bool_))

    def step(self, actions: Any) -> EnvStep:  # noqa: D102
        try:
            step = self.env.step(actions)
        except EXITS as error:
            raise EnvExitError.from_error(error) from error
        check_indices(self.leaves, step.observations)

        def final(rows: np.ndarray) -> ActorInput:
            # Final observations only have the environments whose episodes ended.
            places = np.searchsorted(np.flatnonzero(step.dones), rows)
            leaves = {key: leaf[places] for key, leaf in step.final_observations.items()}
            return ActorInput(leaves, np.zeros(len(rows), dtype=np.bool_), step.final_alive[places])

        following = ActorInput(step.observations, step.dones, step.alive)
        return EnvStep(following, step.rewards, step.terminated, step.truncated, step.infos, final)

    def close(self) -> None:  # noqa: D102
        self.env.close()
