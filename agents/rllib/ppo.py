"""PPO over segments as an RLlib algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from gymnasium import spaces
from gymnasium.vector import VectorEnv
from ray.rllib.algorithms.algorithm import Algorithm

from scrubjay.agents.rl.peers import Alone
from scrubjay.agents.rl.policy import Policy, PolicyConfig
from scrubjay.agents.rl.ppo import PPO, PPOConfig
from scrubjay.agents.rl.sampler import Sampler
from scrubjay.agents.rllib.algorithm import SegmentAlgorithm
from scrubjay.agents.rllib.config import SegmentAlgorithmConfig
from scrubjay.agents.rllib.module import MemoryModule


class SegmentPPOConfig(SegmentAlgorithmConfig):
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

    module_class = MemoryModule

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or SegmentPPO)
        self.vector_env: Callable[[int], VectorEnv] | None = None
        self.policy = PolicyConfig()
        self.ppo = PPOConfig()
        self.minibatch_seed = 0

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

        Args:
            vector_env: Makes that many environments, of autoreset mode SAME_STEP; pickled to the workers.
            num_envs: Rows of all runners together, shared out as evenly as can be.
            segment_length: Steps of each row in a batch.
            policy: Settings of the policy, its memory included.
            ppo: Settings of the updates.
            sampling_seed: Draws episodes and actions.
            minibatch_seed: Draws minibatches.
        """
        return self._set_given(
            vector_env=vector_env,
            num_envs=num_envs,
            segment_length=segment_length,
            policy=policy,
            ppo=ppo,
            sampling_seed=sampling_seed,
            minibatch_seed=minibatch_seed,
        )

    def validate(self) -> None:
        """Raise ValueError naming what does not fit."""
        super().validate()
        if self.vector_env is None:
            raise ValueError("vector_env is not set; call segments(vector_env=...)")

    def make_envs(self, rows: int) -> VectorEnv:
        """Return so many environments."""
        assert self.vector_env is not None
        return self.vector_env(rows)

    def spaces_of(self, envs: VectorEnv) -> tuple[spaces.Space, spaces.Space]:
        """Return the spaces of one environment."""
        return envs.single_observation_space, envs.single_action_space

    def make_policy(self, envs: VectorEnv) -> Policy:
        """Return a new policy."""
        return Policy(*self.spaces_of(envs), self.policy)

    def make_sampler(self, envs: VectorEnv, policy: Policy, seed: int) -> Sampler:
        """Return a sampler of these environments."""
        return Sampler(envs, policy, self.segment_length, seed)

    def make_learner(self, policy: Policy, peers: Alone) -> PPO:
        """Return PPO; with peers, it makes the update that one would by the whole batch."""
        return PPO(policy, self.ppo, self.minibatch_seed, peers)

    @property
    def rows_needed(self) -> int:
        """One for every minibatch and learner."""
        return max(self.ppo.num_minibatches, self.num_learners or 0)


class SegmentPPO(SegmentAlgorithm):
    """`PPO` of a policy with any memory, sampled and learned by any number of processes."""

    @classmethod
    def get_default_config(cls) -> SegmentPPOConfig:
        """Return a new config."""
        return SegmentPPOConfig()
