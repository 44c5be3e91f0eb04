"""A scripted environment with known observations and rewards, and small policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from scrubjay.agents import Policy, PolicyConfig
from scrubjay.memory import MemoryConfig
from scrubjay.memory.gru import GRUConfig

SCRIPT = ((3, "terminated"), (2, "truncated"), (5, "truncated"), (1, "terminated"), (4, "truncated"))
"""Lengths and ends of successive episodes."""


class ScriptedEnv(gymnasium.Env):
    """Environment whose episodes follow SCRIPT from the entry `row` on; all outputs are deterministic."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, row: int = 0) -> None:
        self.row = row
        self.episode = -1
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.episode += 1
        self.time = 0
        return self._observation(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        length, end = SCRIPT[(self.row + self.episode) % len(SCRIPT)]
        self.time += 1
        done = self.time == length
        reward = 0.1 * self.row + self.time + 0.5 * float(action)
        info = {"success": self.episode % 2 == 0} if done else {}
        return (
            self._observation(action),
            reward,
            done and end == "terminated",
            done and end == "truncated",
            info,
        )

    def get_state(self) -> dict[str, int]:
        return {"episode": self.episode, "time": self.time}

    def set_state(self, state: dict[str, int]) -> None:
        self.episode, self.time = state["episode"], state["time"]

    def _observation(self, action: Any) -> np.ndarray:
        return np.array([np.cos(self.episode + self.row), self.time / 5, float(action)], dtype=np.float32)


@pytest.fixture
def scripted_envs() -> Callable[[int], SyncVectorEnv]:
    def make(num_envs: int, mode: AutoresetMode = AutoresetMode.SAME_STEP) -> SyncVectorEnv:
        factories = [lambda row=row: ScriptedEnv(row) for row in range(num_envs)]
        return SyncVectorEnv(factories, autoreset_mode=mode)

    return make


@pytest.fixture
def make_policy() -> Callable[..., Policy]:
    def make(
        observation_space: spaces.Space = ScriptedEnv.observation_space,
        action_space: spaces.Space = ScriptedEnv.action_space,
        memory: MemoryConfig | None = None,
        reconstruction: bool = False,
        seed: int = 0,
    ) -> Policy:
        torch.manual_seed(seed)
        config = PolicyConfig(memory or GRUConfig(dim=8), reconstruction)
        policy = Policy(observation_space, action_space, config)
        for parameter in policy.actor.parameters():
            # Far from uniform, so that a wrong action or state changes every number.
            torch.nn.init.normal_(parameter, std=0.7)
        return policy

    return make
