"""Configs of reinforcement-learning experiments: a policy with a memory learns an environment.

The policy acts for one agent (`TrainConfig`) or for a team (`TeamTaskConfig`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

from scrubjay.agents.learners import get_learner_name
from scrubjay.agents.rl.encoders.choice import UntrustedName, is_factory
from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.rl.observations import leaf_spaces
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments.cli.failures import check_at_least
from scrubjay.experiments.resources import (
    MEMORY_LIMIT,
    check_env_limits,
    check_memory_limit,
    check_processes,
    resolve_device,
)
from scrubjay.experiments.runs.checkpoint import to_plain
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.config import Experiment
from scrubjay.experiments.tasks.environments import (
    EnvConfig,
    EnvFacts,
    admit_part,
    mark_untrusted_part,
    with_names,
)
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.experiments.user_modules import make_importable
from scrubjay.memory import MemoryConfig, name_of
from scrubjay.memory.sketch import nbytes, sketch, state_nbytes

_PER_ENV = 2**17  # bytes of one environment in a vector environment
_COPIES = 4  # weights, their gradients, and Adam's two averages
_NUMBER = 4  # bytes
_PER_STEP = 8  # numbers per step besides observation and action
_SOLVED_SUCCESS = 0.95
"""Default success rate at which a task counts as solved."""


@dataclass(frozen=True, kw_only=True)
class RLConfig(Experiment):
    """Config of an experiment that trains a policy on segments sampled from a vector environment."""

    shape_fields: ClassVar[tuple[str, ...]] = ("policy",)

    env: Any
    """Environment config; it has `num_envs`, `make_batch`, `spaces`, `facts`, `try_out` and
    `reward_threshold`."""
    policy: Any
    """Policy config; it has the field `memory` and the method `build`."""
    learner: LearnerConfig
    """Config of the learner."""
    total_steps: int = 500_000
    """Environment steps of the whole run, summed over all environments; rounded up to whole updates."""
    segment_length: int
    """Steps per environment between two updates; also the length of backpropagation through time. The state
    of the memory carries over to the next segment, but without gradients."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the policy; auto uses the GPU if there is one."""
    eval_episodes: int = 100
    """Episodes of the final evaluation in result.json; 0 disables it."""
    eval_every: int = 0
    """Environment steps between evaluations during training; 0 disables them. They use separate environments,
    do not change training, and keep the best checkpoint. Each follows the first update that reaches a
    multiple of this number."""
    eval_every_episodes: int = 20
    """Episodes of each evaluation during training."""
    solved_at: float | None = None
    """Score at which the task counts as solved: a success rate if the environment reports success, else a
    return. Default: success rate 0.95, or the reward threshold in gymnasium's registry if there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "segment_length", "eval_every_episodes")
        check_at_least(self, 0, "eval_episodes", "eval_every")
        if self.solved_at is not None and not math.isfinite(self.solved_at):
            raise ValueError(f"solved_at={self.solved_at}: must be a finite number")

    @property
    def steps_per_update(self) -> int:
        """Number of environment steps per update, summed over all environments."""
        return self.env.num_envs * self.segment_length

    @property
    def planned_steps(self) -> int:
        """`total_steps`, rounded up to whole updates."""
        return -(-self.total_steps // self.steps_per_update) * self.steps_per_update

    @property
    def has_schedule(self) -> bool:
        """True if a setting of the learner changes over the initial `total_steps`."""
        return self.planned_learner != self.learner

    @property
    def planned_learner(self) -> LearnerConfig:
        """Learner config. Its schedules, such as the learning rate, span the initial `total_steps`."""
        return self.learner.with_total_steps(self.first_plan)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that may refer to modules: of the environment, its wrappers and an encoder of the user."""
        return (self.env.id, *self.env.wrappers, *([self.own_encoder] if self.own_encoder else []))

    @property
    def own_encoder(self) -> str:
        """`module:factory` of the policy's encoder; empty if the encoder is built in."""
        name = getattr(self.policy, "encoder", "")
        return name if is_factory(name) else ""

    @property
    def is_safe(self) -> bool:
        """True if an untrusted file may have this config's `names`."""
        return self.env.is_safe and not self.own_encoder

    def as_untrusted(self) -> Self:
        """Return a copy with `names` marked as untrusted, unless they are safe or the user passed them."""
        name = mark_untrusted_part("encoder", self.own_encoder, not self.own_encoder)
        return dataclasses.replace(self, env=self.env.as_untrusted(), policy=self.with_encoder(name))

    def with_encoder(self, name: str) -> Any:
        """Return the policy config, with the encoder `name` if it has an encoder of the user."""
        return dataclasses.replace(self.policy, encoder=name) if self.own_encoder else self.policy

    def build_policy(self, spaces: Spaces) -> Any:
        """Return a new policy for these spaces. Raises ValueError if its encoder has an untrusted name."""
        if self.own_encoder:
            admit_part("encoder", self.own_encoder)
            make_importable(self.own_encoder.partition(":")[0])
        return self.policy.build(spaces)

    def with_trust(self, reason: str | None) -> Self:
        """Return a copy that trusts its untrusted names if `reason` is None.

        Otherwise they stay untrusted, for this reason.
        """

        def change(name: str) -> str:
            if not isinstance(name, UntrustedName):
                return name
            return str(name) if reason is None else UntrustedName(name, reason)

        env = with_names(self.env, *map(change, (self.env.id, *self.env.wrappers)))
        return dataclasses.replace(self, env=env, policy=self.with_encoder(change(self.own_encoder)))

    @property
    def memory(self) -> MemoryConfig:
        """Memory config of the policy."""
        return self.policy.memory

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
        return self.build_policy(self.env.spaces() if envs is None else Spaces.from_env(envs))

    def find_solved_score(self, measure: str) -> float | None:
        """Return the score at which the task counts as solved; None if it is unknown.

        `measure` is "success" for success rates, or "episodic_return".
        """
        if self.solved_at is not None or measure == "success":
            return _SOLVED_SUCCESS if self.solved_at is None else self.solved_at
        return self.env.reward_threshold()

    def check_limits(self) -> None:
        """Raise ValueError if the experiment exceeds the limits for untrusted runs."""
        check_env_limits(self.env.num_envs, self.env.num_processes)
        super().check_limits()

    def rough_bytes(self) -> dict[str, int]:
        """Return a dict from settings, such as `env.num_envs=8`, to estimated bytes in training.

        Creates at most one environment.
        """
        rows = self.env.num_envs
        check_memory_limit({f"env.num_envs={rows:,}": rows * _PER_ENV})
        spaces = self.env.spaces()
        policy = sketch(lambda: self.build_policy(spaces), MEMORY_LIMIT)
        spaces_of_one = [*leaf_spaces(spaces.observation).values(), *leaf_spaces(spaces.action).values()]
        numbers = _PER_STEP + sum(math.prod(space.shape or ()) for space in spaces_of_one)
        length = self.segment_length * (1 + self.learner.sampled_burn_in)
        steps = rows * length * (spaces.num_agents or 1)
        return {
            f"policy.memory={type(self.memory).__name__}": _COPIES * nbytes(policy.state_dict()),
            f"policy.memory of env.num_envs={rows:,}": state_nbytes(policy, rows),
            f"env.num_envs={rows:,}, {self._describe_length()}": _NUMBER * steps * numbers,
        }

    def _describe_length(self) -> str:
        """Return the settings on which the number of steps in memory depends."""
        burn_in = self.learner.sampled_burn_in
        segments = f", learner.burn_in_segments={burn_in:,}" if burn_in else ""
        return f"segment_length={self.segment_length:,}{segments}"

    def check(self, ray: RayOptions | None = None) -> EnvFacts:
        """Build policy and learner once, and take a few environment steps. Return the environment's facts.

        Raises ValueError or TypeError naming the invalid setting, and the errors of the environment's
        `try_out`.
        """
        rows, learner = self.env.num_envs, self.learner
        if learner.policy_type != self.policy_type:
            raise ValueError(
                f"learner={type(learner).__name__}: it trains the policy of one "
                f"{learner.policy_type}, not of one {self.policy_type}; choose another learner"
            )
        if getattr(self.policy, "normalize_observations", False) and not learner.updates_statistics:
            raise ValueError(
                f"policy.normalize_observations=True: {type(learner).__name__} does not update the "
                "statistics of observations; set updates_statistics=True in its class and call "
                "policy.update_statistics(segment) after each update, or use another learner"
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
        if ray is None:
            check_processes(self.env.num_processes)
        facts = self.env.facts()
        state = self.planned_learner.build(self.build_policy(facts.spaces)).get_state()
        to_plain(state, f"the state of {type(learner).__name__}'s learner")
        self.env.try_out()
        return facts


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RLConfig):
    """Config of an experiment in which a policy with a memory learns one environment."""

    kind: ClassVar[str] = "train"
    policy_type: ClassVar[str | None] = "agent"

    recipe: str = "ppo"
    """Task name in run directories and plots."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """Environment."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Encoder, memory and heads of the policy."""
    learner: LearnerConfig = field(default_factory=PPOConfig)
    """Config of the learner: PPO by default."""
    segment_length: int = 64
    """Steps per environment between two updates; also the length of backpropagation through time. The state
    of the memory carries over to the next segment, but without gradients."""

    @property
    def success_without_memory(self) -> float | None:
        """Best possible success rate without memory; None if it is unknown."""
        return self.env.success_without_memory()

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return a copy of this config with another memory in its policy."""
        return dataclasses.replace(self, policy=dataclasses.replace(self.policy, memory=memory))

    @property
    def label(self) -> str:
        """Registered name of the memory; the name of a learner other than PPO comes before it."""
        memory = name_of(self.memory)
        return memory if type(self.learner) is PPOConfig else f"{get_learner_name(self.learner)}-{memory}"


@dataclass(frozen=True, kw_only=True)
class TeamTaskConfig(RLConfig):
    """Config of a multi-agent experiment; agents act on their own observations and received messages."""

    kind: ClassVar[str] = "team"
    policy_type: ClassVar[str | None] = "team"

    recipe: str = "team"
    """Task name in run directories and plots."""
    method: str = "gamatr"
    """Method name in run directories and plots; `--method` also sets policy and learner."""
    env: TeamEnvConfig = field(default_factory=TeamEnvConfig)
    """Environment."""
    policy: TeamPolicyConfig = field(default_factory=TeamPolicyConfig)
    """Policy of the team."""
    learner: LearnerConfig = field(default_factory=GAMATRConfig)
    """Config of the learner."""
    segment_length: int = 25
    """Steps per environment between two updates; also the length of backpropagation through time. The state
    of the memory carries over to the next segment, but without gradients."""

    @property
    def label(self) -> str:
        """Name of the multi-agent method."""
        return self.method

    @property
    def success_without_memory(self) -> None:
        """None, since the best success rate without memory is unknown for teams."""
        return None

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return a copy with another memory in the policy; the label of the copy names this memory."""
        method = f"{self.method.partition('-on-')[0]}-on-{name_of(memory)}"
        return dataclasses.replace(
            self, method=method, policy=dataclasses.replace(self.policy, memory=memory)
        )

    def with_learner(self, learner: LearnerConfig) -> Self:
        """Return a copy with another learner; the label of the copy names this learner."""
        name = learner.mode if isinstance(learner, GAMATRConfig) else get_learner_name(learner)
        method = f"{self.method.partition('-by-')[0]}-by-{name}"
        return dataclasses.replace(self, method=method, learner=learner)
