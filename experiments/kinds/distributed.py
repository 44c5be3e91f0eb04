"""The Ray engine: the same run as the local engine's, sampled and learned by any number of processes."""

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
from scrubjay.experiments.kinds.base import Experiment
from scrubjay.experiments.kinds.engine import Engine
from scrubjay.experiments.kinds.episodes import kept, taken
from scrubjay.experiments.kinds.sampled import SampledConfig, evaluate_result
from scrubjay.experiments.runs.cluster import RayOptions, connect, free_cpus
from scrubjay.experiments.runs.metrics import EpisodeWindow
from scrubjay.experiments.runs.seeding import derive_seed

_log = logging.getLogger(__name__)

_ATTEMPTS = 3
_PATIENCE = 120.0
"""Seconds to wait for CPUs to come back before going on with fewer env runners."""


class RayEngine(Engine):
    """Runners and learners of a `SampledConfig` on a Ray cluster; this process holds the run directory.

    After each update this process has the newest weights and learner's state, so that the loss of a runner,
    a learner or a node costs one update at most: runners are restarted by Ray, for a learner everything is
    built anew from here. What a lost runner's episodes had come to is lost; it begins new ones.
    """

    def __init__(
        self, config: SampledConfig, run_dir: Path, options: RayOptions, trust: bool = False
    ) -> None:
        self.options = options
        self._joined = connect(options)
        try:
            gpus = ray.cluster_resources().get("GPU", 0)
            if config.device == "cuda" and options.num_learners > gpus:
                raise ValueError(
                    f"num_learners={options.num_learners} on device='cuda' need a GPU each; the cluster has "
                    f"{gpus:.0f}: ask for fewer, or use --device cpu"
                )
            super().__init__(config, run_dir, trust)
        except BaseException:
            if self._joined:
                ray.shutdown()
            raise

    def _build(self) -> None:
        self.episodes = EpisodeWindow()
        self.model = self._begun(self.config.make_policy())
        self._parts: dict[str, Any] = {"policy": self.model.state_dict(), "learner": None}
        self.algorithm = self._start(self.options.num_env_runners)
        self.algorithm.set_parts(self._parts)

    def _start(self, num_env_runners: int) -> SegmentAlgorithm:
        config: SampledConfig = self.config
        algorithm_config = (
            SegmentConfig()
            .segments(
                envs=config.env.make_rows,
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
        with contextlib.suppress(OSError):  # RLlib makes a folder in the user's home, which stays empty
            Path(str(algorithm.logdir)).rmdir()
        return algorithm

    def _learn(self) -> tuple[int, dict[str, float]]:
        lost: RayError | None = None
        for attempt in range(_ATTEMPTS):
            try:
                if lost is not None:
                    self._rebuild(lost)
                self.algorithm.train()
                break
            except RayError as error:
                if attempt + 1 == _ATTEMPTS:
                    raise
                lost = error
        update = self.algorithm.last_update
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
        """Build runners and learners anew, with the weights and states after the last whole update."""
        reason = str(error).strip().splitlines()[-1]
        _log.warning("a learner is lost at step %d (%s); building all anew", self.step, reason)
        with contextlib.suppress(Exception):  # parts of it are gone
            self.algorithm.stop()
        deadline = time.monotonic() + _PATIENCE
        while (cpus := free_cpus()) < self.options.num_cpus and time.monotonic() < deadline:
            time.sleep(1.0)
        if cpus < self.options.num_learners:
            raise RuntimeError(
                f"num_learners={self.options.num_learners}: the cluster has {cpus} CPUs left; "
                "resume with fewer, or when its nodes are back"
            ) from error
        num_env_runners = min(self.options.num_env_runners, max(0, cpus - self.options.num_learners))
        if num_env_runners < self.options.num_env_runners:
            _log.warning("the cluster has %d CPUs left: going on with %d env runners", cpus, num_env_runners)
        self.algorithm = self._start(num_env_runners)
        self.algorithm.set_parts(self._parts)

    def _get_parts(self) -> dict[str, Any]:
        states = self.algorithm.call_runners(lambda runner: runner.get_state())
        return {
            "learner": self._parts["learner"],
            "samplers": kept(sorted(states, key=lambda state: state["first_row"])),
            "episodes": self.episodes.get_state(),
        }

    def _set_parts(self, training: dict[str, Any]) -> None:
        self._parts = {"policy": self.model.state_dict(), "learner": training["learner"]}
        self.algorithm.set_parts(self._parts)
        samplers = taken(training["samplers"], self.config.env.id, self.trust)
        saved = {state["first_row"]: state["sampler"] for state in samplers}
        rows = {first_row: len(sampler["lengths"]) for first_row, sampler in saved.items()}
        indices = range(1, self.options.num_env_runners + 1) if self.options.num_env_runners else [0]
        if rows == dict(self.algorithm.config.rows_of(index) for index in indices):
            states = ray.put(saved)
            self.algorithm.call_runners(lambda runner: runner.restore(ray.get(states)))
        else:
            _log.warning(
                "sampled by %d processes before and by %d now: all begin new episodes",
                len(saved),
                len(indices),
            )
            weights, seed = self._parts["policy"], derive_seed(self.config.seed, "sampling", self.step)
            self.algorithm.call_runners(lambda runner: runner.restart(weights, seed))
        self.episodes.set_state(training["episodes"])

    def _evaluate(self) -> dict[str, Any]:
        return evaluate_result(self.model, self.config)

    def _close(self) -> None:
        try:
            self.algorithm.stop()
        finally:
            if self._joined:
                ray.shutdown()


def make_ray_engine(config: Experiment, run_dir: Path, options: RayOptions, trust: bool = False) -> RayEngine:
    """Return what trains `config` on Ray; `config.check(options)` has said that it can be."""
    assert isinstance(config, SampledConfig)
    return RayEngine(config, run_dir, options, trust)
