"""RLlib algorithms for the learners PPO and GA-MATR."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

from gymnasium.vector import VectorEnv

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.agents.rllib.config import SegmentConfig, SegmentTraining
from scrubjay.agents.teams.env import TeamEnv
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig


class SegmentPPOConfig(SegmentConfig):
    """Config of `SegmentPPO`.

    RLlib's `env_runners(num_env_runners=)` and `learners(num_learners=)` set the numbers of processes.

    Example:
        config = (
            SegmentPPOConfig()
            .segments(vector_env=EnvConfig("CartPole-v1").make_vector, num_envs=32)
            .env_runners(num_env_runners=2)
        )
        algorithm = config.build_algo()
        algorithm.train()
    """

    envs_field: ClassVar[str] = "vector_env"

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or SegmentPPO)

    @property
    def ppo(self) -> Any:
        """Config of the learner."""
        return self.learner

    def segments(  # pyright: ignore[reportIncompatibleMethodOverride]
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
        """Set environments, policy and learner; see `SegmentConfig.segments`."""
        return super().segments(
            envs=vector_env,
            num_envs=num_envs,
            segment_length=segment_length,
            policy=policy,
            learner=ppo,
            sampling_seed=sampling_seed,
            learner_seed=minibatch_seed,
        )


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

    Example:
        config = (
            SegmentGAMATRConfig()
            .segments(team_env=TeamEnvConfig().make_teams, num_envs=32)
            .env_runners(num_env_runners=2)
        )
        algorithm = config.build_algo()
        algorithm.train()
    """

    envs_field: ClassVar[str] = "team_env"

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or SegmentGAMATR)
        self.policy = TeamPolicyConfig()
        self.learner = GAMATRConfig()

    @property
    def gamatr(self) -> Any:
        """Config of the learner."""
        return self.learner

    def segments(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        *,
        team_env: Callable[[int], TeamEnv] | None = None,
        num_envs: int | None = None,
        segment_length: int | None = None,
        policy: TeamPolicyConfig | None = None,
        gamatr: GAMATRConfig | None = None,
        sampling_seed: int | None = None,
        learner_seed: int | None = None,
    ) -> Self:
        """Set environments, policy and learner; see `SegmentConfig.segments`."""
        return super().segments(
            envs=team_env,
            num_envs=num_envs,
            segment_length=segment_length,
            policy=policy,
            learner=gamatr,
            sampling_seed=sampling_seed,
            learner_seed=learner_seed,
        )


class SegmentGAMATR(SegmentTraining):
    """`GAMATR` of a team's policy, with any number of env runners and one learner.

    A batch row is a whole team, so the agents of a team are always processed together.
    """

    @classmethod
    def get_default_config(cls) -> SegmentGAMATRConfig:
        """Return a new config."""
        return SegmentGAMATRConfig()
