"""Ray engine, which trains the same runs as the local engine, but in any number of processes."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from scrubjay.agents.rllib import SegmentConfig
from scrubjay.agents.rllib.algorithm import SegmentAlgorithm
from scrubjay.experiments.runs.cluster import RayOptions, connect, free_cpus
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.engine import PolicyEngine, pack_env_states, unpack_env_states
from scrubjay.experiments.runs.metrics import EpisodeWindow
from scrubjay.experiments.runs.reinforcement import RLConfig

_log = logging.getLogger(__name__)

_ATTEMPTS = 3
_PATIENCE = 120.0
"""Seconds to wait for CPUs to come back before going on with fewer env runners."""


class RayEngine(PolicyEngine):
    """Engine of an `RLConfig` on a Ray cluster; this process, the driver, holds the run directory.

    After each update the driver has the latest weights and learner state. The loss of a runner, a learner or
    a node therefore costs at most one update. Ray restarts a lost runner, which starts new episodes; its
    unfinished episodes are discarded. If a learner is lost, the driver rebuilds all runners and learners.
    """

    def __init__(self, config: RLConfig, run_dir: Path, options: RayOptions, trust: bool = False) -> None:
        self.options = options
        self._started_ray = connect(options)
        try:
            gpus = ray.cluster_resources().get("GPU", 0)
            if config.device == "cuda" and options.num_learners > gpus:
                raise ValueError(
                    f"num_learners={options.num_learners} on device='cuda' need one GPU each; the cluster "
                    f"has {gpus:.0f} GPUs: request fewer learners, or use --device cpu"
                )
            super().__init__(config, run_dir, trust)
        except BaseException:
            if self._started_ray:
                ray.shutdown()
            raise

    def _build(self) -> None:
        self.episodes = EpisodeWindow()
        self.model = self._load_initial_weights(self.config.make_policy())
        self._parts: dict[str, Any] = {"policy": self.model.state_dict(), "learner": None}
        self.algorithm = self._start(self.options.num_env_runners)
        self.algorithm.set_parts(self._parts)

    def _start(self, num_env_runners: int) -> SegmentAlgorithm:
        config: RLConfig = self.config
        algorithm_config = (
            SegmentConfig()
            .segments(
                envs=config.env.make_batch,
                num_envs=config.env.num_envs,
                segment_length=config.segment_length,
                policy=config.policy,
                learner=config.planned_learner,
                sampling_seed=derive_seed(config.seed, "sampling", self.step),
                learner_seed=derive_seed(config.seed, "minibatches"),
            )
            .env_runners(num_env_runners=num_env_runners)
            .learners(
                num_learners=self.options.num_learners,
                num_gpus_per_learner=1 if config.device == "cuda" else 0,
            )
            .debugging(log_level="ERROR")
        )
        algorithm = algorithm_config.build_algo()
        assert isinstance(algorithm, SegmentAlgorithm)
        with contextlib.suppress(OSError):  # RLlib creates a folder in the user's home that stays empty
            Path(str(algorithm.logdir)).rmdir()
        return algorithm

    def _learn(self) -> tuple[int, dict[str, float]]:
        failure: RayError | None = None
        for attempt in range(_ATTEMPTS):
            try:
                if failure is not None:
                    self._rebuild(failure)
                self.algorithm.train()
                break
            except RayError as error:
                if attempt + 1 == _ATTEMPTS:
                    raise
                failure = error
        update = self.algorithm.last_result
        assert update is not None
        self._parts = update.parts
        self.model.load_state_dict(update.parts["policy"])
        self.episodes.extend(update.episodes)
        rates = {
            f"time/SPS_{name}": update.num_steps / max(seconds, 1e-9)
            for name, seconds in update.seconds.items()
        }
        return update.num_steps, {**self.episodes.means(), **update.metrics, **rates}

    def _rebuild(self, error: Exception) -> None:
        """Rebuild all runners and learners from the weights and states of the last complete update."""
        reason = str(error).strip().splitlines()[-1]
        _log.warning("lost a learner at step %d (%s); rebuilding all runners and learners", self.step, reason)
        with contextlib.suppress(Exception):  # some of its processes are gone
            self.algorithm.stop()
        deadline = time.monotonic() + _PATIENCE
        while (cpus := free_cpus()) < self.options.num_cpus and time.monotonic() < deadline:
            time.sleep(1.0)
        if cpus < self.options.num_learners:
            raise RuntimeError(
                f"num_learners={self.options.num_learners}: the cluster has {cpus} CPUs left; "
                "resume with fewer learners, or when the lost nodes are available again"
            ) from error
        num_env_runners = min(self.options.num_env_runners, max(0, cpus - self.options.num_learners))
        if num_env_runners < self.options.num_env_runners:
            _log.warning(
                "the cluster has %d CPUs left: continuing with %d env runners", cpus, num_env_runners
            )
        self.algorithm = self._start(num_env_runners)
        self.algorithm.set_parts(self._parts)

    def _get_parts(self) -> dict[str, Any]:
        states = self.algorithm.call_runners(lambda runner: runner.get_state())
        return {
            "learner": self._parts["learner"],
            "samplers": pack_env_states(sorted(states, key=lambda state: state["first_row"])),
            "episodes": self.episodes.get_state(),
        }

    def _set_parts(self, training: dict[str, Any]) -> None:
        self._parts = {"policy": self.model.state_dict(), "learner": training["learner"]}
        self.algorithm.set_parts(self._parts)
        samplers = unpack_env_states(training["samplers"], self.config.env.id, self.trust)
        sampler_states = {state["first_row"]: state["sampler"] for state in samplers}
        rows = {first_row: len(sampler["lengths"]) for first_row, sampler in sampler_states.items()}
        indices = range(1, self.options.num_env_runners + 1) if self.options.num_env_runners else [0]
        if rows == dict(self.algorithm.config.get_row_range(index) for index in indices):
            states = ray.put(sampler_states)
            self.algorithm.call_runners(lambda runner: runner.restore(ray.get(states)))
        else:
            _log.warning(
                "sampled by %d processes before and by %d now: all environments start new episodes",
                len(sampler_states),
                len(indices),
            )
            weights, seed = self._parts["policy"], derive_seed(self.config.seed, "sampling", self.step)
            self.algorithm.call_runners(lambda runner: runner.restart(weights, seed))
        self.episodes.set_state(training["episodes"])

    def _close(self) -> None:
        try:
            self.algorithm.stop()
        finally:
            if self._started_ray:
                ray.shutdown()
