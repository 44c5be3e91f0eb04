"""An env runner that samples dense segments, with a memory's state at their beginnings only."""

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

from scrubjay.agents.rl.sampler import EpisodeStats
from scrubjay.agents.rl.segment import Segment
from scrubjay.agents.teams.segment import TeamSegment


@dataclass
class Sample:
    """What one runner brings back from one call. A plain class: RLlib takes dicts apart."""

    first_row: int
    """Its first row among those of all runners."""
    segment: Segment | TeamSegment
    episodes: list[EpisodeStats]
    seconds: dict[str, float]
    """Time spent in the environment and in the policy."""


class SegmentRunner(EnvRunner):
    """Its share of a `SegmentConfig`'s `num_envs` rows, stepped by the sampler that it makes."""

    config: Any

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        if self.worker_index:
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.first_row, rows = self.config.rows_of(self.worker_index or 0)
        self.envs = self.config.make_envs(rows)
        self.policy = self.config.make_policy(self.envs)
        seed = self.config.sampling_seed + self.first_row
        if self.worker_index and ray.get_runtime_context().was_current_actor_reconstructed:
            seed = secrets.randbits(31)  # the first episodes are not played again
        self.sampler = self.config.make_sampler(self.envs, self.policy, seed)

    def sample(self, weights: dict[str, Tensor] | None = None, **_: Any) -> Sample:
        """Return the next segment, by a policy of these weights if given."""
        if weights is not None:
            self.policy.load_state_dict(weights)
        before = dict(self.sampler.seconds)
        segment = self.sampler.collect()
        spent = {name: self.sampler.seconds[name] - before[name] for name in before}
        return Sample(self.first_row, segment, self.sampler.pop_episodes(), spent)

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Return `first_row` and what the sampler needs to go on."""
        return {"first_row": self.first_row, "sampler": self.sampler.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned; RLlib's own states (connectors, counters) are passed over."""
        if "sampler" in state:
            self.sampler.set_state(state["sampler"])

    def restore(self, states: dict[int, dict[str, Any]]) -> None:
        """Go on from this runner's own among the samplers' states by first row."""
        self.sampler.set_state(states[self.first_row])

    def restart(self, weights: dict[str, Tensor], seed: int) -> None:
        """Begin new episodes by a policy of these weights; all runners are given the same seed."""
        self.policy.load_state_dict(weights)
        self.sampler.restart(seed + self.first_row)

    def get_spaces(self) -> dict[str, Any]:
        """Return the spaces of the environment and of the one module."""
        spaces = self.config.spaces_of(self.envs)
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    def assert_healthy(self) -> None:
        """Raise AssertionError if the constructor has not come to its end."""
        assert self.sampler is not None

    def stop(self) -> None:
        """Close the environment."""
        self.envs.close()
