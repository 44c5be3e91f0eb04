"""Samplers, which step a vector environment with a policy and return segments."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from scrubjay.agents.rl.observations import (
    check_finite,
    check_indices,
    check_rewards,
    from_leaves,
    leaf_dtype,
    leaf_spaces,
    leaf_values,
)
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.segment import Observation, Segment
from scrubjay.agents.rl.snapshots import can_restore, load_env, save_env
from scrubjay.memory.contract.stepper import Stepper

_log = logging.getLogger(__name__)

MEASURES = ("reached",)
"""Final infos of an episode to record in addition to `info["success"]`: `reached` is 1 if a choice was
made."""


@dataclass(frozen=True)
class EpisodeStats:
    """Statistics of one finished episode."""

    episode_return: float
    """Undiscounted sum of rewards."""
    length: int
    """Number of actions."""
    success: float | None = None
    """Value of `info["success"]` at the end of the episode, if present."""
    measures: dict[str, float] = field(default_factory=dict)
    """Other measures by name. For a single agent: the value of `info[name]` at the end of the episode, for
    each name in `MEASURES` that is present. For a team: the mean of each metric in the environment's
    `infos` over the steps of the episode."""


class BaseSampler(ABC):
    """Base class of samplers, which hold environments with their last observations and memory states.

    Raises ValueError if `segment_length` is below 1.
    """

    policy: Any
    num_envs: int
    _starts: np.ndarray
    _returns: np.ndarray
    _lengths: np.ndarray
    _state: Any
    _current: dict[str, np.ndarray]

    def __init__(self, env: Any, policy: Any, segment_length: int, seed: int = 0) -> None:
        if segment_length < 1:
            raise ValueError(f"segment_length={segment_length}: must be at least 1")
        self.env = env
        self.policy = policy
        self.segment_length = segment_length
        self.num_envs = env.num_envs
        self.seconds = {"env": 0.0, "policy": 0.0}
        """Total wall time in seconds, in the environment and in everything else."""
        self._leaves = leaf_spaces(env.single_observation_space)
        self._generator = torch.Generator(device=policy.device).manual_seed(seed)
        self._episodes: list[Any] = []
        self._begin(seed)

    @abstractmethod
    def collect(self) -> Any:
        """Collect and return the next segment. Later calls do not change its tensors."""

    def restart(self, seed: int) -> None:
        """Reset every environment, and seed all random number generators with `seed`."""
        self._generator.manual_seed(seed)
        self._begin(seed)

    def pop_episodes(self) -> list[Any]:
        """Return the episodes that ended since the last call, in order, and clear the list."""
        episodes, self._episodes = self._episodes, []
        return episodes

    def get_state(self) -> dict[str, Any]:
        """Return the sampler's state: tensors, plain values and, if available, the environment's state."""
        return {
            "generator": self._generator.get_state(),
            "device": self.policy.device.type,
            "memory": {key: value.clone() for key, value in self._state.items()},
            "observation": {key: torch.from_numpy(value.copy()) for key, value in self._current.items()},
            "starts": self._starts.tolist(),
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "episodes": [asdict(episode) for episode in self._episodes],
            "env": self._save_env() if self.restores_env else None,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` returned. If `restores_env` is False, every environment is reset.

        The policy's weights must be restored first. Raises ValueError if `state` is from a sampler with
        another number of environments.
        """
        if len(state["lengths"]) != self.num_envs:
            raise ValueError(
                f"the state has {len(state['lengths'])} environments; this sampler has {self.num_envs}"
            )
        self._restore_generator(state)
        self._episodes = [self._build_episode(fields) for fields in state["episodes"]]
        if state["env"] is None or not self.restores_env:
            # The seed depends on the progress of the run, so that the first episodes are not repeated.
            self._begin(
                seed=int(torch.randint(2**31, (), generator=self._generator, device=self.policy.device))
            )
            return
        self._load_env(state["env"])
        self._restore_rows(state)

    @property
    @abstractmethod
    def restores_env(self) -> bool:
        """True if `set_state` also restores the environment, so that a resumed run continues exactly."""

    @abstractmethod
    def _begin(self, seed: int) -> None:
        """Reset every environment and the memory states."""

    @abstractmethod
    def _save_env(self) -> Any:
        """Return the state of the environment."""

    @abstractmethod
    def _load_env(self, state: Any) -> None:
        """Restore a state of the environment."""

    def _build_episode(self, fields: dict[str, Any]) -> Any:
        return EpisodeStats(**fields)

    def _restore_rows(self, state: dict[str, Any]) -> None:
        self._state = {key: value.to(self.policy.device) for key, value in state["memory"].items()}
        self._current = {key: value.cpu().numpy().copy() for key, value in state["observation"].items()}
        self._starts = np.array(state["starts"], dtype=np.bool_)
        self._returns = np.array(state["returns"], dtype=np.float64)
        self._lengths = np.array(state["lengths"], dtype=np.int64)

    def _start(self) -> Tensor | None:
        return torch.from_numpy(self._starts).to(self.policy.device) if self._starts.any() else None

    def _empty_leaves(self, *leading: int) -> dict[str, Tensor]:
        return {
            key: torch.empty(*leading, *(leaf.shape or ()), dtype=leaf_dtype(leaf))
            for key, leaf in self._leaves.items()
        }

    def _restore_generator(self, state: dict[str, Any]) -> None:
        if state["device"] == self.policy.device.type:
            self._generator.set_state(state["generator"])
        else:
            _log.warning(
                "checkpoint was saved on %s, resuming on %s: results will differ",
                state["device"],
                self.policy.device.type,
            )
            self._generator.manual_seed(int(state["generator"].sum()))


class Sampler(BaseSampler):
    """Sampler of segments, which have `segment_length` steps of every environment.

    Each segment continues from the memory states at the end of the segment before. Everything except the
    environment is computed on the policy's device. Raises ValueError if the autoreset mode of `env` is not
    `AutoresetMode.SAME_STEP` or if `segment_length` is below 1. Raises EnvFaultError if an index in
    an observation is not in its space, or if a number in an observation or a reward is not finite.
    """

    def __init__(self, env: VectorEnv, policy: Policy, segment_length: int, seed: int = 0) -> None:
        # Gymnasium's vector environments modify shared metadata, so their attribute is read first.
        mode = getattr(env, "autoreset_mode", env.metadata.get("autoreset_mode"))
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode={getattr(mode, 'value', mode)} of the environment: must be SAME_STEP. For "
                "environments with a vector entry point, such as scrubjay's, use gymnasium.make_vec(..., "
                "autoreset_mode='SameStep'). For all others use gymnasium.make_vec(..., "
                "vectorization_mode='sync', vector_kwargs={'autoreset_mode': 'SameStep'})"
            )
        super().__init__(env, policy, segment_length, seed)

    @property
    def restores_env(self) -> bool:
        """True if `set_state` also restores the environment, so that a resumed run continues exactly."""
        return can_restore(self.env)

    @torch.no_grad()
    def collect(self) -> Segment:
        """Collect and return the next segment. Later calls do not change its tensors."""
        start_time = time.perf_counter()
        env_seconds = 0.0
        length, num_envs, device = self.segment_length, self.num_envs, self.policy.device
        # Buffers have the time axis first, so that each step is contiguous. They are written through numpy
        # views, which is faster for small arrays, and read as tensors.
        observations = self._empty_leaves(length + 1, num_envs)
        arrays = {key: leaf.numpy() for key, leaf in observations.items()}
        for key, leaf in arrays.items():
            leaf[0] = self._current[key]
        rewards = np.empty((length, num_envs), dtype=np.float32)
        starts, terminated, truncated = (np.empty((length, num_envs), dtype=np.bool_) for _ in range(3))
        bootstrap_values = torch.zeros(length, num_envs, device=device)
        actions, log_probs, values = [], [], []
        first_state = self._state
        stepper = self.policy.memory.stepper(first_state)
        for t in range(length):
            starts[t] = self._starts
            step_input = at_time(observations, t, device)
            action, log_prob, value = self.policy.advance(step_input, stepper, self._start(), self._generator)
            actions.append(action)
            log_probs.append(log_prob)
            values.append(value)
            env_actions = self.policy.env_actions(action)
            before = time.perf_counter()
            observation, reward, terminated[t], truncated[t], infos = self.env.step(env_actions)
            env_seconds += time.perf_counter() - before
            next_leaves = leaf_values(observation)
            check_indices(self._leaves, next_leaves)
            for key, leaf in next_leaves.items():
                arrays[key][t + 1] = leaf
            rewards[t] = reward
            self._returns += reward
            self._lengths += 1
            self._starts = terminated[t] | truncated[t]
            if self._starts.any():
                self._finish_episodes(infos)
                cut = np.flatnonzero(truncated[t] & ~terminated[t])
                if len(cut):
                    bootstrap_values[t, torch.from_numpy(cut)] = self._final_values(infos, cut, stepper)
        check_rewards(rewards)
        batch_log_probs = torch.stack(log_probs, dim=1)
        if not batch_log_probs.isfinite().all():  # caused by the observations or by diverged weights
            check_finite(self._leaves, arrays)
        self._state = stepper.state()
        last_values = self.policy.value(at_time(observations, length, device), self._state, self._start())
        self._current = {key: leaf[length].copy() for key, leaf in arrays.items()}
        batch = {key: leaf[:length].to(device).transpose(0, 1) for key, leaf in observations.items()}
        segment = Segment(
            observations=from_leaves(batch),
            actions=torch.stack(actions, dim=1),
            log_probs=batch_log_probs,
            values=torch.stack(values, dim=1),
            rewards=batch_first(rewards, device),
            starts=batch_first(starts, device),
            terminated=batch_first(terminated, device),
            truncated=batch_first(truncated, device),
            bootstrap_values=bootstrap_values.transpose(0, 1),
            last_values=last_values,
            state=first_state,
        )
        self.seconds["env"] += env_seconds
        self.seconds["policy"] += time.perf_counter() - start_time - env_seconds
        return segment

    def _save_env(self) -> Any:
        return save_env(self.env)

    def _load_env(self, state: Any) -> None:
        load_env(self.env, state)

    def _begin(self, seed: int) -> None:
        observation, _ = self.env.reset(seed=seed)
        check_indices(self._leaves, leaf_values(observation))
        self._current = {key: leaf.numpy() for key, leaf in self._empty_leaves(self.num_envs).items()}
        for key, leaf in leaf_values(observation).items():
            self._current[key][:] = leaf
        self._state = self.policy.initial_state(self.num_envs)
        self._starts = np.ones(self.num_envs, dtype=np.bool_)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)

    def _finish_episodes(self, infos: dict[str, Any]) -> None:
        for row in np.flatnonzero(self._starts).tolist():
            final_infos = {name: final_info(infos, row, name) for name in ("success", *MEASURES)}
            success = final_infos.pop("success")
            measures = {name: value for name, value in final_infos.items() if value is not None}
            self._episodes.append(
                EpisodeStats(float(self._returns[row]), int(self._lengths[row]), success, measures)
            )
        self._returns[self._starts] = 0.0
        self._lengths[self._starts] = 0

    def _final_values(self, infos: dict[str, Any], cut: np.ndarray, stepper: Stepper) -> Tensor:
        """Return the value estimate of the final observation of each truncated episode.

        `cut` has the indices of the environments whose episodes were truncated.
        """
        if "final_obs" not in infos:
            raise ValueError(
                f"{self.env} truncated an episode without infos['final_obs']; add the final observations to "
                "infos"
            )
        final = infos["final_obs"]
        leaves = self._empty_leaves(len(cut))
        if isinstance(final, np.ndarray) and final.dtype == object:
            for position, row in enumerate(cut):
                for key, leaf in leaf_values(final[row]).items():
                    leaves[key][position] = torch.as_tensor(leaf)
        else:
            for key, leaf in leaf_values(final).items():
                leaves[key].copy_(torch.from_numpy(leaf[cut]))
        device = self.policy.device
        observation = from_leaves({key: leaf.to(device) for key, leaf in leaves.items()})
        return self.policy.value(observation, stepper.state(torch.from_numpy(cut).to(device)))


def at_time(observations: dict[str, Tensor], t: int, device: torch.device) -> Observation:
    """Return the observations of step `t` on `device`; `observations` has the time axis first."""
    return from_leaves({key: leaf[t].to(device) for key, leaf in observations.items()})


def batch_first(array: np.ndarray, device: torch.device) -> Tensor:
    """Convert an array with the time axis first to a tensor with the batch axis first."""
    return torch.from_numpy(array).to(device).transpose(0, 1)


def final_info(infos: dict[str, Any], row: int, name: str) -> float | None:
    """Return the final `info[name]` of the episode that ended in environment `row`; None if missing."""
    final = infos.get("final_info", {})
    if name not in final or not final.get(f"_{name}", infos["_final_info"])[row]:
        return None
    return float(final[name][row])
