"""RLlib algorithms and their configs: any learner, PPO and GA-MATR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.agents.rllib.algorithm import SegmentAlgorithm
from scrubjay.agents.rllib.learner import SegmentLearner
from scrubjay.agents.rllib.module import SegmentModule, TeamModule
from scrubjay.agents.rllib.runner import SegmentRunner
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig


class SegmentConfig(AlgorithmConfig):
    """Config of `SegmentTraining`, with any learner and a single-agent or team policy.

    Every env runner and learner receives a pickled copy of the config and builds its objects from this copy.
    RLlib's `env_runners(num_env_runners=)` and `learners(num_learners=)` set the numbers of processes.

    Example::

        config = (
            SegmentConfig()
            .segments(envs=EnvConfig("CartPole-v1").make_batch, num_envs=32, learner=PPOConfig(epochs=2))
            .env_runners(num_env_runners=2)
        )
        algorithm = config.build_algo()
        algorithm.train()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or SegmentTraining)
        self.envs: Callable[[int], Any] | None = None
        self.num_envs = 16
        self.segment_length = 64
        self.policy: PolicyConfig | TeamPolicyConfig = PolicyConfig()
        self.learner: LearnerConfig = PPOConfig()
        self.sampling_seed = 0
        self.learner_seed = 0
        self.env_runner_cls = SegmentRunner
        # A failed runner is retried at once; RLlib's default is to wait for a minute.
        self.fault_tolerance(
            restart_failed_env_runners=True,
            delay_between_env_runner_restarts_s=1.0,
            env_runner_health_probe_timeout_s=5.0,
        )
        self.env_runners(num_env_runners=0, create_local_env_runner=False)

    def segments(
        self,
        *,
        envs: Callable[[int], Any] | None = None,
        num_envs: int | None = None,
        segment_length: int | None = None,
        policy: PolicyConfig | TeamPolicyConfig | None = None,
        learner: LearnerConfig | None = None,
        sampling_seed: int | None = None,
        learner_seed: int | None = None,
    ) -> Self:
        """Set environments, policy and learner; None leaves a setting unchanged.

        Args:
            envs: Function that receives a number n and returns n environments, as a gymnasium vector
                environment with autoreset mode SAME_STEP or as a `TeamEnv`. The function is pickled and sent
                to the workers.
            num_envs: Total number of environments, divided among env runners as evenly as possible.
            segment_length: Steps of each environment in a batch.
            policy: Config of the policy, its memory included.
            learner: Config of the learner.
            sampling_seed: Seed of environments and actions.
            learner_seed: Seed of the learner.
        """
        settings = {
            "envs": envs,
            "num_envs": num_envs,
            "segment_length": segment_length,
            "policy": policy,
            "learner": learner,
            "sampling_seed": sampling_seed,
            "learner_seed": learner_seed,
        }
        for name, value in settings.items():
            if value is not None:
                setattr(self, name, value)
        return self

    @property
    def min_rows(self) -> int:
        """Minimum number of environments of an update: at least one per learner."""
        return max(self.learner.min_rows, self.num_learners or 0)

    def get_row_range(self, worker_index: int) -> tuple[int, int]:
        """Return the index of a runner's first environment, and the runner's number of environments.

        `worker_index=0` is RLlib's local runner, which has all environments.
        """
        if worker_index == 0:
            return 0, self.num_envs
        rows, left = divmod(self.num_envs, self.num_env_runners or 1)
        before = worker_index - 1
        return before * rows + min(before, left), rows + (before < left)

    def validate(self) -> None:
        """Raise ValueError if settings do not match each other."""
        self.learner.check_learners(self.num_learners or 0)
        super().validate()
        for name in ("num_env_runners", "num_learners"):
            if getattr(self, name) > self.num_envs:
                raise ValueError(
                    f"{name}={getattr(self, name)} is more than num_envs={self.num_envs}: "
                    "each process needs an environment; use more environments"
                )
        if self.min_rows > self.num_envs:
            raise ValueError(
                f"num_envs={self.num_envs}: must be at least {self.min_rows}, one for each minibatch; use "
                "more environments or fewer minibatches"
            )
        if self.envs is None:
            raise ValueError("envs is not set; call segments(envs=...)")

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of the module that has the policy."""
        return RLModuleSpec(
            module_class=TeamModule if isinstance(self.policy, TeamPolicyConfig) else SegmentModule,
            model_config={"policy": self.policy, "max_seq_len": self.segment_length},
        )

    def get_default_learner_class(self) -> type[SegmentLearner]:
        """Return `SegmentLearner`."""
        return SegmentLearner


class SegmentTraining(SegmentAlgorithm):
    """Distributed training of a single-agent or team policy with any memory and any learner.

    For teams a batch row is a whole team, so the agents of a team are always processed together.
    """

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """Return a new config."""
        return SegmentConfig()


class SegmentPPOConfig(SegmentConfig):
    """Config of `SegmentPPO`.

    RLlib's `env_runners(num_env_runners=)` and `learners(num_learners=)` set the numbers of processes.

    Example::

        config = (
            SegmentPPOConfig()
            .segments(envs=EnvConfig("CartPole-v1").make_batch, num_envs=32)
            .env_runners(num_env_runners=2)
        )
        algorithm = config.build_algo()
        algorithm.train()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class or SegmentPPO)


class SegmentPPO(SegmentTraining):
    """`PPO` of a policy with any memory, with any number of env runners and learners."""

    @classmethod
    def get_default_config(cls) -> SegmentPPOConfig:
        """Return a new config."""
        return SegmentPPOConfig()


class SegmentGAMATRConfig(SegmentConfig):
    """Config of `SegmentGAMATR`.

    RLlib's `env_runners(num_env_runners=)` and `learners(num_learners=)` set the numbers of processes.
    Any number of env runners sample whole teams. A single learner updates on the whole batch, in the driver
    process (`num_learners=0`) or in a separate process (`num_learners=1`).

    Example::

        config = (
            SegmentGAMATRConfig()
            .segments(envs=TeamEnvConfig().make_batch, num_envs=32)
            .env_runners(num_env_runners=2)
        )
        algorithm = config.build_algo()
        algorithm.train()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class or SegmentGAMATR)
        self.policy = TeamPolicyConfig()
        self.learner = GAMATRConfig()


class SegmentGAMATR(SegmentTraining):
    """`GAMATR` of a team's policy, with any number of env runners and one learner.

    A batch row is a whole team, so the agents of a team are always processed together.
    """

    @classmethod
    def get_default_config(cls) -> SegmentGAMATRConfig:
        """Return a new config."""
        return SegmentGAMATRConfig()
