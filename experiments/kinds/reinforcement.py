"""Reinforcement learning by one agent, as data: by PPO, or by any learner there is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

from scrubjay.agents.learners import name_of_learner
from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments.kinds.sampled import SampledConfig
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import MemoryConfig, name_of


@dataclass(frozen=True, kw_only=True)
class AgentConfig(SampledConfig):
    """A reinforcement-learning experiment: a policy with a memory learns one environment."""

    acts: ClassVar[str | None] = "agent"

    recipe: str = "ppo"
    """Name of the task in run directories and plots."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """What to learn."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Who learns."""
    segment_length: int = 64
    """Steps per copy between updates: gradients reach this far back, the memory's state further."""

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the parts once, and play some steps of the environment. Raises as `SampledConfig.check`."""
        super().check(ray)
        self.env.try_out()

    @property
    def success_without_memory(self) -> float | None:
        """The environment's own, where it is known."""
        return self.env.success_without_memory()

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return the same experiment with another memory in its policy."""
        return dataclasses.replace(self, policy=dataclasses.replace(self.policy, memory=memory))

    def with_learner(self, learner: LearnerConfig) -> AgentConfig:
        """Return the same experiment with another learner: a `TrainConfig` if it is PPO."""
        kept = {item.name: getattr(self, item.name) for item in dataclasses.fields(AgentConfig)}
        if type(learner) is PPOConfig:
            return TrainConfig(**kept, ppo=learner)
        return AgentTaskConfig(**kept, learner=learner)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(AgentConfig):
    """A reinforcement-learning experiment: a policy with a memory learns one environment by PPO."""

    kind: ClassVar[str] = "train"
    learner_field: ClassVar[str] = "ppo"

    ppo: PPOConfig = field(default_factory=PPOConfig)
    """How."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.ppo) is not PPOConfig:
            raise TypeError(f"ppo={self.ppo!r}: of another learner make an AgentTaskConfig(learner=...)")

    @property
    def learner(self) -> PPOConfig:
        """PPO."""
        return self.ppo

    @property
    def label(self) -> str:
        """The memory's registered name."""
        return name_of(self.memory)


@dataclass(frozen=True, kw_only=True)
class AgentTaskConfig(AgentConfig):
    """A reinforcement-learning experiment: a policy with a memory learns one environment by `learner`."""

    kind: ClassVar[str] = "agent"

    learner: LearnerConfig
    """How."""

    @property
    def label(self) -> str:
        """The registered names of learner and memory."""
        return f"{name_of_learner(self.learner)}-{name_of(self.memory)}"
