"""RLlib env runner that collects segments, each with only the memory state before its first step."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from torch import Tensor

from scrubjay.agents.rl.rollout import EpisodeStats
from scrubjay.agents.rl.segment import Segment
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.rllib.module import build_row_spaces
from scrubjay.agents.teams.sampler import make_sampler
from scrubjay.agents.teams.segment import TeamSegment


@dataclass
class RunnerSample:
    """Result of one call of an env runner. It is not a dict, since RLlib would split a dict."""

    first_row: int
    """Index of the runner's first environment among those of all runners."""
    segment: Segment | TeamSegment
    episodes: list[EpisodeStats]
    seconds: dict[str, float]
    """Wall time of the call in seconds: in the environments (`env`) and in everything else (`policy`)."""


class SegmentRunner(EnvRunner):
    """Env runner with a part of the `num_envs` environments of a `SegmentConfig`."""

    config: Any

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        if self.worker_index:
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.first_row, rows = self.config.get_row_range(self.worker_index or 0)
        self.envs = self.config.envs(rows)
        self.policy = self.config.policy.build(Spaces.from_env(self.envs))
        seed = self.config.sampling_seed + self.first_row
        if self.worker_index and ray.get_runtime_context().was_current_actor_reconstructed:
            seed = secrets.randbits(31)  # do not repeat the first episodes
        length, burn_in = self.config.segment_length, self.config.learner.sampled_burn_in
        self.sampler = make_sampler(self.envs, self.policy, length, seed, burn_in)

    def sample(self, weights: dict[str, Tensor] | None = None, **_: Any) -> RunnerSample:
        """Load `weights`, unless they are None, and sample the next segment."""
        if weights is not None:
            self.policy.load_state_dict(weights)
        before = dict(self.sampler.seconds)
        segment = self.sampler.collect()
        seconds = {name: self.sampler.seconds[name] - before[name] for name in before}
        return RunnerSample(self.first_row, segment, self.sampler.pop_episodes(), seconds)

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Return the index of the runner's first environment, and the sampler's state."""
        return {"first_row": self.first_row, "sampler": self.sampler.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` returned; RLlib's states (connectors, counters) are ignored."""
        if "sampler" in state:
            self.sampler.set_state(state["sampler"])

    def restore(self, states: dict[int, dict[str, Any]]) -> None:
        """Restore this runner's sampler from `states`, the sampler states of all runners.

        The key of each state is the index of the first environment of its runner.
        """
        self.sampler.set_state(states[self.first_row])

    def restart(self, weights: dict[str, Tensor], seed: int) -> None:
        """Load the weights and begin new episodes.

        All runners receive the same `seed`. Each runner adds the index of its first environment to `seed`.
        """
        self.policy.load_state_dict(weights)
        self.sampler.restart(seed + self.first_row)

    def get_spaces(self) -> dict[str, Any]:
        """Return the spaces of the environment and of the module."""
        spaces = build_row_spaces(Spaces.from_env(self.envs))
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    def assert_healthy(self) -> None:
        """Raise AssertionError if the constructor has not finished."""
        assert self.sampler is not None

    def stop(self) -> None:
        """Close the environment."""
        self.envs.close()
