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
from scrubjay.agents.rl.observations import (
    check_info_has_no_mask,
    check_observation,
    check_space_has_no_mask,
    leaf_spaces,
    leaf_values,
)
from scrubjay.agents.rl.rollout import Actor, ActorInput, Environments, EnvStep, RolloutStep, rollout
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

    def reset(self, seed: int | None = None) -> ActorInput:  # noqa: D102
        self.is_over = False
        with environment_errors(self._name):
            self.observation, info = self.env.reset(seed=seed)
            check_info_has_no_mask(info)
            return self._inputs()

    def step(self, actions: Any) -> EnvStep:  # noqa: D102
        with environment_errors(self._name):
            self.observation, reward, terminated, truncated, info = self.env.step(select_row(actions, 0))
            check_info_has_no_mask(info)
            following = self._inputs()
        self.is_over = bool(terminated or truncated)
        ends = np.array([[bool(terminated)], [bool(truncated)]])
        return EnvStep(following, np.array([float(reward)]), ends[0], ends[1], info, lambda _: following)

    def _inputs(self) -> ActorInput:
        check_observation(self.env.observation_space, self.observation)
        leaves = {key: np.asarray(leaf)[None] for key, leaf in leaf_values(self.observation).items()}
        return ActorInput(leaves, np.zeros(1, dtype=np.bool_))


class OneTeam(_OneEnvironment):
    """PettingZoo environment of a team; errors name it by `name`."""

    rewards: Mapping[str, Any]
    """Rewards of the last step by agent."""

    def __init__(self, env: ParallelEnv[Any, Any, Any], name: str) -> None:
        self.env, self._name = env, name
        self.agents = list(env.possible_agents)
        self.num_agents = len(self.agents)
        space = env.observation_space(self.agents[0])
        with environment_errors(name):
            check_space_has_no_mask(space)
        self.leaves = leaf_spaces(space)

    def reset(self, seed: int | None = None) -> ActorInput:  # noqa: D102
        with environment_errors(self._name):
            self.observation, infos = self.env.reset(seed=seed)
            _check_masks(infos)
            return self._inputs(start=True)

    def step(self, actions: Any) -> EnvStep:  # noqa: D102
        acting = self.living(actions[0])
        with environment_errors(self._name):
            self.observation, self.rewards, terminations, truncations, infos = self.env.step(acting)
            _check_masks(infos)
            following = self._inputs(start=False)
        rewards = np.array([[float(self.rewards.get(agent, 0)) for agent in self.agents]])
        terminated = np.array([[bool(terminations.get(agent)) for agent in self.agents]])
        truncated = np.array([any(truncations.values())])
        return EnvStep(following, rewards, terminated, truncated, infos, lambda _: following)

    def living(self, values: Any) -> dict[str, Any]:
        """Return the values of the agents that act next, by agent; `values` has an entry for every agent."""
        present = self.env.agents
        return {name: value for name, value in zip(self.agents, values, strict=True) if name in present}

    def _inputs(self, start: bool) -> ActorInput:
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
        return ActorInput(batch, np.array([start]), alive)


def _check_masks(infos: Any) -> None:
    """Raise EnvFaultError if the info of an agent has an action mask, which policies would ignore."""
    for info in infos.values() if isinstance(infos, Mapping) else ():
        if isinstance(info, Mapping):
            check_info_has_no_mask(info)
