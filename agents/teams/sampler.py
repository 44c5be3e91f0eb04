"""A sampler steps many teams with a policy and hands out dense segments."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scrubjay.agents.rl.observations import check_indices, check_numbers, check_rewards, from_leaves
from scrubjay.agents.rl.sampler import EpisodeStats, RowSampler, Sampler, at_time, batch_first
from scrubjay.agents.teams.env import TeamEnv, TeamStep
from scrubjay.agents.teams.policy import TeamPolicy
from scrubjay.agents.teams.segment import TeamSegment


@dataclass(frozen=True)
class TeamEpisodeStats(EpisodeStats):
    """One finished episode of a team; `episode_return` is summed over its agents."""

    returns: tuple[float, ...] = ()
    """Undiscounted sum of rewards of each agent."""


class TeamSampler(RowSampler):
    """Collects segments of `segment_length` steps from every row of `env`, carrying states between them.

    Everything but the environment is computed on the policy's device. Raises ValueError on an empty segment,
    or if the policy is for teams of another size, and EnvFaultError as `Sampler` does.
    """

    def __init__(self, env: TeamEnv, policy: TeamPolicy, segment_length: int, seed: int = 0) -> None:
        self.num_agents = len(env.possible_agents)
        if policy.num_agents != self.num_agents:
            raise ValueError(
                f"the policy is for teams of {policy.num_agents}; the environment's have {self.num_agents}"
            )
        # Values of the present alone need no stepping: the whole segment's are computed at once.
        self._judges_later = not policy.critic_remembers
        super().__init__(env, policy, segment_length, seed)

    @property
    def exact(self) -> bool:
        """Whether `set_state` also restores the environment, so that the same steps follow."""
        return all(callable(getattr(self.env, name, None)) for name in ("get_state", "set_state"))

    @torch.no_grad()
    def collect(self) -> TeamSegment:
        """Return the next segment, in memory of its own."""
        began = time.perf_counter()
        env_seconds = 0.0
        length, device = self.segment_length, self.policy.device
        rows_agents = (self.num_envs, self.num_agents)
        # Time first while writing, so that each step is one block; written through numpy, which is quicker
        # for small arrays, and read through the tensors that share the memory.
        observations = self._empty_leaves(length + 1, *rows_agents)
        alive = torch.empty(length + 1, *rows_agents, dtype=torch.bool)
        written = {key: leaf.numpy() for key, leaf in observations.items()}
        lives = alive.numpy()
        _write(written, 0, self._current)
        lives[0] = self._alive
        rewards = np.empty((length, *rows_agents), dtype=np.float32)
        terminated = np.empty((length, *rows_agents), dtype=np.bool_)
        starts, truncated = (np.empty((length, self.num_envs), dtype=np.bool_) for _ in range(2))
        bootstrap_values = torch.zeros(length, *rows_agents, device=device)
        actions, log_probs, values = [], [], []
        first_state = self._state
        for t in range(length):
            starts[t] = self._starts
            seen = (at_time(observations, t, device), alive[t].to(device), self._state, self._start())
            if self._judges_later:
                action, log_prob, self._state = self.policy.choose(*seen, self._generator)
            else:
                action, log_prob, value, self._state = self.policy.step(*seen, self._generator)
                values.append(value)
            actions.append(action)
            log_probs.append(log_prob)
            env_actions = self.policy.env_actions(action)
            before = time.perf_counter()
            step = self.env.step(env_actions)
            env_seconds += time.perf_counter() - before
            check_indices(self._leaves, step.observations)
            _write(written, t + 1, step.observations)
            lives[t + 1] = step.alive
            rewards[t], terminated[t], truncated[t] = step.rewards, step.terminated, step.truncated
            self._count(step)
            self._starts = step.ended
            if step.ended.any():
                self._finish_episodes(step)
                if step.truncated.any():
                    cut = torch.from_numpy(np.flatnonzero(step.truncated))
                    bootstrap_values[t, cut] = self._final_values(step, cut)
        check_rewards(rewards)
        chances = torch.stack(log_probs, dim=1)
        if not chances.isfinite().all():  # by what was seen, or by weights that are lost
            check_numbers(self._leaves, written)
        if self._judges_later:
            every = {key: leaf.flatten(0, 1).to(device) for key, leaf in observations.items()}
            judged = self.policy.value(from_leaves(every), alive.flatten(0, 1).to(device), self._state)
            *values, last_values = judged.unflatten(0, (length + 1, self.num_envs))
        else:
            last_values = self.policy.value(
                at_time(observations, length, device), alive[length].to(device), self._state, self._start()
            )
        self._current = {key: leaf[length].copy() for key, leaf in written.items()}
        self._alive = lives[length].copy()
        seen = {key: leaf[:length].to(device).transpose(0, 1) for key, leaf in observations.items()}
        segment = TeamSegment(
            observations=from_leaves(seen),
            alive=alive[:length].to(device).transpose(0, 1),
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

    def get_state(self) -> dict[str, Any]:
        """Return all that is needed to go on: tensors, plain values, and the environment's own state."""
        measures = {name: total.tolist() for name, total in self._measures.items()}
        return super().get_state() | {"alive": self._alive.tolist(), "measures": measures}

    def _save_env(self) -> Any:
        return self.env.get_state()

    def _load_env(self, state: Any) -> None:
        self.env.set_state(state)

    def _episode(self, saved: dict[str, Any]) -> TeamEpisodeStats:
        return TeamEpisodeStats(**{**saved, "returns": tuple(saved["returns"])})

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
        for row in np.flatnonzero(step.ended).tolist():
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
        self._returns[step.ended] = 0.0
        self._lengths[step.ended] = 0
        for total in self._measures.values():
            total[step.ended] = 0.0

    def _final_values(self, step: TeamStep, rows: Tensor) -> Tensor:
        """Return the values of truncated episodes' last observations, 0 for agents that had left."""
        # Among the ended rows, which are all that final observations are of.
        cut = step.truncated[step.ended]
        leaves = self._empty_leaves(len(rows), self.num_agents)
        for key, leaf in leaves.items():
            leaf.numpy()[:] = step.final_observations[key][cut]
        device = self.policy.device
        alive = torch.from_numpy(step.final_alive[cut]).to(device)
        index = rows.to(device)
        remembered = {key: value.index_select(0, index) for key, value in self._state.items()}
        seen = from_leaves({key: leaf.to(device) for key, leaf in leaves.items()})
        return self.policy.value(seen, alive, remembered).masked_fill(~alive, 0)


def make_sampler(env: Any, policy: Any, segment_length: int, seed: int = 0) -> RowSampler:
    """Return what samples `env`, rows of a team's or of one agent's, with its policy."""
    if isinstance(policy, TeamPolicy):
        return TeamSampler(env, policy, segment_length, seed)
    return Sampler(env, policy, segment_length, seed)


def _write(leaves: dict[str, np.ndarray], t: int, values: Mapping[str, np.ndarray]) -> None:
    for key, leaf in leaves.items():
        leaf[t] = values[key]
