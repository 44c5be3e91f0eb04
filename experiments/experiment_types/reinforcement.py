"""Config of a reinforcement-learning experiment with one agent, trained by PPO or another learner."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

from scrubjay.agents.learners import get_learner_name
from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments.experiment_types.rl_base import RLConfig
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import MemoryConfig, name_of


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

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the policy and the learner once, and run a few environment steps.

        Raises the errors of `RLConfig.check` and of `EnvConfig.try_out`.
        """
        super().check(ray)
        self.env.try_out()

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
