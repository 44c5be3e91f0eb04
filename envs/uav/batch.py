"""Batched UAV downlink environments with the interface that the team sampler expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import MultiDiscrete
from gymnasium.utils import seeding
from jaxtyping import Bool, Int

from scrubjay.envs.batched_env import check_integer
from scrubjay.envs.teams import TeamStep
from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.observation import flat_space, flatten_observations, observation_space, observe
from scrubjay.envs.uav.world import Rows, UAVWorld

ObservationFormat = Literal["parts", "flat"]


class UAVTeams:
    """Batch of `num_envs` environments of one scenario with automatic reset in the step that ends an episode.

    `reset(seed=s)` seeds environment i with s + i. Environment i then equals `parallel_env` with seed s + i
    bit for bit. `UAVWorld` documents the dynamics; the attribute `world` is a `UAVWorld`. Observations are
    elements of `observation_space`. With `observation="flat"` the dict of observations has a single key, "",
    with elements of `flat_space`.

    Actions `[environments, agents, 3]` hold the move (an index of `move_table_m`), the sub-channel and the
    power level.
    """

    def __init__(self, num_envs: int, config: UAVConfig, observation: ObservationFormat = "parts") -> None:
        if observation not in ("parts", "flat"):
            raise ValueError(f"observation={observation!r}: choose from 'parts', 'flat'")
        self.num_envs = check_integer("num_envs", num_envs, 1)
        self.config = config
        self.world = UAVWorld(self.num_envs, config)
        self.possible_agents = [f"uav_{agent}" for agent in range(config.num_uavs)]
        self.flat = observation == "flat"
        self.single_observation_space = flat_space(config) if self.flat else observation_space(config)
        self.single_action_space = action_space(config)
        self._is_reset = False

    def reset(
        self, *, seed: int | None = None
    ) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "rows agents"]]:
        """Reset all environments; return the observations and the mask of alive agents."""
        if seed is not None:
            for row in range(self.num_envs):
                self.seed_row(row, seeding.np_random(seed + row)[0])
        self.world.reset(self.world.all_rows)
        self._is_reset = True
        return self.observe(slice(None)), self.world.alive.copy()

    def observe(self, rows: Rows | slice) -> dict[str, np.ndarray]:
        """Return the observations of all UAVs in environments `rows`: arrays `[environments, UAVs, ...]`."""
        parts = observe(self.world, rows)
        return {"": flatten_observations(parts)} if self.flat else parts

    def seed_row(self, row: int, generator: np.random.Generator) -> None:
        """Seed the random stream of environment `row` from `generator`."""
        self.world.streams.seed(np.array([row]), generator)

    def step(self, actions: Int[np.ndarray, "rows agents 3"]) -> TeamStep:
        """Step all environments; actions of dead UAVs are ignored.

        Raises ValueError for actions outside the action space and ResetNeeded before the first reset.
        """
        if not self._is_reset:
            raise ResetNeeded("step() was called before reset(); call reset() first")
        world = self.world
        rewards, terminated, truncated = world.step(self._validate_actions(actions))
        infos = world.metrics()
        dones = truncated | ~world.alive.any(axis=1)
        rows = np.flatnonzero(dones)
        observations = self.observe(slice(None))
        final_observations = {name: values[rows] for name, values in observations.items()}
        final_alive = world.alive[rows]
        if rows.size:
            world.reset(rows)
            for name, values in self.observe(rows).items():
                observations[name][rows] = values
        return TeamStep(
            observations=observations,
            alive=world.alive.copy(),
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            dones=dones,
            final_observations=final_observations,
            final_alive=final_alive,
            infos=infos,
        )

    def get_state(self) -> dict[str, Any]:
        """Return the full environment state, including random streams, as copied plain data and arrays."""
        if not self._is_reset:
            raise ResetNeeded("get_state() was called before reset(); call reset() first")
        return self.world.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state`.

        Raises ValueError, and changes nothing, if the state does not match this environment.
        """
        self.world.set_state(state)
        self._is_reset = True

    def close(self) -> None:
        """Do nothing; there are no resources to release."""

    def _validate_actions(self, actions: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions)
        expected = (*self.world.alive.shape, 3)
        if actions.shape != expected or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(
                f"actions have dtype and shape {actions.dtype}{actions.shape}; expected integers {expected}"
            )
        masked_actions = actions * self.world.alive[..., None]
        if masked_actions.min() < 0 or (masked_actions >= self.single_action_space.nvec).any():
            raise ValueError(f"actions={actions!r}: expected elements of {self.single_action_space}")
        return masked_actions


def action_space(config: UAVConfig) -> MultiDiscrete:
    """Return the action space of one UAV: move, sub-channel, power level."""
    return MultiDiscrete([config.num_moves, config.num_channels, config.power_levels])
