"""A multi-agent experiment, as data: a team learns one environment by a trust region, or by clipping."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from scrubjay.agents.gamatr import GAMATR, GAMATRConfig
from scrubjay.agents.team_policy import TeamPolicy, TeamPolicyConfig
from scrubjay.experiments.cluster import RayOptions
from scrubjay.experiments.device import resolve_device
from scrubjay.experiments.metrics import OnUpdate
from scrubjay.experiments.teams import TeamEnvConfig
from scrubjay.memory import MemoryConfig, name_of


@dataclass(frozen=True)
class TeamTaskConfig:
    """A multi-agent experiment: every agent of a team acts by its own observations and by what it hears."""

    kind: ClassVar[str] = "team"

    recipe: str = "team"
    """Name of the task in run directories and plots."""
    method: str = "gamatr"
    """Name of the contender in run directories and plots; `--method` sets policy and learner with it."""
    env: TeamEnvConfig = field(default_factory=TeamEnvConfig)
    """What to learn."""
    policy: TeamPolicyConfig = field(default_factory=TeamPolicyConfig)
    """Who learns."""
    learner: GAMATRConfig = field(default_factory=GAMATRConfig)
    """How."""
    total_steps: int = 500_000
    """Environment steps of the whole run, over all rows; a step of a team is one. Rounded up to whole updates."""
    segment_length: int = 25
    """Steps per row between updates: gradients reach this far back, the memory's state further."""
    seed: int = 0
    """Source of all randomness: weights, environments, actions, the order of agents."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy computes; auto takes the GPU if there is one."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints; a killed run loses at most this much work."""
    eval_episodes: int = 100
    """Episodes played by the trained team at the end, for result.json; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("total_steps", "segment_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("seed", "checkpoint_seconds", "eval_episodes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")

    @property
    def label(self) -> str:
        """The method's name."""
        return self.method

    @property
    def steps_per_update(self) -> int:
        """Environment steps in one segment over all rows."""
        return self.env.num_envs * self.segment_length

    @property
    def memory(self) -> MemoryConfig:
        """The policy's memory."""
        return self.policy.memory

    @property
    def planned_steps(self) -> int:
        """`total_steps`, rounded up to whole updates."""
        return -(-self.total_steps // self.steps_per_update) * self.steps_per_update

    @property
    def success_without_memory(self) -> None:
        """Nobody worked it out."""
        return None

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return the same experiment with another memory in its policy, and in its label."""
        method = f"{self.method.partition('-on-')[0]}-on-{name_of(memory)}"
        return dataclasses.replace(
            self, method=method, policy=dataclasses.replace(self.policy, memory=memory)
        )

    def make_policy(self, env: Any = None) -> TeamPolicy:
        """Return a new policy for the experiment's teams, or for `env`, whose agents must be of the same kind."""
        if env is not None:
            return TeamPolicy(
                env.single_observation_space, env.single_action_space, len(env.possible_agents), self.policy
            )
        env = self.env.make_teams(1)
        try:
            return self.make_policy(env)
        finally:
            env.close()

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the parts once. Raises ValueError or TypeError naming what does not fit."""
        if ray is None:
            resolve_device(self.device)
        elif ray.num_env_runners > self.env.num_envs:
            raise ValueError(
                f"num_env_runners={ray.num_env_runners}: at most env.num_envs={self.env.num_envs}, "
                "as each needs a row"
            )
        elif ray.num_learners > 1:
            raise ValueError(
                f"num_learners={ray.num_learners}: a trust region takes the whole batch in one learner; use 0 or 1"
            )
        if self.learner.minibatches > self.env.num_envs:
            raise ValueError(
                f"learner.minibatches={self.learner.minibatches}: at most env.num_envs={self.env.num_envs}, "
                "as a minibatch is a set of whole teams"
            )
        GAMATR(self.make_policy(), self.learner)

    def run(
        self,
        run_dir: Path,
        progress: bool = False,
        ray: RayOptions | None = None,
        on_update: OnUpdate | None = None,
    ) -> None:
        """Train, in this process or on Ray, going on from the newest checkpoint in `run_dir` if there is one."""
        from scrubjay.experiments.engine import train_with  # the engines themselves read configs
        from scrubjay.experiments.team_engine import TeamEngine

        engine: Any = TeamEngine
        if ray is not None:
            from scrubjay.experiments.team_ray_engine import TeamRayEngine  # imports Ray

            engine = functools.partial(TeamRayEngine, options=ray)
        train_with(engine, self, run_dir, progress, on_update)
