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

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the policy and the learner once, and run a few environment steps.

        Raises the errors of `RLConfig.check` and of `TeamEnvConfig.try_out`.
        """
        super().check(ray)
        self.env.try_out()
