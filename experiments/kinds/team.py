"""A multi-agent experiment, as data: a team learns one environment by a trust region, or by clipping."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

from scrubjay.agents.learners import name_of_learner
from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments.kinds.sampled import SampledConfig
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import MemoryConfig, name_of


@dataclass(frozen=True, kw_only=True)
class TeamTaskConfig(SampledConfig):
    """A multi-agent experiment: every agent of a team acts by its own observations and by what it hears."""

    kind: ClassVar[str] = "team"
    acts: ClassVar[str | None] = "team"

    recipe: str = "team"
    """Name of the task in run directories and plots."""
    method: str = "gamatr"
    """Name of the contender in run directories and plots; `--method` sets policy and learner with it."""
    env: TeamEnvConfig = field(default_factory=TeamEnvConfig)
    """What to learn."""
    policy: TeamPolicyConfig = field(default_factory=TeamPolicyConfig)
    """Who learns."""
    learner: LearnerConfig = field(default_factory=GAMATRConfig)
    """How."""
    segment_length: int = 25
    """Steps per row between updates: gradients reach this far back, the memory's state further."""

    @property
    def label(self) -> str:
        """The method's name."""
        return self.method

    @property
    def success_without_memory(self) -> None:
        """Nobody worked it out."""
        return None

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return the same experiment with another memory in its policy, and in its label."""
        method = f"{self.method.partition('-on-')[0]}-on-{name_of(memory)}"
        return dataclasses.replace(
            self, method=method, policy=dataclasses.replace(self.policy, memory=memory)
        )

    def with_learner(self, learner: LearnerConfig) -> Self:
        """Return the same experiment with another learner, and that in its label."""
        name = learner.mode if isinstance(learner, GAMATRConfig) else name_of_learner(learner)
        method = f"{self.method.partition('-by-')[0]}-by-{name}"
        return dataclasses.replace(self, method=method, learner=learner)

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the parts once, and play some steps of the environment. Raises as `SampledConfig.check`."""
        super().check(ray)
        self.env.try_out()
