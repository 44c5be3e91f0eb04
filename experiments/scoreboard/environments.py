"""Environments of the scoreboard: outside environments with observations that every contender can read.

Each function is an environment of `EnvConfig`, such as `scrubjay.experiments.scoreboard.environments:bsuite`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

VELOCITIES: dict[str, tuple[int, ...]] = {
    "Pendulum-v1": (2,),
    "HalfCheetah-v5": tuple(range(8, 17)),
    "Hopper-v5": tuple(range(5, 11)),
}
"""Indices of the velocities in the observation, from the tables of gymnasium's documentation."""


class HiddenEntries(gymnasium.ObservationWrapper[Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Wrapper that removes some entries of a vector observation."""

    def __init__(self, env: gymnasium.Env[Any, Any], hidden_indices: Sequence[int]) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, hidden_indices=hidden_indices)
        super().__init__(env)
        box = env.observation_space
        if not isinstance(box, spaces.Box) or len(box.shape) != 1:
            raise TypeError(f"observation space {box}: must be a Box with one axis")
        wrong = [index for index in hidden_indices if not 0 <= index < box.shape[0]]
        if wrong:
            raise ValueError(f"hidden_indices={wrong}: must be from 0 to {box.shape[0] - 1}")
        self._rest = np.setdiff1d(np.arange(box.shape[0]), hidden_indices)
        self.observation_space = spaces.Box(box.low[self._rest], box.high[self._rest], dtype=box.dtype.type)

    def observation(self, observation: Any) -> np.ndarray:
        """Return the observation without the hidden entries."""
        return observation[self._rest]


def hide_velocities(name: str) -> gymnasium.Env[Any, Any]:
    """Return an environment whose observations have no velocities; `name` is a key of `VELOCITIES`."""
    if name not in VELOCITIES:
        raise ValueError(f"name={name!r}: choose from {', '.join(VELOCITIES)}")
    return HiddenEntries(gymnasium.make(name), VELOCITIES[name])


class Symbols(gymnasium.ObservationWrapper[Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """MiniGrid's view as one vector of zeros and ones: object, color and state of each cell, one-hot.

    The direction and the mission are dropped. The mission must be the same in all episodes.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        from minigrid.wrappers import OneHotPartialObsWrapper  # pyright: ignore[reportMissingImports]

        gymnasium.utils.RecordConstructorArgs.__init__(self)
        super().__init__(OneHotPartialObsWrapper(env))
        size = int(np.prod(self.env.observation_space["image"].shape))  # pyright: ignore[reportIndexIssue]
        self.observation_space = spaces.Box(0.0, 1.0, (size,), np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        """Return the flat one-hot view."""
        return observation["image"].ravel().astype(np.float32)


def minigrid(name: str) -> gymnasium.Env[Any, Any]:
    """Return a MiniGrid environment with the observations of `Symbols`."""
    importlib.import_module("minigrid")  # registers the environments
    return Symbols(gymnasium.make(name))


class BsuiteEnv(gymnasium.Env[np.ndarray, int]):
    """Environment of bsuite as a gymnasium environment with flat observations.

    bsuite takes a seed only when an environment is created. A reset with a seed therefore creates a new one.
    """

    def __init__(self, module: str, class_name: str, settings: dict[str, Any]) -> None:
        self._class = getattr(importlib.import_module(f"bsuite.environments.{module}"), class_name)
        self._settings = settings
        self._env = self._class(**settings)
        size = int(np.prod(self._env.observation_spec().shape))
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = spaces.Discrete(int(self._env.action_spec().num_values))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self._env = self._class(**self._settings, seed=seed % 2**32)
        return self._flatten(self._env.reset()), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one action; a last step with a discount above 0 is a truncation."""
        step = self._env.step(int(action))
        is_terminal = step.last() and step.discount == 0
        return self._flatten(step), float(step.reward), is_terminal, step.last() and not is_terminal, {}

    def _flatten(self, step: Any) -> np.ndarray:
        return np.asarray(step.observation, np.float32).ravel()


_BSUITE = {
    "catch": ("catch", "Catch"),
    "memory": ("memory_chain", "MemoryChain"),
    "umbrella": ("umbrella_chain", "UmbrellaChain"),
}


def bsuite(name: str, **settings: Any) -> gymnasium.Env[Any, Any]:
    """Return an environment of bsuite; `name` is catch, memory or umbrella."""
    if name not in _BSUITE:
        raise ValueError(f"name={name!r}: choose from {', '.join(_BSUITE)}")
    return BsuiteEnv(*_BSUITE[name], settings)
