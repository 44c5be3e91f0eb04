"""One downlink as a PettingZoo environment: a row of the batched world, so that they cannot drift apart."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from jaxtyping import Float32, UInt8
from pettingzoo import ParallelEnv

from scrubjay.envs.uav.batch import Form, UAVTeams
from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.observation import global_state, state_space


class UAVDownlink(ParallelEnv):
    """UAV base stations `uav_0`, `uav_1`, ... that decide where to fly, on which sub-channel, at what power.

    Rules: `UAVWorld`. Observations: `observation_space`, or with `observation="flat"` one vector,
    `flat_space`, for wrappers that take nothing else, such as supersuit's. Actions: move (`move_table_m`),
    sub-channel, power level. `infos` of every UAV hold what `UAVWorld.measures` says of the step:
    sum_rate_bps, fifth_percentile_rate_bps, jain, collisions. A UAV that drops out is terminated; at
    `max_steps` all that still fly are truncated.
    """

    metadata = {"name": "uav_v0", "render_modes": ["rgb_array"], "render_fps": 4, "is_parallelizable": True}

    def __init__(
        self, config: UAVConfig, render_mode: str | None = None, observation: Form = "parts"
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            choices = ", ".join(self.metadata["render_modes"])
            raise ValueError(f"render_mode={render_mode!r}: choose from {choices}, or None")
        self.config = config
        self.render_mode = render_mode
        self._teams = UAVTeams(1, config, observation)
        self._trail_m: list[np.ndarray] = []
        self.world = self._teams.world
        self.possible_agents = self._teams.possible_agents
        self.agents: list[str] = []
        self.state_space = state_space(config)
        # Spaces of its own for each agent, which seed and sample independently.
        self._observation_spaces = {
            agent: copy.deepcopy(self._teams.single_observation_space) for agent in self.possible_agents
        }
        self._action_spaces = {
            agent: spaces.MultiDiscrete(self._teams.single_action_space.nvec)
            for agent in self.possible_agents
        }

    def observation_space(self, agent: str) -> spaces.Dict | spaces.Box:
        """Return the space of that agent's observation, the same object each time."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.MultiDiscrete:
        """Return the space of that agent's action, the same object each time."""
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; without a seed the random stream goes on. No options are known."""
        if seed is not None:
            self._teams.seed_row(0, seeding.np_random(seed)[0])
        observations, alive = self._teams.reset()
        self.agents = self._named(alive[0])
        self._trail_m = []
        self._remember()
        return self._each(observations, self.agents), {agent: {} for agent in self.agents}

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        """Step once; return observations, rewards, terminations, truncations, infos of all that flew.

        Raises ValueError on an action outside the action space or a missing one, and ResetNeeded once nobody
        flies.
        """
        if not self.agents:
            raise ResetNeeded("step() was called while nobody flies; call reset() first")
        chosen = np.zeros((1, len(self.possible_agents), 3), dtype=np.int64)
        for column, agent in enumerate(self.possible_agents):
            if agent in self.agents:
                if agent not in actions:
                    raise ValueError(f"no action for {agent}, which flies")
                if not self._action_spaces[agent].contains(np.asarray(actions[agent])):
                    raise ValueError(
                        f"action of {agent} is {actions[agent]!r}; expected an element of "
                        f"{self._action_spaces[agent]}"
                    )
                chosen[0, column] = actions[agent]
        flew = self.agents
        rewards, terminated, truncated = self.world.advance(chosen)
        measures = {name: float(values[0]) for name, values in self.world.measures().items()}
        self._remember()
        observations = self._each(self._teams.observe(slice(None)), flew)
        over = bool(truncated[0])
        columns = {agent: self.possible_agents.index(agent) for agent in flew}
        terminations = {agent: bool(terminated[0, column]) for agent, column in columns.items()}
        truncations = {agent: over and not terminations[agent] for agent in flew}
        self.agents = [] if over else self._named(self.world.alive[0])
        return (
            observations,
            {agent: float(rewards[0, column]) for agent, column in columns.items()},
            terminations,
            truncations,
            {agent: dict(measures) for agent in flew},
        )

    def render(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """Return a picture of the last step; None without a render mode. Trails are kept only with one."""
        if self.render_mode is None:
            return None
        if not self._trail_m:
            raise ResetNeeded("render() was called before reset()")
        # Here, so that those who draw nothing need not load what draws.
        from scrubjay.envs.uav.rendering import draw
        from scrubjay.envs.uav.scene import scene_of

        return draw(scene_of(self.world, 0, np.stack(self._trail_m)))

    def state(self) -> Float32[np.ndarray, " features"]:
        """Return what a central critic may see, an element of `state_space`: see `global_state`."""
        return global_state(self.world, slice(None))[0]

    def get_state(self) -> dict[str, Any]:
        """Return all that decides the future, as copied plain data and numpy arrays."""
        return {**self._teams.get_state(), "agents": list(self.agents)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go back to exactly where `get_state` was called. Raises ValueError on a state of another kind."""
        if "agents" not in state:
            raise ValueError("state lacks 'agents'; pass what get_state() returned")
        self._teams.set_state(state)
        self.agents = list(state["agents"])
        self._trail_m = []
        self._remember()

    def _remember(self) -> None:
        if self.render_mode is not None:
            flies = self.world.alive[0][:, None]
            self._trail_m.append(np.where(flies, self.world.position_m[0, :, :2], np.nan))

    def _named(self, alive: np.ndarray) -> list[str]:
        return [agent for agent, flies in zip(self.possible_agents, alive, strict=True) if flies]

    def _each(self, observations: Mapping[str, np.ndarray], agents: list[str]) -> dict[str, Any]:
        columns = {agent: self.possible_agents.index(agent) for agent in agents}
        if self._teams.flat:
            return {agent: observations[""][0, column].copy() for agent, column in columns.items()}
        return {
            agent: {name: values[0, column].copy() for name, values in observations.items()}
            for agent, column in columns.items()
        }
