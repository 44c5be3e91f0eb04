"""A sampler steps a vector environment with a policy and hands out dense segments."""

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
    check_indices,
    check_numbers,
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
"""What environments may say at an end beside `info["success"]`: whether a choice was made at all."""


@dataclass(frozen=True)
class EpisodeStats:
    """One finished episode."""

    episode_return: float
    """Undiscounted sum of rewards."""
    length: int
    """Number of actions."""
    success: float | None = None
    """What the environment said under `info["success"]` at the end, if it did."""
    measures: dict[str, float] = field(default_factory=dict)
    """What else was measured: of `MEASURES`, or means over its steps in samplers that take some."""


class RowSampler(ABC):
    """What all samplers share: rows with what was seen and remembered last, and a state to go on from.

    Raises ValueError on an empty segment.
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
            raise ValueError(f"segment_length={segment_length}: a segment needs at least 1 step")
        self.env = env
        self.policy = policy
        self.segment_length = segment_length
        self.num_envs = env.num_envs
        self.seconds = {"env": 0.0, "policy": 0.0}
        """Wall time spent so far in the environment and in everything else."""
        self._leaves = leaf_spaces(env.single_observation_space)
        self._generator = torch.Generator(device=policy.device).manual_seed(seed)
        self._episodes: list[Any] = []
        self._begin(seed)

    @abstractmethod
    def collect(self) -> Any:
        """Return the next segment, in memory of its own."""

    def restart(self, seed: int) -> None:
        """Begin a new episode in every row, and draw everything from `seed` on."""
        self._generator.manual_seed(seed)
        self._begin(seed)

    def pop_episodes(self) -> list[Any]:
        """Return the episodes that ended since the last call, in order."""
        episodes, self._episodes = self._episodes, []
        return episodes

    def get_state(self) -> dict[str, Any]:
        """Return all that is needed to go on: tensors, plain values, and the environment's own state."""
        return {
            "generator": self._generator.get_state(),
            "device": self.policy.device.type,
            "memory": {key: value.clone() for key, value in self._state.items()},
            "observation": {key: torch.from_numpy(value.copy()) for key, value in self._current.items()},
            "starts": self._starts.tolist(),
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "episodes": [asdict(episode) for episode in self._episodes],
            "env": self._save_env() if self.exact else None,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned; if not `exact`, new episodes begin in every row instead.

        The policy must have been given the weights it had. Raises ValueError if the number of rows differs.
        """
        if len(state["lengths"]) != self.num_envs:
            raise ValueError(
                f"the state is of {len(state['lengths'])} environments; this sampler has {self.num_envs}"
            )
        self._restore_generator(state)
        self._episodes = [self._episode(saved) for saved in state["episodes"]]
        if state["env"] is None or not self.exact:
            # A seed that depends on how far the run has come: the first episodes are not played again.
            self._begin(
                seed=int(torch.randint(2**31, (), generator=self._generator, device=self.policy.device))
            )
            return
        self._load_env(state["env"])
        self._restore_rows(state)

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether `set_state` also restores the environment, so that the same steps follow."""

    @abstractmethod
    def _begin(self, seed: int) -> None:
        """Begin a new episode in every row."""

    @abstractmethod
    def _save_env(self) -> Any:
        """Return the environment's own state."""

    @abstractmethod
    def _load_env(self, state: Any) -> None:
        """Put the environment back into a state of its own."""

    def _episode(self, saved: dict[str, Any]) -> Any:
        return EpisodeStats(**saved)

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
            _log.warning("saved on %s, going on on %s: not exactly", state["device"], self.policy.device.type)
            self._generator.manual_seed(int(state["generator"].sum()))


class Sampler(RowSampler):
    """Collects segments of `segment_length` steps from every row of `env`, carrying states between them.

    Everything but the environment is computed on the policy's device. Raises ValueError if `env` does not
    begin the next episode in the step that ends one (`AutoresetMode.SAME_STEP`), or on an empty segment, and
    EnvFaultError where it shows an index that is none of its space's, a number or pays a reward that is not
    finite.
    """

    def __init__(self, env: VectorEnv, policy: Policy, segment_length: int, seed: int = 0) -> None:
        # Gymnasium's own vector environments write metadata that all of them share: their attribute is safer.
        mode = getattr(env, "autoreset_mode", env.metadata.get("autoreset_mode"))
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"the environment's autoreset_mode is {getattr(mode, 'value', mode)}, not SAME_STEP; use "
                "gymnasium.make_vec(..., autoreset_mode='SameStep') of what is batched by itself, as "
                "scrubjay's are; of all else gymnasium.make_vec(..., vectorization_mode='sync', "
                "vector_kwargs={'autoreset_mode': 'SameStep'})"
            )
        super().__init__(env, policy, segment_length, seed)

    @property
    def exact(self) -> bool:
        """Whether `set_state` also restores the environment, so that the same steps follow."""
        return can_restore(self.env)

    @torch.no_grad()
    def collect(self) -> Segment:
        """Return the next segment, in memory of its own."""
        began = time.perf_counter()
        env_seconds = 0.0
        length, num_envs, device = self.segment_length, self.num_envs, self.policy.device
        # Time first while writing, so that each step is one block; written through numpy, which is quicker
        # for small arrays, and read through the tensors that share the memory.
        observations = self._empty_leaves(length + 1, num_envs)
        written = {key: leaf.numpy() for key, leaf in observations.items()}
        for key, leaf in written.items():
            leaf[0] = self._current[key]
        rewards = np.empty((length, num_envs), dtype=np.float32)
        starts, terminated, truncated = (np.empty((length, num_envs), dtype=np.bool_) for _ in range(3))
        bootstrap_values = torch.zeros(length, num_envs, device=device)
        actions, log_probs, values = [], [], []
        first_state = self._state
        rows = self.policy.memory.stepper(first_state)
        for t in range(length):
            starts[t] = self._starts
            seen = at_time(observations, t, device)
            action, log_prob, value = self.policy.advance(seen, rows, self._start(), self._generator)
            actions.append(action)
            log_probs.append(log_prob)
            values.append(value)
            env_actions = self.policy.env_actions(action)
            before = time.perf_counter()
            observation, reward, terminated[t], truncated[t], infos = self.env.step(env_actions)
            env_seconds += time.perf_counter() - before
            shown = leaf_values(observation)
            check_indices(self._leaves, shown)
            for key, leaf in shown.items():
                written[key][t + 1] = leaf
            rewards[t] = reward
            self._returns += reward
            self._lengths += 1
            self._starts = terminated[t] | truncated[t]
            if self._starts.any():
                self._finish_episodes(infos)
                cut = np.flatnonzero(truncated[t] & ~terminated[t])
                if len(cut):
                    bootstrap_values[t, torch.from_numpy(cut)] = self._final_values(infos, cut, rows)
        check_rewards(rewards)
        chances = torch.stack(log_probs, dim=1)
        if not chances.isfinite().all():  # by what was seen, or by weights that are lost
            check_numbers(self._leaves, written)
        self._state = rows.state()
        last_values = self.policy.value(at_time(observations, length, device), self._state, self._start())
        self._current = {key: leaf[length].copy() for key, leaf in written.items()}
        seen = {key: leaf[:length].to(device).transpose(0, 1) for key, leaf in observations.items()}
        segment = Segment(
            observations=from_leaves(seen),
            actions=torch.stack(actions, dim=1),
            log_probs=chances,
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
        self.seconds["policy"] += time.perf_counter() - began - env_seconds
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
            told = {name: final_info(infos, row, name) for name in ("success", *MEASURES)}
            success = told.pop("success")
            measures = {name: value for name, value in told.items() if value is not None}
            self._episodes.append(
                EpisodeStats(float(self._returns[row]), int(self._lengths[row]), success, measures)
            )
        self._returns[self._starts] = 0.0
        self._lengths[self._starts] = 0

    def _final_values(self, infos: dict[str, Any], cut: np.ndarray, rows: Stepper) -> Tensor:
        """Return the values of the observations that truncated episodes ended with, their memories intact."""
        if "final_obs" not in infos:
            raise ValueError(
                f"{self.env} truncated an episode without infos['final_obs']; its value is needed"
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
        seen = from_leaves({key: leaf.to(device) for key, leaf in leaves.items()})
        return self.policy.value(seen, rows.state(torch.from_numpy(cut).to(device)))


def at_time(observations: dict[str, Tensor], t: int, device: torch.device) -> Observation:
    """Return the observations of step `t` of leaves written time first, on `device`."""
    return from_leaves({key: leaf[t].to(device) for key, leaf in observations.items()})


def batch_first(array: np.ndarray, device: torch.device) -> Tensor:
    """Return what was written time first as a tensor whose rows come first."""
    return torch.from_numpy(array).to(device).transpose(0, 1)


def final_info(infos: dict[str, Any], row: int, name: str) -> float | None:
    """Return `info[name]` of a row's last step: gymnasium 1.x keeps it in a dict of arrays and masks."""
    final = infos.get("final_info", {})
    if name not in final or not final.get(f"_{name}", infos["_final_info"])[row]:
        return None
    return float(final[name][row])
