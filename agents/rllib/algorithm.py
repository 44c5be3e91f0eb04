"""RLlib algorithm that trains on segments: RLlib manages processes, scrubjay samples and updates."""

from __future__ import annotations

import math
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

from scrubjay.agents.rl.rollout import EpisodeStats
from scrubjay.agents.rllib.runner import RunnerSample


@dataclass
class IterationResult:
    """Result of one training iteration."""

    num_steps: int
    episodes: list[EpisodeStats]
    metrics: dict[str, float]
    """Metrics of the learner."""
    seconds: dict[str, float]
    """Wall time in seconds. `env` is the time in the environments, and `policy` is the rest of the sampling;
    both are maxima over the env runners. `learner` is the time of the update."""
    parts: dict[str, Any]
    """Policy weights and learner state after the update."""


class SegmentAlgorithm(Algorithm):
    """Algorithm that samples one segment per env runner, and then updates the policy on all segments.

    Env runners receive the new weights with the next iteration. Ray restarts failed env runners, which then
    begin new episodes. Until the restart an iteration has fewer environments. A failed learner raises an
    error, since RLlib does not restart learners.

    RLlib's checkpoints (`save_to_path`, `from_checkpoint`) are pickles. Load only your own: loading a
    checkpoint can execute any code of its author. The checkpoints of Scrubjay's runs are plain data.
    """

    last_result: IterationResult | None = None
    config: Any
    learner_group: Any
    env_runner_group: Any

    def setup(self, config: Any) -> None:
        """Build env runners and learners; called by RLlib."""
        try:
            super().setup(config)
        except (
            IndexError
        ) as error:  # RLlib reads the spaces of the first runner without a check that there is one
            raise RuntimeError(
                "no env runner could be built; see RLlib's log for the reasons, and check that every node "
                "has the packages of the environment"
            ) from error
        self._get_weights()

    def _get_weights(self) -> None:
        self._weights = self._call_learners(lambda learner: learner.get_parts()["policy"])[0]

    def _call_learners(self, call: Callable[[Any], Any]) -> list[Any]:
        """Run `call` on every learner and return the results.

        If a call fails, its error is raised. RLlib itself would put the error into the results.
        """
        results = list(self.learner_group.foreach_learner(call))
        for result in results:
            if not result.ok:
                raise result.get()
        if not results:
            raise RayError("all learners have failed; see Ray's log for the reasons")
        return [result.get() for result in results]

    def call_runners(self, call: Callable[[Any], Any]) -> list[Any]:
        """Run `call` on every healthy env runner and return the results.

        Raises a runner's error; the runner is not restarted.
        """
        answers = self.env_runner_group.foreach_env_runner(_return_errors(call))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """Return the components of RLlib checkpoints: the learners.

        Restored env runners begin new episodes.
        """
        return [(COMPONENT_LEARNER_GROUP, self.learner_group)]

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restore an RLlib checkpoint, a pickle; called by `from_checkpoint` and Tune."""
        super().restore_from_path(path, *args, **kwargs)
        self._get_weights()

    def set_parts(self, parts: dict[str, Any]) -> None:
        """Set weights and state of all learners; env runners receive the weights with the next iteration."""
        self._call_learners(lambda learner, parts=parts: learner.set_parts(parts))
        self._weights = parts["policy"]

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Mark restarted env runners as healthy; they receive weights with their next `sample` call."""
        return env_runner_group.probe_unhealthy_env_runners()

    def training_step(self) -> None:
        """Run one training iteration; called by RLlib."""
        samples = self._collect()
        start_time = time.perf_counter()
        segments: list[Any] = [sample.segment for sample in samples]
        segment = type(segments[0]).cat(segments)
        num_learners = self.config.num_learners
        if num_learners:
            parts = torch.arange(segment.num_rows).tensor_split(num_learners)
            data: dict[str, Any] = {"batches": [segment.rows(part) for part in parts]}
        else:
            data = {"batch": segment}
        results = self.learner_group.update(**data, return_state=True)
        if not results:
            raise RayError("all learners have failed; see Ray's log for the reasons")
        first = results[0]
        self._weights = first["parts"]["policy"]
        seconds = {name: max(s.seconds[name] for s in samples) for name in ("env", "policy")}
        seconds["learner"] = time.perf_counter() - start_time
        episodes = [episode for sample in samples for episode in sample.episodes]
        self.last_result = IterationResult(
            segment.num_steps, episodes, first["metrics"], seconds, first["parts"]
        )
        self._log(self.last_result)

    def _collect(self) -> list[RunnerSample]:
        """Collect segments from the env runners until the batch has at least `min_rows` environments.

        One segment from each env runner is enough unless env runners have failed.
        """
        group = self.env_runner_group
        weights = ray.put(self._weights)
        samples: list[RunnerSample] = []
        deadline = math.inf
        while sum(sample.segment.num_rows for sample in samples) < self.config.min_rows:
            if deadline < math.inf:
                time.sleep(0.5)
                self.restore_env_runners(group)
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"the batch is incomplete after {_RUNNER_TIMEOUT:.0f} s: "
                    f"{group.num_healthy_remote_env_runners()} of {group.num_remote_env_runners()} env "
                    "runners are healthy; check that the cluster has a CPU for each env runner"
                )
            samples += self.call_runners(lambda runner: runner.sample(ray.get(weights)))
            # Sampling itself may take longer than the timeout, which is for lost env runners.
            deadline = min(deadline, time.monotonic() + _RUNNER_TIMEOUT)
        return sorted(samples, key=lambda sample: sample.first_row)

    def _log(self, update: IterationResult) -> None:
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


_RUNNER_TIMEOUT = 120.0
"""Seconds without enough env runners after which an iteration fails."""


def _return_errors(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap `call` in a function that returns errors as results.

    If a runner raised an error, RLlib would restart the runner, although a new runner would raise the same
    error. Ray's own errors, such as for lost objects, are still raised.
    """

    def call_safely(runner: Any) -> Any:
        try:
            return call(runner)
        except RayError:
            raise
        except Exception as error:  # noqa: BLE001
            where = traceback.format_exc()
            try:
                error.add_note(f"in an env runner:\n{where}")  # notes are pickled, tracebacks are not
                pickle.loads(pickle.dumps(error))
                return error
            except Exception:  # noqa: BLE001  an error that cannot be pickled
                return RuntimeError(where)

    return call_safely
