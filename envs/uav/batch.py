"""Many downlinks stepped at once, in the form that a team's sampler asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import MultiDiscrete
from gymnasium.utils import seeding
from jaxtyping import Bool, Int

from scrubjay.envs.batched import is_integer
from scrubjay.envs.teams import TeamStep
from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.observation import flat_space, flattened, observation_space, observe
from scrubjay.envs.uav.world import Rows, UAVWorld

Form = Literal["parts", "flat"]


class UAVTeams:
    """`num_envs` copies of one scenario; a row begins a new episode in the step that ends one.

    Seed s gives row i the seed s + i, and row i then equals `parallel_env` under that seed, bit for bit. The
    rules are in `UAVWorld`, which `world` is; the observations in `observation_space`, or with
    `observation="flat"` in `flat_space`, under the one leaf "".

    Actions, `[rows, agents, 3]`: move (`move_table_m`), sub-channel, power level.
    """

    def __init__(self, num_envs: int, config: UAVConfig, observation: Form = "parts") -> None:
        if observation not in ("parts", "flat"):
            raise ValueError(f"observation={observation!r}: choose from 'parts', 'flat'")
        if not is_integer(num_envs) or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}: expected an integer of at least 1")
        self.num_envs = int(num_envs)
        self.config = config
        self.world = UAVWorld(self.num_envs, config)
        self.possible_agents = [f"uav_{agent}" for agent in range(config.num_uavs)]
        self.flat = observation == "flat"
        self.single_observation_space = flat_space(config) if self.flat else observation_space(config)
        self.single_action_space = action_space(config)
        self._begun = False

    def reset(
        self, *, seed: int | None = None
    ) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, "rows agents"]]:
        """Begin an episode in every row; return observations and who is alive."""
        if seed is not None:
            for row in range(self.num_envs):
                self.seed_row(row, seeding.np_random(seed + row)[0])
        self.world.begin(self.world.all_rows)
        self._begun = True
        return self.observe(slice(None)), self.world.alive.copy()

    def observe(self, rows: Rows | slice) -> dict[str, np.ndarray]:
        """Return what all UAVs of `rows` see, leaves `[rows, agents, ...]` in fresh arrays."""
        parts = observe(self.world, rows)
        return {"": flattened(parts)} if self.flat else parts

    def seed_row(self, row: int, generator: np.random.Generator) -> None:
        """Let all of a row's future randomness come from `generator`."""
        self.world.streams.seed(np.array([row]), generator)

    def step(self, actions: Int[np.ndarray, "rows agents 3"]) -> TeamStep:
        """Step all rows; actions of UAVs that do not fly are passed over.

        Raises ValueError on actions outside the action space and ResetNeeded before the first reset.
        """
        if not self._begun:
            raise ResetNeeded("step() was called before reset()")
        world = self.world
        rewards, terminated, truncated = world.advance(self._checked(actions))
        infos = world.measures()
        ended = truncated | ~world.alive.any(axis=1)
        rows = np.flatnonzero(ended)
        observations = self.observe(slice(None))
        final_observations = {name: values[rows] for name, values in observations.items()}
        final_alive = world.alive[rows]
        if rows.size:
            world.begin(rows)
            for name, values in self.observe(rows).items():
                observations[name][rows] = values
        return TeamStep(
            observations=observations,
            alive=world.alive.copy(),
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            ended=ended,
            final_observations=final_observations,
            final_alive=final_alive,
            infos=infos,
        )

    def get_state(self) -> dict[str, Any]:
        """Return all that decides the future, random streams too, as copied plain data and numpy arrays."""
        if not self._begun:
            raise ResetNeeded("get_state() was called before reset()")
        return {"settings": asdict(self.config), **self.world.state()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if `state` is of other settings or another num_envs."""
        if state.get("settings") != asdict(self.config):
            raise ValueError(
                f"state is of settings {state.get('settings')}; this environment has {self.config}"
            )
        self.world.check_state(state)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go back to where `get_state` was called. Raises ValueError, changing nothing, as `check_state`."""
        self.check_state(state)
        self.world.restore(state)
        self._begun = True

    def close(self) -> None:
        """Release nothing: there is nothing to release."""

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions)
        expected = (*self.world.alive.shape, 3)
        if actions.shape != expected or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions are {actions.dtype}{actions.shape}; expected integers {expected}")
        taken = actions * self.world.alive[..., None]
        if taken.min() < 0 or (taken >= self.single_action_space.nvec).any():
            raise ValueError(f"actions={actions!r}: expected elements of {self.single_action_space}")
        return taken


def action_space(config: UAVConfig) -> MultiDiscrete:
    """Return the space of one UAV's action: move, sub-channel, power level."""
    return MultiDiscrete([config.num_moves, config.num_channels, config.power_levels])
