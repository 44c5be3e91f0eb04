"""Local engine, which samples and trains in this process."""

from __future__ import annotations

import logging
import time
from typing import Any

from scrubjay.agents.teams.sampler import make_sampler
from scrubjay.experiments.experiment_types.engine import Engine
from scrubjay.experiments.experiment_types.env_state import pack_env_states, unpack_env_states
from scrubjay.experiments.experiment_types.rl_base import RLConfig, evaluate_result
from scrubjay.experiments.runs.device import resolve_device
from scrubjay.experiments.runs.metrics import EpisodeWindow
from scrubjay.experiments.runs.seeding import derive_seed

_log = logging.getLogger(__name__)


class LocalEngine(Engine):
    """Engine of an `RLConfig`, for one agent or a team.

    On the CPU a resumed run has exactly the results of an uninterrupted run.
    """

    def _build(self) -> None:
        config: RLConfig = self.config
        self.episodes = EpisodeWindow()
        self._envs = config.env.make_batch()
        self.model = self._load_initial_weights(config.make_policy(self._envs)).to(
            resolve_device(config.device)
        )
        self.learner = config.planned_learner.build(self.model, derive_seed(config.seed, "minibatches"))
        self.sampler = make_sampler(
            self._envs, self.model, config.segment_length, derive_seed(config.seed, "sampling")
        )

    def _learn(self) -> tuple[int, dict[str, float]]:
        before = dict(self.sampler.seconds)
        segment = self.sampler.collect()
        sampling_end = time.perf_counter()
        losses = self.learner.update(segment)
        learner_seconds = time.perf_counter() - sampling_end
        self.episodes.extend(self.sampler.pop_episodes())
        seconds_by_part = {
            name: self.sampler.seconds[name] - before.get(name, 0.0) for name in ("env", "policy")
        }
        seconds_by_part["learner"] = learner_seconds
        steps = segment.num_steps
        rates = {f"time/SPS_{name}": steps / max(seconds, 1e-9) for name, seconds in seconds_by_part.items()}
        return steps, {**self.episodes.means(), **losses, **rates}

    def _get_parts(self) -> dict[str, Any]:
        return {
            "learner": self.learner.get_state(),
            "samplers": pack_env_states([{"first_row": 0, "sampler": self.sampler.get_state()}]),
            "episodes": self.episodes.get_state(),
        }

    def _set_parts(self, training: dict[str, Any]) -> None:
        self.learner.set_state(training["learner"])
        if not self.sampler.restores_env:
            _log.warning(
                "%s has no get_state/set_state: resuming with new episodes, not exactly",
                self.config.env.id,
            )
        samplers = unpack_env_states(training["samplers"], self.config.env.id, self.trust)
        # A checkpoint written while an env runner was lost lacks some environments.
        if [len(entry["sampler"]["lengths"]) for entry in samplers] == [self.config.env.num_envs]:
            self.sampler.set_state(samplers[0]["sampler"])
        else:
            _log.warning(
                "sampled by %d processes before and by 1 now: all environments start new episodes",
                len(samplers),
            )
            self.sampler.restart(derive_seed(self.config.seed, "sampling", self.step))
        self.episodes.set_state(training["episodes"])

    def _evaluate(self) -> dict[str, Any]:
        return evaluate_result(self.model, self.config)

    def _close(self) -> None:
        self._envs.close()
