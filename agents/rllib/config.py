"""What is distributed, whoever learns: rows of environments, who acts in them, who samples and who learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

from gymnasium.spaces import Space
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from scrubjay.agents.rl.learner import Learner, LearnerConfig
from scrubjay.agents.rl.peers import Alone
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.agents.rl.sampler import RowSampler
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.rllib.algorithm import SegmentAlgorithm
from scrubjay.agents.rllib.learner import SegmentLearner
from scrubjay.agents.rllib.module import MemoryModule, TeamModule, of_row
from scrubjay.agents.rllib.runner import SegmentRunner
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.agents.teams.sampler import make_sampler


class SegmentConfig(AlgorithmConfig):
    """Configures `SegmentTraining`, by any learner, of one agent's policy or of a team's.

    It is pickled to runners and learners, who make their parts by it. `env_runners(num_env_runners=)` and
    `learners(num_learners=)` are RLlib's own.

    Example:
        config = (
            SegmentConfig()
            .segments(envs=EnvConfig("CartPole-v1").make_rows, num_envs=32, learner=PPOConfig(epochs=2))
            .env_runners(num_env_runners=2)
        )
        algorithm = config.build_algo()
        algorithm.train()
    """

    envs_field: ClassVar[str] = "envs"
    """What `segments` calls the environments."""

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
        envs: Callable[[int], Any] | None = None,
        num_envs: int | None = None,
        segment_length: int | None = None,
        policy: PolicyConfig | TeamPolicyConfig | None = None,
        learner: LearnerConfig | None = None,
        sampling_seed: int | None = None,
        learner_seed: int | None = None,
    ) -> Self:
        """Set what is sampled and learned; what is not given stays as it is.

        Args:
            envs: Makes that many rows: a gymnasium vector environment of autoreset mode SAME_STEP, or teams;
                pickled to the workers.
            num_envs: Rows of all runners together, shared out as evenly as can be.
            segment_length: Steps of each row in a batch.
            policy: Settings of the policy, its memory included.
            learner: Settings of the updates.
            sampling_seed: Draws episodes and actions.
            learner_seed: Draws what the learner draws.
        """
        given = {
            "envs": envs,
            "num_envs": num_envs,
            "segment_length": segment_length,
            "policy": policy,
            "learner": learner,
            "sampling_seed": sampling_seed,
            "learner_seed": learner_seed,
        }
        for name, value in given.items():
            if value is not None:
                setattr(self, name, value)
        return self

    @property
    def module_class(self) -> type[MemoryModule | TeamModule]:
        """Holds the policy as `policy`; its `model_config` has what was set as `policy`."""
        return TeamModule if isinstance(self.policy, TeamPolicyConfig) else MemoryModule

    def make_envs(self, rows: int) -> Any:
        """Return so many rows of the environment, with `close()`."""
        assert self.envs is not None
        return self.envs(rows)

    def spaces_of(self, envs: Any) -> tuple[Space, Space]:
        """Return observation and action space of one row, of a team tuples with one part per agent."""
        return of_row(Spaces.of(envs))

    def make_policy(self, envs: Any) -> Any:
        """Return a new policy, whose weights are those that a module's policy takes."""
        return self.policy.build(Spaces.of(envs))

    def make_sampler(self, envs: Any, policy: Any, seed: int) -> RowSampler:
        """Return a sampler of these rows."""
        return make_sampler(envs, policy, self.segment_length, seed)

    def make_learner(self, policy: Any, peers: Alone) -> Learner:
        """Return a learner of this policy, which shares its updates with `peers`."""
        return self.learner.build(policy, self.learner_seed, peers)

    @property
    def rows_needed(self) -> int:
        """The fewest rows of which an update can be made, one for every learner at least."""
        return max(self.learner.rows_needed, self.num_learners or 0)

    def rows_of(self, worker_index: int) -> tuple[int, int]:
        """Return first row and number of rows of a runner; runners count from 1, 0 is the local one."""
        if worker_index == 0:
            return 0, self.num_envs
        rows, left = divmod(self.num_envs, self.num_env_runners or 1)
        before = worker_index - 1
        return before * rows + min(before, left), rows + (before < left)

    def validate(self) -> None:
        """Raise ValueError naming what does not fit."""
        self.learner.check_learners(self.num_learners or 0)
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
        if self.envs is None:
            raise ValueError(f"{self.envs_field} is not set; call segments({self.envs_field}=...)")

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the module that holds `policy`."""
        return RLModuleSpec(
            module_class=self.module_class,
            model_config={"policy": self.policy, "max_seq_len": self.segment_length},
        )

    def get_default_learner_class(self) -> type[SegmentLearner]:
        """Return `SegmentLearner`."""
        return SegmentLearner


class SegmentTraining(SegmentAlgorithm):
    """A policy with any memory, or a team's, sampled and learned by any number of processes.

    A row of a batch of teams is a whole team, whose agents stay aligned however rows are shared out.
    """

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """Return a new config."""
        return SegmentConfig()
