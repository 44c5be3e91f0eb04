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
from scrubjay.agents.rl.masks.action_masks import refuse_mask
from scrubjay.agents.rl.observations import check_indices, leaf_spaces
from scrubjay.agents.rl.rollout import ActorInput, Environments, EnvStep
from scrubjay.agents.rl.spaces import Spaces


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
    """Environments of a vectorized team environment.

    With `action_masks=True` the observations of `env` must have the leaf `action_mask` besides those of their
    space.
    """

    def __init__(self, env: TeamEnv, action_masks: bool = False) -> None:
        self.env = env
        self.num_envs, self.num_agents = env.num_envs, len(env.possible_agents)
        spaces = Spaces(env.single_observation_space, env.single_action_space, self.num_agents, action_masks)
        self.leaves, self._masks = spaces.leaves, spaces.masks
        self._observation_leaves = leaf_spaces(env.single_observation_space)
        self._time = 0

    def reset(self, seed: int | None = None) -> ActorInput:  # noqa: D102
        try:
            observations, alive = self.env.reset(seed=seed)
        except EXITS as error:
            raise EnvExitError.from_error(error) from error
        self._time = 0
        self._check(observations, alive)
        starts = np.ones(self.num_envs, dtype=np.bool_)
        return ActorInput(observations, starts, np.array(alive, dtype=np.bool_))

    def step(self, actions: Any) -> EnvStep:  # noqa: D102
        try:
            step = self.env.step(actions)
        except EXITS as error:
            raise EnvExitError.from_error(error) from error
        self._time += 1
        self._check(step.observations, step.alive)

        def final(rows: np.ndarray) -> ActorInput:
            # Final observations only have the environments whose episodes ended.
            places = np.searchsorted(np.flatnonzero(step.dones), rows)
            leaves = {key: leaf[places] for key, leaf in step.final_observations.items()}
            return ActorInput(leaves, np.zeros(len(rows), dtype=np.bool_), step.final_alive[places])

        following = ActorInput(step.observations, step.dones, step.alive)
        return EnvStep(following, step.rewards, step.terminated, step.truncated, step.infos, final)

    def close(self) -> None:  # noqa: D102
        self.env.close()

    def _check(self, observations: Mapping[str, np.ndarray], alive: Bool[np.ndarray, "rows agents"]) -> None:
        check_indices(self._observation_leaves, observations)
        if self._masks is None:
            refuse_mask(observations, self._time)
        else:
            missing = np.full((*alive.shape, self._masks.num_actions), np.nan)
            masks = observations.get(self._masks.key, missing)
            self._masks.check(masks, f"step {self._time}", np.asarray(alive))
