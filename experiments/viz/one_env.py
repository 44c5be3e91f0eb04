"""One environment as a rollout sees it, for films and pages: a gymnasium environment or a PettingZoo team.

The environment is not reset at the end of its episode, so that its last state can be shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from pettingzoo import ParallelEnv

from scrubjay.agents.rl.composite import select_row
from scrubjay.agents.rl.masks.action_masks import MASK, ActionMasks, read_mask, refuse_mask
from scrubjay.agents.rl.observations import (
    check_observation,
    leaf_spaces,
    leaf_values,
)
from scrubjay.agents.rl.rollout import Actor, ActorInput, Environments, EnvStep, RolloutStep, rollout
from scrubjay.envs.teams import read_masks
from scrubjay.experiments.tasks.faults import environment_errors


class _OneEnvironment(Environments):
    """Single environment without a reset at the end of an episode."""

    num_envs = 1
    env: Any
    observation: Any
    """Last observation of the environment."""
    is_over = False
    """True if the episode has ended."""

    def play(self, actor: Actor, inputs: ActorInput, max_steps: int) -> Iterator[RolloutStep]:
        """Yield the steps of one episode, at most `max_steps`; `inputs` are the result of `reset`."""
        for step in itertools.islice(rollout(self, actor, inputs), 0 if self.is_over else max_steps):
            yield step
            if self.is_over:
                return

    def close(self) -> None:
        """Release the resources of the environment."""
        self.env.close()

    @property
    def frames_per_second(self) -> float:
        """Playback speed of a film."""
        metadata = getattr(self.env, "metadata", {})  # ParallelEnv does not define it
        return float(metadata.get("render_fps") or 10)


class OneEnv(_OneEnvironment):
    """Gymnasium environment; errors name it by `name`."""

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        self.env, self._name = env, name
        self.masks: ActionMasks | None = None
        """Action masks of the environment, after the first reset."""
        self._time = 0

    def reset(self, seed: int | None = None) -> ActorInput:  # noqa: D102
        self.is_over, self._time = False, 0
        with environment_errors(self._name):
            self.observation, info = self.env.reset(seed=seed)
            is_outside = read_mask(self.env, info) is not None
            self.masks = ActionMasks.find(self.env.observation_space, self.env.action_space, is_outside)
            return self._inputs(info)

    def step(self, actions: Any) -> EnvStep:  # noqa: D102
        with environment_errors(self._name):
            self.observation, reward, terminated, truncated, info = self.env.step(select_row(actions, 0))
            self.is_over, self._time = bool(terminated or truncated), self._time + 1
            following = self._inputs(info)
        ends = np.array([[bool(terminated)], [bool(truncated)]])
        return EnvStep(following, np.array([float(reward)]), ends[0], ends[1], info, lambda _: following)

    def _inputs(self, info: Mapping[str, Any]) -> ActorInput:
        check_observation(self.env.observation_space, self.observation)
        leaves = {key: np.asarray(leaf)[None] for key, leaf in leaf_values(self.observation).items()}
        if self.masks is None:
            refuse_mask(info, self._time)
        elif not self.is_over:  # no action follows a final observation
            leaves[self.masks.key] = self.masks.read(self.env, self.observation, info, self._time)[None]
        return ActorInput(leaves, np.zeros(1, dtype=np.bool_))


class OneTeam(_OneEnvironment):
    """PettingZoo environment of a team; errors name it by `name`."""

    rewards: Mapping[str, Any]
    """Rewards of the last step by agent."""

    def __init__(self, env: ParallelEnv[Any, Any, Any], name: str) -> None:
        self.env, self._name = env, name
        self.agents = list(env.possible_agents)
        self.num_agents = len(self.agents)
        self._spaces = env.observation_space(self.agents[0]), env.action_space(self.agents[0])
        self.leaves = leaf_spaces(self._spaces[0])
        self.masks: ActionMasks | None = None
        """Action masks of the agents, after the first reset."""
        self._time = 0

    def reset(self, seed: int | None = None) -> ActorInput:  # noqa: D102
        self._time = 0
        with environment_errors(self._name):
            self.observation, infos = self.env.reset(seed=seed)
            self.masks = ActionMasks.find(*self._spaces, outside=bool(read_masks(self.env, infos)))
            return self._inputs(infos)

    def step(self, actions: Any) -> EnvStep:  # noqa: D102
        acting = self.living(actions[0])
        with environment_errors(self._name):
            self.observation, self.rewards, terminations, truncations, infos = self.env.step(acting)
            self._time += 1
            following = self._inputs(infos)
        rewards = np.array([[float(self.rewards.get(agent, 0)) for agent in self.agents]])
        terminated = np.array([[bool(terminations.get(agent)) for agent in self.agents]])
        truncated = np.array([any(truncations.values())])
        return EnvStep(following, rewards, terminated, truncated, infos, lambda _: following)

    def living(self, values: Any) -> dict[str, Any]:
        """Return the values of the agents that act next, by agent; `values` has an entry for every agent."""
        present = self.env.agents
        return {name: value for name, value in zip(self.agents, values, strict=True) if name in present}

    def _inputs(self, infos: Mapping[str, Any]) -> ActorInput:
        """Return the observations of all agents; the entries of agents that have left are zero."""
        batch = {
            key: np.zeros((1, len(self.agents), *(leaf.shape or ())), dtype=leaf.dtype)
            for key, leaf in self.leaves.items()
        }
        for column, agent in enumerate(self.agents):
            if agent in self.observation:
                for key, value in leaf_values(self.observation[agent]).items():
                    batch[key][0, column] = value
        alive = np.array([[agent in self.env.agents for agent in self.agents]])
        self.is_over = not self.env.agents
        if self.masks is None:
            refuse_mask(read_masks(self.env, infos) and {MASK: infos}, self._time)
        else:
            if not self.masks.in_observation:
                by_agent = read_masks(self.env, infos)
                missing = [np.nan] * self.masks.num_actions
                batch[MASK] = np.array([[by_agent.get(agent, missing) for agent in self.agents]])
            self.masks.check(batch[self.masks.key], f"step {self._time}", alive)
        return ActorInput(batch, np.array([self._time == 0]), alive)
