"""GA-MATR over segments of teams as an RLlib algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from gymnasium import spaces
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

from scrubjay.agents.rl.peers import Alone
from scrubjay.agents.rllib.algorithm import SegmentAlgorithm
from scrubjay.agents.rllib.config import SegmentAlgorithmConfig
from scrubjay.agents.teams.env import TeamEnv
from scrubjay.agents.teams.gamatr import GAMATR, GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicy, TeamPolicyConfig
from scrubjay.agents.teams.sampler import TeamSampler


class TeamModule(TorchRLModule):
    """Holds a `TeamPolicy` for `SegmentGAMATR`; has no forward pass for RLlib's own learners and runners.

    Its spaces are a team's, tuples with one part per agent; `model_config` has `policy`, a
    `TeamPolicyConfig`. Raises TypeError if either is of another kind.
    """

    policy: TeamPolicy

    def setup(self) -> None:
        """Build the policy; called by RLlib."""
        config = self.model_config.get("policy")
        if not isinstance(config, TeamPolicyConfig):
            raise TypeError(f"model_config['policy'] is {config!r}: expected a TeamPolicyConfig")
        seen, done = self.observation_space, self.action_space
        if not isinstance(seen, spaces.Tuple) or not isinstance(done, spaces.Tuple):
            raise TypeError(f"spaces {seen} and {done}: expected tuples with one part per agent")
        self.policy = TeamPolicy(seen.spaces[0], done.spaces[0], len(seen.spaces), config)


class SegmentGAMATRConfig(SegmentAlgorithmConfig):
    """Configures `SegmentGAMATR`; `env_runners(num_env_runners=)` and `learners(num_learners=)` are RLlib's.

    Any number of env runners sample, each whole teams; one learner takes the whole batch, in the driver
    (`num_learners=0`) or in a process of its own (1).

    Example:
        config = (
            SegmentGAMATRConfig()
            .segments(team_env=TeamEnvConfig().make_teams, num_envs=32)
            .env_runners(num_env_runners=2)
        )
        algorithm = config.build_algo()
        algorithm.train()
    """

    module_class = TeamModule

    def __init__(self, algo_class: type[Algorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or SegmentGAMATR)
        self.team_env: Callable[[int], TeamEnv] | None = None
        self.policy = TeamPolicyConfig()
        self.gamatr = GAMATRConfig()
        self.learner_seed = 0

    def segments(
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
        """Set what is sampled and learned; what is not given stays as it is.

        Args:
            team_env: Makes that many rows of teams; pickled to the workers.
            num_envs: Rows of all runners together, shared out as evenly as can be.
            segment_length: Steps of each row in a batch.
            policy: Settings of the policy, its memory included.
            gamatr: Settings of the updates.
            sampling_seed: Draws episodes and actions.
            learner_seed: Draws minibatches and the order of agents.
        """
        return self._set_given(
            team_env=team_env,
            num_envs=num_envs,
            segment_length=segment_length,
            policy=policy,
            gamatr=gamatr,
            sampling_seed=sampling_seed,
            learner_seed=learner_seed,
        )

    def validate(self) -> None:
        """Raise ValueError naming what does not fit."""
        if (self.num_learners or 0) > 1:
            raise ValueError(
                f"num_learners={self.num_learners}: a trust region is searched in the whole batch by one "
                "learner; use 0, in the driver, or 1, in a process of its own"
            )
        super().validate()
        if self.team_env is None:
            raise ValueError("team_env is not set; call segments(team_env=...)")

    def make_envs(self, rows: int) -> TeamEnv:
        """Return so many teams."""
        assert self.team_env is not None
        return self.team_env(rows)

    def spaces_of(self, envs: TeamEnv) -> tuple[spaces.Tuple, spaces.Tuple]:
        """Return the spaces of one team: a tuple with one part per agent."""
        agents = len(envs.possible_agents)
        return (
            spaces.Tuple([envs.single_observation_space] * agents),
            spaces.Tuple([envs.single_action_space] * agents),
        )

    def make_policy(self, envs: TeamEnv) -> TeamPolicy:
        """Return a new policy for such teams."""
        agents = len(envs.possible_agents)
        return TeamPolicy(envs.single_observation_space, envs.single_action_space, agents, self.policy)

    def make_sampler(self, envs: TeamEnv, policy: TeamPolicy, seed: int) -> TeamSampler:
        """Return a sampler of these teams."""
        return TeamSampler(envs, policy, self.segment_length, seed)

    def make_learner(self, policy: TeamPolicy, peers: Alone) -> GAMATR:
        """Return GA-MATR, which never has peers: see `validate`."""
        return GAMATR(policy, self.gamatr, self.learner_seed)

    @property
    def rows_needed(self) -> int:
        """One for every minibatch."""
        return self.gamatr.minibatches


class SegmentGAMATR(SegmentAlgorithm):
    """`GAMATR` of a team's policy, sampled by any number of processes and learned by one.

    A row of a batch is a whole team, whose agents stay aligned however rows are shared out.
    """

    @classmethod
    def get_default_config(cls) -> SegmentGAMATRConfig:
        """Return a new config."""
        return SegmentGAMATRConfig()
