"""Random actions of an agent or a team, as a baseline. Action masks are respected."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from jaxtyping import Bool

from scrubjay.agents.rl.masks.action_masks import is_mask, sample_action
from scrubjay.agents.rl.rollout import ActorInput, Choice


class RandomActor:
    """Actor of one agent or a team in each environment that samples allowed actions of `space`."""

    def __init__(self, space: spaces.Space, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed}: must not be negative")
        self._space = copy.deepcopy(space)
        # An environment with the same seed must not draw the numbers that choose the actions.
        self._space.seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0] >> 1))

    def act(self, inputs: ActorInput) -> Choice:
        """Sample an action for every agent of every environment."""
        masks = next(
            (np.asarray(leaf) > 0 for key, leaf in inputs.observations.items() if is_mask(key)), None
        )
        if inputs.alive is not None:
            return Choice(
                np.stack([self._sample_team(row, masks, inputs.alive) for row in range(len(inputs.alive))])
            )
        actions = [
            sample_action(self._space, None if masks is None else masks[row])
            for row in range(len(inputs.starts))
        ]
        batch = create_empty_array(self._space, len(actions))
        return Choice(concatenate(self._space, actions, batch))

    def _sample_team(
        self, row: int, masks: np.ndarray | None, alive: Bool[np.ndarray, "envs agents"]
    ) -> np.ndarray:
        return np.stack(
            [
                sample_action(self._space, masks[row, agent] if masks is not None and is_alive else None)
                for agent, is_alive in enumerate(alive[row])
            ]
        )


class RandomRule:
    """Rule of a team that samples allowed actions, in a batch of environments or in one ParallelEnv."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._actor: RandomActor | None = None

    def __call__(
        self,
        env: Any,
        observations: Mapping[str, np.ndarray],
        alive: Bool[np.ndarray, "envs agents"],
        start: Bool[np.ndarray, " envs"],
    ) -> np.ndarray:
        """Return actions `[envs, agents, ...]`."""
        if self._actor is None:
            is_batch = hasattr(env, "single_action_space")
            space = env.single_action_space if is_batch else env.action_space(env.possible_agents[0])
            self._actor = RandomActor(space, self._seed)
        return self._actor.act(ActorInput(observations, start, alive)).actions
