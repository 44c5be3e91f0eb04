"""A multi-agent experiment, as data: a team learns one environment by a trust region, or by clipping."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from scrubjay.agents.teams.gamatr import GAMATR, GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicy, TeamPolicyConfig
from scrubjay.agents.teams.sampler import TeamSampler
from scrubjay.experiments.evaluation.team import PolicyActor, evaluate_team
from scrubjay.experiments.kinds.reinforcement import LocalEngine
from scrubjay.experiments.kinds.sampled import SampledConfig
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.device import resolve_device
from scrubjay.experiments.runs.metrics import EpisodeWindow
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import MemoryConfig, name_of

_log = logging.getLogger(__name__)


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
    learner: GAMATRConfig = field(default_factory=GAMATRConfig)
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

    def make_policy(self, env: Any = None) -> TeamPolicy:
        """Return a new policy for the experiment's teams, or for `env`, whose agents must be alike theirs."""
        if env is not None:
            return TeamPolicy(
                env.single_observation_space, env.single_action_space, len(env.possible_agents), self.policy
            )
        env = self.env.make_teams(1)
        try:
            return self.make_policy(env)
        finally:
            env.close()

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the parts once. Raises ValueError or TypeError naming what does not fit."""
        if ray is None:
            resolve_device(self.device)
        elif ray.num_env_runners > self.env.num_envs:
            raise ValueError(
                f"num_env_runners={ray.num_env_runners}: at most env.num_envs={self.env.num_envs}, "
                "as each needs a row"
            )
        elif ray.num_learners > 1:
            raise ValueError(
                f"num_learners={ray.num_learners}: a trust region takes the whole batch in one learner; use "
                "0 or 1"
            )
        if self.learner.minibatches > self.env.num_envs:
            raise ValueError(
                f"learner.minibatches={self.learner.minibatches}: at most env.num_envs={self.env.num_envs}, "
                "as a minibatch is a set of whole teams"
            )
        GAMATR(self.make_policy(), self.learner)


class TeamEngine(LocalEngine):
    """Sampler and learner of a `TeamTaskConfig`."""

    model: TeamPolicy  # pyright: ignore[reportIncompatibleVariableOverride]
    config: TeamTaskConfig

    def _build(self) -> None:
        config = self.config
        self.episodes = EpisodeWindow()
        self._envs = config.env.make_teams()
        self.model = config.make_policy(self._envs).to(resolve_device(config.device))
        self.learner = GAMATR(self.model, config.learner, derive_seed(config.seed, "minibatches"))
        self.sampler = TeamSampler(
            self._envs, self.model, config.segment_length, derive_seed(config.seed, "sampling")
        )

    def _evaluate(self) -> dict[str, Any]:
        return evaluate_result(self.model, self.config)


def evaluate_result(policy: TeamPolicy, config: TeamTaskConfig) -> dict[str, Any]:
    """Return the summary of the episodes that belong to a run's result.

    It is empty if none are asked for or none ends.
    """
    if not config.eval_episodes:
        return {}
    seed = derive_seed(config.seed, "evaluation")
    try:
        return evaluate_team(PolicyActor(policy), config.env, config.eval_episodes, seed).summary()
    except ValueError as error:  # the training was fine; the environment never ends
        _log.warning("not evaluated: %s", error)
        return {}
