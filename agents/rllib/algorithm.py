"""PPO over segments as an RLlib algorithm: RLlib places, restarts and counts; the maths is ours."""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import ray
import torch
from gymnasium.vector import VectorEnv
from ray.exceptions import RayError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER_GROUP, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_RETURN_MEAN,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)

from scrubjay.agents.policy import PolicyConfig
from scrubjay.agents.ppo import PPOConfig
from scrubjay.agents.rllib.learner import SegmentLearner
from scrubjay.agents.rllib.module import MemoryModule
from scrubjay.agents.rllib.runner import Sample, SegmentRunner
from scrubjay.agents.sampler import EpisodeStats
from scrubjay.agents.segment import Segment


class SegmentPPOConfig(AlgorithmConfig):
    """Configures `SegmentPPO`; `env_runners(num_env_runners=)` and `learners(num_learners=)` are RLlib's own.

    Example:
        config = (
            SegmentPPOConfig()
            .segments(vector_env=EnvConfig("CartPole-v1").make_vector, num_envs=32)
            .env_runners(num_env_runners=2)
        )
        algorithm = config.build_algo()
        algorithm.train()
    """

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or SegmentPPO)
        self.vector_env: Callable[[int], VectorEnv] | None = None
        self.num_envs = 16
        self.segment_length = 64
        self.policy = PolicyConfig()
        self.ppo = PPOConfig()
        self.sampling_seed = 0
        self.minibatch_seed = 0
        self.env_runner_cls = SegmentRunner
        # A dead runner is tried again at once; RLlib's default is to leave it for a minute.
        self.fault_tolerance(
            restart_failed_env_runners=True,
            delay_between_env_runner_restarts_s=1.0,
            env_runner_health_probe_timeout_s=5.0,
        )
        self.env_runners(num_env_runners=0, create_local_env_runner=False)

    def segments(
        self,
        *,
        vector_env: Callable[[int], VectorEnv] | None = None,
        num_envs: int | None = None,
        segment_length: int | None = None,
        policy: PolicyConfig | None = None,
        ppo: PPOConfig | None = None,
        sampling_seed: int | None = None,
        minibatch_seed: int | None = None,
    ) -> Self:
        """Set what is sampled and learned; what is not given stays as it is.

        `vector_env` makes that many environments, of autoreset mode SAME_STEP; it is pickled to the workers.
        `num_envs` are the rows of all runners together, shared out as evenly as can be.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        for name, value in given.items():
            if value is not None:
                setattr(self, name, value)
        return self

    def rows_of(self, worker_index: int) -> tuple[int, int]:
        """Return the first row and the number of rows of a runner; runners count from 1, 0 is the local one."""
        if worker_index == 0:
            return 0, self.num_envs
        rows, left = divmod(self.num_envs, self.num_env_runners or 1)
        before = worker_index - 1
        return before * rows + min(before, left), rows + (before < left)

    def validate(self) -> None:
        """Raise ValueError naming what does not fit."""
        super().validate()
        if self.vector_env is None:
            raise ValueError("vector_env is not set; call segments(vector_env=...)")
        for name in ("num_env_runners", "num_learners"):
            if getattr(self, name) > self.num_envs:
                raise ValueError(
                    f"{name}={getattr(self, name)} is more than num_envs={self.num_envs}: "
                    "each needs a row; use more environments"
                )

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the module that holds `policy`."""
        return RLModuleSpec(
            module_class=MemoryModule,
            model_config={"policy": self.policy, "max_seq_len": self.segment_length},
        )

    def get_default_learner_class(self) -> type[SegmentLearner]:
        """Return `SegmentLearner`."""
        return SegmentLearner


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


class SegmentPPO(Algorithm):
    """Samples a segment from every runner, updates by all of them, and sends the new weights with the next call.

    Runners that die are restarted by Ray and begin new episodes; until then an iteration has fewer rows.
    A learner that dies is an error: RLlib restarts none.
    """

    last_update: Update | None = None
    config: Any
    learner_group: Any
    env_runner_group: Any

    @classmethod
    def get_default_config(cls) -> SegmentPPOConfig:
        """Return a new config."""
        return SegmentPPOConfig()

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
        """Return what every living env runner answers; what it raises is raised here, and no reason to restart it."""
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
        """Take restarted runners back; weights come with the next call, and there is no other state to sync."""
        return env_runner_group.probe_unhealthy_env_runners()

    def training_step(self) -> None:
        """Make one iteration; called by RLlib."""
        samples = self._collect()
        began = time.perf_counter()
        segment = Segment.cat([sample.segment for sample in samples])
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
        """Sample until there are rows for every minibatch and learner, which takes one call if no runner is gone."""
        group = self.env_runner_group
        weights = ray.put(self._weights)
        needed = max(self.config.ppo.num_minibatches, self.config.num_learners, 1)
        samples: list[Sample] = []
        retry, deadline = False, time.monotonic() + _PATIENCE
        while sum(sample.segment.num_rows for sample in samples) < needed:
            if retry:
                time.sleep(0.5)
                self.restore_env_runners(group)
            retry = True
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"no env runner has come back for {_PATIENCE:.0f} s: {group.num_healthy_remote_env_runners()} of "
                    f"{group.num_remote_env_runners()} are alive; does the cluster still have a CPU for each?"
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
