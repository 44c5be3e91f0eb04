"""The local engine of teams: environments, policy and learner in one process, exactly resumable on the CPU."""

from __future__ import annotations

import logging
from typing import Any

from scrubjay.agents.gamatr import GAMATR
from scrubjay.agents.team_policy import TeamPolicy
from scrubjay.agents.team_sampler import TeamSampler
from scrubjay.experiments.device import resolve_device
from scrubjay.experiments.local import LocalEngine
from scrubjay.experiments.metrics import EpisodeWindow
from scrubjay.experiments.seeding import derive_seed
from scrubjay.experiments.team_evaluation import PolicyActor, evaluate_team
from scrubjay.experiments.team_task import TeamTaskConfig

_log = logging.getLogger(__name__)


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
    """Return the summary of the episodes that belong to a run's result; empty if none are asked for or none ends."""
    if not config.eval_episodes:
        return {}
    seed = derive_seed(config.seed, "evaluation")
    try:
        return evaluate_team(PolicyActor(policy), config.env, config.eval_episodes, seed).summary()
    except ValueError as error:  # the training was fine; the environment never ends
        _log.warning("not evaluated: %s", error)
        return {}
