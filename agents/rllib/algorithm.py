"""Learning from segments as an RLlib algorithm: RLlib places, restarts and counts; the maths is ours."""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_LEARNER_GROUP, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_RETURN_MEAN,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)

from scrubjay.agents.rl.sampler import EpisodeStats
from scrubjay.agents.rllib.runner import Sample


@dataclass
class Update:
    """What happened in one iteration."""

    num_steps: int
    episodes: list[EpisodeStats]
    metrics: dict[str, float]
    """Of the learner."""
    seconds: dict[str, float]
    """In environments and policies, of the slowest runner, and in the learner."""
    parts: dict[str, Any]
    """Weights and learner's state after it."""


class SegmentAlgorithm(Algorithm):
    """Samples a segment from every runner, updates by all, and sends new weights with the next call.

    Runners that die are restarted by Ray and begin new episodes; until then an iteration has fewer rows.
    A learner that dies is an error: RLlib restarts none.
    """

    last_update: Update | None = None
    config: Any
    learner_group: Any
    env_runner_group: Any

    def setup(self, config: Any) -> None:
        """Build runners and learners; called by RLlib."""
        try:
            super().setup(config)
        except IndexError as error:  # RLlib's, who asks the first of no runners for its spaces
            raise RuntimeError(
                "no env runner could be built, for reasons RLlib has logged; does every node have what the "
                "environment needs?"
            ) from error
        self._get_weights()

    def _get_weights(self) -> None:
        self._weights = self._call_learners(lambda learner: learner.get_parts()["policy"])[0]

    def _call_learners(self, call: Callable[[Any], Any]) -> list[Any]:
        """Return what every learner answers; RLlib would hand out an error as if it were an answer."""
        results = list(self.learner_group.foreach_learner(call))
        for result in results:
            if not result.ok:
                raise result.get()
        if not results:
            raise RayError("no learner is left")
        return [result.get() for result in results]

    def call_runners(self, call: Callable[[Any], Any]) -> list[Any]:
        """Return what every living env runner answers; what it raises is raised here; it is not restarted."""
        answers = self.env_runner_group.foreach_env_runner(_told(call))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """Return what RLlib's own checkpoints hold: the learners. Runners begin new episodes after them."""
        return [(COMPONENT_LEARNER_GROUP, self.learner_group)]

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Go on from an RLlib checkpoint; called by `from_checkpoint` and Tune."""
        super().restore_from_path(path, *args, **kwargs)
        self._get_weights()

    def set_parts(self, parts: dict[str, Any]) -> None:
        """Give all learners, and with the next iteration all runners, these weights and states."""
        self._call_learners(lambda learner, parts=parts: learner.set_parts(parts))
        self._weights = parts["policy"]

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Take restarted runners back; weights come with the next call, and there is no other state."""
        return env_runner_group.probe_unhealthy_env_runners()

    def training_step(self) -> None:
        """Make one iteration; called by RLlib."""
        samples = self._collect()
        began = time.perf_counter()
        segments: list[Any] = [sample.segment for sample in samples]
        segment = type(segments[0]).cat(segments)
        num_learners = self.config.num_learners
        if num_learners:
            parts = torch.arange(segment.num_rows).tensor_split(num_learners)
            data: dict[str, Any] = {"batches": [segment.rows(part) for part in parts]}
        else:
            data = {"batch": segment}
        updated = self.learner_group.update(**data, return_state=True)
        if not updated:
            raise RayError("no learner is left")
        first = updated[0]
        self._weights = first["parts"]["policy"]
        spent = {name: max(s.seconds[name] for s in samples) for name in ("env", "policy")}
        spent["learner"] = time.perf_counter() - began
        episodes = [episode for sample in samples for episode in sample.episodes]
        self.last_update = Update(segment.num_steps, episodes, first["metrics"], spent, first["parts"])
        self._log(self.last_update)

    def _collect(self) -> list[Sample]:
        """Sample until there are rows enough, which takes one call if no runner is gone."""
        group = self.env_runner_group
        weights = ray.put(self._weights)
        samples: list[Sample] = []
        retry, deadline = False, time.monotonic() + _PATIENCE
        while sum(sample.segment.num_rows for sample in samples) < self.config.rows_needed:
            if retry:
                time.sleep(0.5)
                self.restore_env_runners(group)
            retry = True
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"no env runner has come back for {_PATIENCE:.0f} s: "
                    f"{group.num_healthy_remote_env_runners()} of {group.num_remote_env_runners()} are "
                    "alive; does the cluster still have a CPU for each?"
                )
            samples += self.call_runners(lambda runner: runner.sample(ray.get(weights)))
        return sorted(samples, key=lambda sample: sample.first_row)

    def _log(self, update: Update) -> None:
        for episode in update.episodes:
            self.metrics.log_value(
                (ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN), episode.episode_return, reduce="mean", window=100
            )
        self.metrics.log_value(
            (ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), update.num_steps, reduce="lifetime_sum"
        )
        for name, value in update.metrics.items():
            key = (LEARNER_RESULTS, DEFAULT_MODULE_ID, name.removeprefix("losses/"))
            self.metrics.log_value(key, value, reduce="mean", window=1)


_PATIENCE = 120.0
"""Seconds without any env runner after which a run is given up."""


def _told(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return `call` with its errors as answers: RLlib would restart the runner, to fail again.

    Lost and cancelled objects are Ray's own affair.
    """

    def told(runner: Any) -> Any:
        try:
            return call(runner)
        except RayError:
            raise
        except Exception as error:  # noqa: BLE001
            where = traceback.format_exc()
            try:
                error.add_note(f"in an env runner:\n{where}")  # which crosses processes; a traceback does not
                pickle.loads(pickle.dumps(error))
                return error
            except Exception:  # noqa: BLE001  an error that cannot cross
                return RuntimeError(where)

    return told
