"""Base config of reinforcement-learning experiments, for one agent or a team."""

from __future__ import annotations

import dataclasses
import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.rl.observations import leaf_spaces
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.experiments.evaluation.team import evaluate_policy
from scrubjay.experiments.experiment_types.training_plan import TrainingPlan
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.device import resolve_device
from scrubjay.experiments.runs.memory_limit import MEMORY_LIMIT, check_memory_limit
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.runs.serialization import to_plain
from scrubjay.memory import MemoryConfig
from scrubjay.memory.sketch import nbytes, sketch, state_nbytes

_log = logging.getLogger(__name__)

_PER_ENV = 2**17  # bytes of one environment in a vector environment
_COPIES = 4  # weights, their gradients, and Adam's two averages
_NUMBER = 4  # bytes
_PER_STEP = 8  # numbers per step besides observation and action


@dataclass(frozen=True, kw_only=True)
class RLConfig(TrainingPlan, ABC):
    """Config of an experiment that trains a policy on segments sampled from a vector environment."""

    kind: ClassVar[str]
    """Name of this class in config.json."""
    policy_type: ClassVar[str | None]
    """Type of the trained policy: "agent" or "team"."""
    shape_fields: ClassVar[tuple[str, ...]] = ("policy",)

    env: Any
    """Environment config; it has `num_envs`, `make_batch`, `spaces` and `facts`."""
    policy: Any
    """Policy config; it has the field `memory` and the method `build`."""
    learner: LearnerConfig
    """Config of the learner."""
    total_steps: int = 500_000
    """Environment steps of the whole run, summed over all environments; rounded up to whole updates."""
    segment_length: int
    """Steps per environment between two updates; also the length of backpropagation through time. The state
    of the memory carries over to the next segment, but without gradients."""
    seed: int = 0
    """Seed of all randomness: weights, environments, actions, order of minibatches."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the policy; auto uses the GPU if there is one."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints; a killed run loses at most this much work."""
    eval_episodes: int = 100
    """Episodes of the final evaluation in result.json; 0 disables it."""
    recipe: str
    """Task name in run directories and plots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("total_steps", "segment_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("seed", "checkpoint_seconds", "eval_episodes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")

    @property
    def steps_per_update(self) -> int:
        """Number of environment steps per update, summed over all environments."""
        return self.env.num_envs * self.segment_length

    @property
    def planned_steps(self) -> int:
        """`total_steps`, rounded up to whole updates."""
        return -(-self.total_steps // self.steps_per_update) * self.steps_per_update

    @property
    def planned_learner(self) -> LearnerConfig:
        """Learner config. Its schedules, such as the learning rate, span the initial `total_steps`."""
        return self.learner.with_total_steps(self.first_plan)

    @property
    def memory(self) -> MemoryConfig:
        """Memory config of the policy."""
        return self.policy.memory

    @property
    @abstractmethod
    def label(self) -> str:
        """Method name in plots; runs with the same label share a curve."""

    @property
    @abstractmethod
    def success_without_memory(self) -> float | None:
        """Best possible success rate without memory; None if it is unknown."""

    @abstractmethod
    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return a copy of this config with another memory in its policy."""

    def with_learner(self, learner: LearnerConfig) -> Self:
        """Return a copy of this config with another learner."""
        return dataclasses.replace(self, learner=learner)

    def make_model(self) -> Any:
        """Return a new policy."""
        return self.make_policy()

    def make_policy(self, envs: Any = None) -> Any:
        """Return a new policy for the environment of this experiment.

        If a vector environment `envs` is passed, its spaces are used, and no environment is created.
        """
        return self.policy.build(self.env.spaces() if envs is None else Spaces.from_env(envs))

    def rough_bytes(self) -> dict[str, int]:
        """Return a dict from settings, such as `env.num_envs=8`, to estimated bytes in training.

        Creates at most one environment.
        """
        rows = self.env.num_envs
        check_memory_limit({f"env.num_envs={rows:,}": rows * _PER_ENV})
        spaces = self.env.spaces()
        policy = sketch(lambda: self.policy.build(spaces), MEMORY_LIMIT)
        spaces_of_one = [*leaf_spaces(spaces.observation).values(), *leaf_spaces(spaces.action).values()]
        numbers = _PER_STEP + sum(math.prod(space.shape or ()) for space in spaces_of_one)
        steps = rows * self.segment_length * (spaces.num_agents or 1)
        return {
            f"policy.memory={type(self.memory).__name__}": _COPIES * nbytes(policy.state_dict()),
            f"policy.memory of env.num_envs={rows:,}": state_nbytes(policy, rows),
            f"env.num_envs={rows:,}, segment_length={self.segment_length:,}": _NUMBER * steps * numbers,
        }

    def check(self, ray: RayOptions | None = None) -> None:
        """Build policy and learner once. Raises ValueError or TypeError naming the invalid setting."""
        rows, learner = self.env.num_envs, self.learner
        if learner.policy_type != self.policy_type:
            raise ValueError(
                f"learner={type(learner).__name__}: it trains the policy of one "
                f"{learner.policy_type}, not of one {self.policy_type}; choose another learner"
            )
        if ray is None:
            resolve_device(self.device)
        elif max(ray.num_env_runners, ray.num_learners) > rows:
            raise ValueError(
                f"num_env_runners={ray.num_env_runners}, num_learners={ray.num_learners}: "
                f"must be at most env.num_envs={rows}, since each process needs an environment"
            )
        else:
            learner.check_learners(ray.num_learners)
        if learner.min_rows > rows:
            raise ValueError(
                f"learner.{learner.min_rows_field}={learner.min_rows}: must be at most "
                f"env.num_envs={rows}, since each minibatch needs an environment"
            )
        state = self.planned_learner.build(self.make_policy()).get_state()
        to_plain(state, f"the state of {type(learner).__name__}'s learner")


def evaluate_result(policy: Any, config: RLConfig) -> dict[str, Any]:
    """Evaluate a policy and return the summary for result.json.

    The summary is empty if `eval_episodes` is 0 or no episode ends.
    """
    if not config.eval_episodes:
        return {}
    seed = derive_seed(config.seed, "evaluation")
    try:
        return evaluate_policy(policy, config.env, config.eval_episodes, seed).summary()
    except ValueError as error:  # training succeeded; the environment never ends an episode
        _log.warning("not evaluated: %s", error)
        return {}
