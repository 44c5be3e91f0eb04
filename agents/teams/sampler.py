"""Sampler of segments from vectorized teams."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scrubjay.agents.rl.observations import check_finite, check_indices, check_rewards, from_leaves
from scrubjay.agents.rl.sampler import BaseSampler, EpisodeStats, Sampler, at_time, batch_first
from scrubjay.agents.teams.env import TeamEnv, TeamStep
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.segment import TeamSegment


@dataclass(frozen=True)
class TeamEpisodeStats(EpisodeStats):
    """Statistics of one finished episode of a team; `episode_return` is summed over its agents."""

    returns: tuple[float, ...] = ()
    """Undiscounted sum of rewards of each agent."""


class TeamSampler(BaseSampler):
    """Sampler of segments, which have `segment_length` steps of every environment.

    Each segment continues from the memory states at the end of the segment before. Everything except the
    environment is computed on the policy's device. Raises ValueError if `segment_length` is below 1, or if
    policy and environment differ in the number of agents. Raises EnvFaultError in the same cases as
    `Sampler`.
    """

    def __init__(self, env: TeamEnv, policy: TeamPolicy, segment_length: int, seed: int = 0) -> None:
        self.num_agents = len(env.possible_agents)
        if policy.num_agents != self.num_agents:
            raise ValueError(
                f"the policy has num_agents={policy.num_agents}; the environment has {self.num_agents} agents"
            )
        # A critic without memory needs no stepping: values of the whole segment are computed at once.
        self._defers_values = not policy.critic_remembers
        super().__init__(env, policy, segment_length, seed)

    @property
    def restores_env(self) -> bool:
        """True if `set_state` also restores the environment, so that a resumed run continues exactly."""
        return all(callable(getattr(self.env, name, None)) for name in ("get_state", "set_state"))

    @torch.no_grad()
    def collect(self) -> TeamSegment:
        """Collect and return the next segment. Later calls do not change its tensors."""
        start_time = time.perf_counter()
        env_seconds = 0.0
        length, device = self.segment_length, self.policy.device
        rows_agents = (self.num_envs, self.num_agents)
        # Buffers have the time axis first, so that each step is contiguous. They are written through numpy
        # views, which is faster for small arrays, and read as tensors.
        observations = self._empty_leaves(length + 1, *rows_agents)
        alive = torch.empty(length + 1, *rows_agents, dtype=torch.bool)
        arrays = {key: leaf.numpy() for key, leaf in observations.items()}
        alive_array = alive.numpy()
        _write(arrays, 0, self._current)
        alive_array[0] = self._alive
        rewards = np.empty((length, *rows_agents), dtype=np.float32)
        terminated = np.empty((length, *rows_agents), dtype=np.bool_)
        starts, truncated = (np.empty((length, self.num_envs), dtype=np.bool_) for _ in range(2))
        bootstrap_values = torch.zeros(length, *rows_agents, device=device)
        actions, log_probs, values = [], [], []
        first_state = self._state
        for t in range(length):
            starts[t] = self._starts
            inputs = (at_time(observations, t, device), alive[t].to(device), self._state, self._start())
            if self._defers_values:
                action, log_prob, self._state = self.policy.choose(*inputs, self._generator)
            else:
                action, log_prob, value, self._state = self.policy.step(*inputs, self._generator)
                values.append(value)
            actions.append(action)
            log_probs.append(log_prob)
            env_actions = self.policy.env_actions(action)
            before = time.perf_counter()
            step = self.env.step(env_actions)
            env_seconds += time.perf_counter() - before
            check_indices(self._leaves, step.observations)
            _write(arrays, t + 1, step.observations)
            alive_array[t + 1] = step.alive
            rewards[t], terminated[t], truncated[t] = step.rewards, step.terminated, step.truncated
            self._count(step)
            self._starts = step.dones
            if step.dones.any():
                self._finish_episodes(step)
                if step.truncated.any():
                    cut = torch.from_numpy(np.flatnonzero(step.truncated))
                    bootstrap_values[t, cut] = self._final_values(step, cut)
        check_rewards(rewards)
        batch_log_probs = torch.stack(log_probs, dim=1)
        if not batch_log_probs.isfinite().all():  # caused by the observations or by diverged weights
            check_finite(self._leaves, arrays)
        if self._defers_values:
            flat = {key: leaf.flatten(0, 1).to(device) for key, leaf in observations.items()}
            all_values = self.policy.value(from_leaves(flat), alive.flatten(0, 1).to(device), self._state)
            *values, last_values = all_values.unflatten(0, (length + 1, self.num_envs))
        else:
            last_values = self.policy.value(
                at_time(observations, length, device), alive[length].to(device), self._state, self._start()
            )
        self._current = {key: leaf[length].copy() for key, leaf in arrays.items()}
        self._alive = alive_array[length].copy()
        batch = {key: leaf[:length].to(device).transpose(0, 1) for key, leaf in observations.items()}
        segment = TeamSegment(
            observations=from_leaves(batch),
            alive=alive[:length].to(device).transpose(0, 1),
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

    def get_state(self) -> dict[str, Any]:
        """Return the sampler's state: tensors, plain values and, if available, the environment's state."""
        measures = {name: total.tolist() for name, total in self._measures.items()}
        return super().get_state() | {"alive": self._alive.tolist(), "measures": measures}

    def _save_env(self) -> Any:
        return self.env.get_state()

    def _load_env(self, state: Any) -> None:
        self.env.set_state(state)

    def _build_episode(self, fields: dict[str, Any]) -> TeamEpisodeStats:
        return TeamEpisodeStats(**{**fields, "returns": tuple(fields["returns"])})

    def _restore_rows(self, state: dict[str, Any]) -> None:
        super()._restore_rows(state)
        self._alive = np.array(state["alive"], dtype=np.bool_)
        self._measures = {name: np.array(total) for name, total in state["measures"].items()}

    def _begin(self, seed: int) -> None:
        observations, alive = self.env.reset(seed=seed)
        check_indices(self._leaves, observations)
        empty = self._empty_leaves(self.num_envs, self.num_agents)
        self._current = {key: leaf.numpy() for key, leaf in empty.items()}
        for key, leaf in self._current.items():
            leaf[:] = observations[key]
        self._alive = np.array(alive, dtype=np.bool_)
        self._state = self.policy.initial_state(self.num_envs)
        self._starts = np.ones(self.num_envs, dtype=np.bool_)
        self._returns = np.zeros((self.num_envs, self.num_agents))
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._measures: dict[str, np.ndarray] = {}

    def _count(self, step: TeamStep) -> None:
        self._returns += step.rewards
        self._lengths += 1
        for name, value in step.infos.items():
            if name not in self._measures:
                self._measures[name] = np.zeros(self.num_envs)
            self._measures[name] += value

    def _finish_episodes(self, step: TeamStep) -> None:
        for row in np.flatnonzero(step.dones).tolist():
            returns, length = self._returns[row], int(self._lengths[row])
            self._episodes.append(
                TeamEpisodeStats(
                    episode_return=float(returns.sum()),
                    length=length,
                    success=float(step.infos["success"][row]) if "success" in step.infos else None,
                    returns=tuple(returns.tolist()),
                    measures={name: float(total[row]) / length for name, total in self._measures.items()},
                )
            )
        self._returns[step.dones] = 0.0
        self._lengths[step.dones] = 0
        for total in self._measures.values():
            total[step.dones] = 0.0

    def _final_values(self, step: TeamStep, rows: Tensor) -> Tensor:
        """Return each agent's value estimate of the final observation of each truncated episode.

        The value of an agent that is not alive is 0. `rows` has the indices of the environments whose
        episodes were truncated.
        """
        # Final observations only have the environments whose episodes ended.
        cut = step.truncated[step.dones]
        leaves = self._empty_leaves(len(rows), self.num_agents)
        for key, leaf in leaves.items():
            leaf.numpy()[:] = step.final_observations[key][cut]
        device = self.policy.device
        alive = torch.from_numpy(step.final_alive[cut]).to(device)
        index = rows.to(device)
        state = {key: value.index_select(0, index) for key, value in self._state.items()}
        observation = from_leaves({key: leaf.to(device) for key, leaf in leaves.items()})
        return self.policy.value(observation, alive, state).masked_fill(~alive, 0)


def make_sampler(env: Any, policy: Any, segment_length: int, seed: int = 0) -> BaseSampler:
    """Return the sampler of an environment and its policy, for a team or for a single agent."""
    if isinstance(policy, TeamPolicy):
        return TeamSampler(env, policy, segment_length, seed)
    return Sampler(env, policy, segment_length, seed)


def _write(leaves: dict[str, np.ndarray], t: int, values: Mapping[str, np.ndarray]) -> None:
    for key, leaf in leaves.items():
        leaf[t] = values[key]
