"""Config of a multi-agent experiment: a team learns one environment by GAMATR or another learner."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Self

from scrubjay.agents.learners import get_learner_name
from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments.experiment_types.rl_base import RLConfig
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import MemoryConfig, name_of


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
    """Learner."""
    segment_length: int = 25
    """Steps per environment between updates, the length of backpropagation through time; the memory's state
    is carried on beyond it."""

    @property
    def label(self) -> str:
        """Method name."""
        return self.method

    @property
    def success_without_memory(self) -> None:
        """Unknown for teams."""
        return None

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return a copy of this config with another memory in its policy and label."""
        method = f"{self.method.partition('-on-')[0]}-on-{name_of(memory)}"
        return dataclasses.replace(
            self, method=method, policy=dataclasses.replace(self.policy, memory=memory)
        )

    def with_learner(self, learner: LearnerConfig) -> Self:
        """Return a copy of this config with another learner, also in its label."""
        name = learner.mode if isinstance(learner, GAMATRConfig) else get_learner_name(learner)
        method = f"{self.method.partition('-by-')[0]}-by-{name}"
        return dataclasses.replace(self, method=method, learner=learner)

    def check(self, ray: RayOptions | None = None) -> None:
        """Build all parts once, and run a few environment steps. Raises as `RLConfig.check`."""
        super().check(ray)
        self.env.try_out()
