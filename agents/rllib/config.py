"""What is distributed, whoever learns: rows of environments, who acts in them, who samples and who learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

from gymnasium import spaces
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from scrubjay.agents.rl.peers import Alone
from scrubjay.agents.rllib.learner import SegmentLearner
from scrubjay.agents.rllib.runner import SegmentRunner


class SegmentAlgorithmConfig(AlgorithmConfig, ABC):
    """Tells runners and learners, to whom it is pickled, how to make their parts, whose kind subclasses say.

    `env_runners(num_env_runners=)` and `learners(num_learners=)` are RLlib's own. Policies have `device` and
    are torch modules; samplers have what `Sampler` has, learners what `PPO` has: `update`, `get_state` and
    `set_state`.
    """

    module_class: type[TorchRLModule]
    """Holds the policy as `policy`; its `model_config` has what was set as `policy`."""

    def __init__(self, algo_class: type) -> None:
        super().__init__(algo_class=algo_class)
        self.num_envs = 16
        self.segment_length = 64
        self.policy: Any = None
        self.sampling_seed = 0
        self.env_runner_cls = SegmentRunner
        # A dead runner is tried again at once; RLlib's default is to leave it for a minute.
        self.fault_tolerance(
            restart_failed_env_runners=True,
            delay_between_env_runner_restarts_s=1.0,
            env_runner_health_probe_timeout_s=5.0,
        )
        self.env_runners(num_env_runners=0, create_local_env_runner=False)

    @abstractmethod
    def make_envs(self, rows: int) -> Any:
        """Return so many rows of the environment, with `close()`."""

    @abstractmethod
    def spaces_of(self, envs: Any) -> tuple[spaces.Space, spaces.Space]:
        """Return observation and action space of one row: those of the module."""

    @abstractmethod
    def make_policy(self, envs: Any) -> Any:
        """Return a new policy, whose weights are those that a module's policy takes."""

    @abstractmethod
    def make_sampler(self, envs: Any, policy: Any, seed: int) -> Any:
        """Return a sampler of these rows."""

    @abstractmethod
    def make_learner(self, policy: Any, peers: Alone) -> Any:
        """Return a learner of this policy, which shares its updates with `peers`."""

    @property
    @abstractmethod
    def rows_needed(self) -> int:
        """The fewest rows of which an update can be made."""

    def rows_of(self, worker_index: int) -> tuple[int, int]:
        """Return first row and number of rows of a runner; runners count from 1, 0 is the local one."""
        if worker_index == 0:
            return 0, self.num_envs
        rows, left = divmod(self.num_envs, self.num_env_runners or 1)
        before = worker_index - 1
        return before * rows + min(before, left), rows + (before < left)

    def validate(self) -> None:
        """Raise ValueError naming what does not fit."""
        super().validate()
        for name in ("num_env_runners", "num_learners"):
            if getattr(self, name) > self.num_envs:
                raise ValueError(
                    f"{name}={getattr(self, name)} is more than num_envs={self.num_envs}: "
                    "each needs a row; use more environments"
                )
        if self.rows_needed > self.num_envs:
            raise ValueError(
                f"num_envs={self.num_envs}: an update takes at least {self.rows_needed} rows, one for each "
                "minibatch; use more environments or fewer minibatches"
            )

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the module that holds `policy`."""
        return RLModuleSpec(
            module_class=self.module_class,
            model_config={"policy": self.policy, "max_seq_len": self.segment_length},
        )

    def get_default_learner_class(self) -> type[SegmentLearner]:
        """Return `SegmentLearner`."""
        return SegmentLearner

    def _set_given(self, **given: Any) -> Self:
        for name, value in given.items():
            if value is not None:
                setattr(self, name, value)
        return self
