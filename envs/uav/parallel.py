"""PettingZoo environment of the UAV downlink: wraps the batched environment with `num_envs=1`."""

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

from scrubjay.envs.batched_env import check_render_mode
from scrubjay.envs.uav.batch import ObservationFormat, UAVTeams
from scrubjay.envs.uav.config import UAVConfig
from scrubjay.envs.uav.observation import global_state, state_space


class UAVDownlink(ParallelEnv):
    """PettingZoo ParallelEnv of UAV base stations `uav_0`, `uav_1`, ...

    Dynamics: see `UAVWorld`. Observations: elements of `observation_space`; with `observation="flat"` one
    vector of `flat_space`, for wrappers that support only Box spaces, such as supersuit's. Actions: move
    (`move_table_m`), sub-channel, power level. The info dict of each UAV holds `UAVWorld.metrics` of the
    step: sum_rate_bps, fifth_percentile_rate_bps, jain, collisions. A UAV that fails or empties its battery
    is terminated. At `max_steps` all UAVs that still fly are truncated.
    """

    metadata = {"name": "uav_v0", "render_modes": ["rgb_array"], "render_fps": 4, "is_parallelizable": True}

    def __init__(
        self, config: UAVConfig, render_mode: str | None = None, observation: ObservationFormat = "parts"
    ) -> None:
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.config = config
        self.render_mode = render_mode
        self._teams = UAVTeams(1, config, observation)
        self._trail_m: list[np.ndarray] = []
        self.world = self._teams.world
        self.possible_agents = self._teams.possible_agents
        self.agents: list[str] = []
        self.state_space = state_space(config)
        # One space per agent, so that agents seed and sample independently.
        self._observation_spaces = {
            agent: copy.deepcopy(self._teams.single_observation_space) for agent in self.possible_agents
        }
        self._action_spaces = {
            agent: spaces.MultiDiscrete(self._teams.single_action_space.nvec)
            for agent in self.possible_agents
        }

    def observation_space(self, agent: str) -> spaces.Dict | spaces.Box:
        """Return the observation space of `agent`, always the same object."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.MultiDiscrete:
        """Return the action space of `agent`, always the same object."""
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reset the environment; without a seed the random stream continues. `options` are ignored."""
        if seed is not None:
            self._teams.seed_row(0, seeding.np_random(seed)[0])
        observations, alive = self._teams.reset()
        self.agents = self._list_agents(alive[0])
        self._trail_m = []
        self._record_trail()
        return self._split_by_agent(observations, self.agents), {agent: {} for agent in self.agents}

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, Any]]:
        """Advance one step; return observations, rewards, terminations, truncations and infos.

        Raises ValueError for a missing action or one outside the action space, and ResetNeeded if no agent is
        alive.
        """
        if not self.agents:
            raise ResetNeeded("step() was called with no live agents; call reset() first")
        action_array = np.zeros((1, len(self.possible_agents), 3), dtype=np.int64)
        for column, agent in enumerate(self.possible_agents):
            if agent in self.agents:
                if agent not in actions:
                    raise ValueError(f"no action for {agent}: pass an action for every agent in env.agents")
                if not self._action_spaces[agent].contains(np.asarray(actions[agent])):
                    raise ValueError(
                        f"action of {agent} is {actions[agent]!r}; expected an element of "
                        f"{self._action_spaces[agent]}"
                    )
                action_array[0, column] = actions[agent]
        acting_agents = self.agents
        rewards, terminated, truncated = self.world.step(action_array)
        metrics = {name: float(values[0]) for name, values in self.world.metrics().items()}
        self._record_trail()
        observations = self._split_by_agent(self._teams.observe(slice(None)), acting_agents)
        is_truncated = bool(truncated[0])
        columns = {agent: self.possible_agents.index(agent) for agent in acting_agents}
        terminations = {agent: bool(terminated[0, column]) for agent, column in columns.items()}
        truncations = {agent: is_truncated and not terminations[agent] for agent in acting_agents}
        self.agents = [] if is_truncated else self._list_agents(self.world.alive[0])
        return (
            observations,
            {agent: float(rewards[0, column]) for agent, column in columns.items()},
            terminations,
            truncations,
            {agent: dict(metrics) for agent in acting_agents},
        )

    def render(self) -> UInt8[np.ndarray, "height width 3"] | None:
        """Return an RGB image of the current state; None without a render mode."""
        if self.render_mode is None:
            return None
        if not self._trail_m:
            raise ResetNeeded("render() was called before reset(); call reset() first")
        # Imported here so that Pillow is loaded only for rendering.
        from scrubjay.envs.uav.rendering import build_scene, draw

        return draw(build_scene(self.world, 0, np.stack(self._trail_m)))

    def state(self) -> Float32[np.ndarray, " features"]:
        """Return the global state for a centralized critic, an element of `state_space`."""
        return global_state(self.world, slice(None))[0]

    def get_state(self) -> dict[str, Any]:
        """Return the full environment state as copies: plain data and numpy arrays."""
        return {**self._teams.get_state(), "agents": list(self.agents)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `get_state`. Raises ValueError if the state does not match this environment."""
        if "agents" not in state:
            raise ValueError("state lacks 'agents'; pass the return value of get_state()")
        self._teams.set_state(state)
        self.agents = list(state["agents"])
        self._trail_m = []
        self._record_trail()

    def _record_trail(self) -> None:
        if self.render_mode is not None:
            flies = self.world.alive[0][:, None]
            self._trail_m.append(np.where(flies, self.world.position_m[0, :, :2], np.nan))

    def _list_agents(self, alive: np.ndarray) -> list[str]:
        return [agent for agent, flies in zip(self.possible_agents, alive, strict=True) if flies]

    def _split_by_agent(self, observations: Mapping[str, np.ndarray], agents: list[str]) -> dict[str, Any]:
        columns = {agent: self.possible_agents.index(agent) for agent in agents}
        if self._teams.flat:
            return {agent: observations[""][0, column].copy() for agent, column in columns.items()}
        return {
            agent: {name: values[0, column].copy() for name, values in observations.items()}
            for agent, column in columns.items()
        }
