"""The Ray engine of teams: the same run as the local engine's, sampled by any number of processes."""

from __future__ import annotations

from typing import Any

from scrubjay.agents.rllib import SegmentGAMATRConfig
from scrubjay.agents.team_policy import TeamPolicy
from scrubjay.experiments.ray_engine import RayEngine
from scrubjay.experiments.seeding import derive_seed
from scrubjay.experiments.team_engine import evaluate_result


class TeamRayEngine(RayEngine):
    """Runners and the one learner of a `TeamTaskConfig`."""

    model: TeamPolicy  # pyright: ignore[reportIncompatibleVariableOverride]

    def _make_policy(self) -> TeamPolicy:
        return self.config.make_policy()

    def _algorithm_config(self) -> SegmentGAMATRConfig:
        config = self.config
        return SegmentGAMATRConfig().segments(
            team_env=config.env.make_teams,
            num_envs=config.env.num_envs,
            segment_length=config.segment_length,
            policy=config.policy,
            gamatr=config.learner,
            sampling_seed=derive_seed(config.seed, "sampling", self.step),
            learner_seed=derive_seed(config.seed, "minibatches"),
        )

    def _evaluate(self) -> dict[str, Any]:
        return evaluate_result(self.model, self.config)
