"""What an experiment is, as data: written to config.json, overridden on the command line, run again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from scrubjay.agents.policy import Policy, PolicyConfig
from scrubjay.agents.ppo import PPO, PPOConfig
from scrubjay.experiments.ballet_probe import BalletProbeConfig
from scrubjay.experiments.cluster import RayOptions
from scrubjay.experiments.device import resolve_device
from scrubjay.experiments.environments import EnvConfig
from scrubjay.experiments.metrics import OnUpdate
from scrubjay.experiments.sampled import SampledConfig
from scrubjay.experiments.sequence_task import SequenceTaskConfig
from scrubjay.experiments.team_task import TeamTaskConfig
from scrubjay.memory import MemoryConfig, name_of, serialization


class Experiment(Protocol):
    """All that run directories, resume and plot ask of an experiment, of whatever kind."""

    kind: ClassVar[str]
    """Name in config.json of the class to rebuild."""

    @property
    def recipe(self) -> str:
        """Name of the task: runs of one recipe share a panel in plots."""
        ...

    @property
    def label(self) -> str:
        """Name of the contender: runs of one label share a curve."""
        ...

    @property
    def seed(self) -> int:
        """Source of all randomness."""
        ...

    @property
    def memory(self) -> MemoryConfig:
        """What remembers."""
        ...

    @property
    def planned_steps(self) -> int:
        """Environment steps after which the run is done."""
        ...

    @property
    def success_without_memory(self) -> float | None:
        """The best success there is without memory; None where nobody worked it out."""
        ...

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return the same experiment with another memory."""
        ...

    def check(self, ray: RayOptions | None = None) -> None:
        """Raise ValueError or TypeError, in one clear line, if this cannot run here, or on Ray if told so."""
        ...

    def run(
        self,
        run_dir: Path,
        progress: bool = False,
        ray: RayOptions | None = None,
        on_update: OnUpdate | None = None,
    ) -> None:
        """Start, or go on from the newest checkpoint in `run_dir`, until done; on Ray if told so."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainConfig(SampledConfig):
    """A reinforcement-learning experiment: a policy with a memory learns one environment by PPO."""

    kind: ClassVar[str] = "train"

    recipe: str = "ppo"
    """Name of the task in run directories and plots."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """What to learn."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Who learns."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """How."""
    segment_length: int = 64
    """Steps per copy between updates: gradients reach this far back, the memory's state further."""

    @property
    def label(self) -> str:
        """The memory's registered name."""
        return name_of(self.policy.memory)

    @property
    def success_without_memory(self) -> float | None:
        """The environment's own, where it is known."""
        return self.env.success_without_memory()

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return the same experiment with another memory in its policy."""
        return dataclasses.replace(self, policy=dataclasses.replace(self.policy, memory=memory))

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the parts once. Raises ValueError or TypeError naming what does not fit."""
        if ray is None:
            resolve_device(self.device)
        elif max(ray.num_env_runners, ray.num_learners) > self.env.num_envs:
            raise ValueError(
                f"num_env_runners={ray.num_env_runners}, num_learners={ray.num_learners}: "
                f"at most env.num_envs={self.env.num_envs}, as each needs an environment's row"
            )
        if self.ppo.num_minibatches > self.env.num_envs:
            raise ValueError(
                f"ppo.num_minibatches={self.ppo.num_minibatches}: at most env.num_envs={self.env.num_envs}, "
                "as a minibatch is a set of whole environments"
            )
        with self.env.make() as env:
            PPO(Policy(env.observation_space, env.action_space, self.policy), self.ppo)

    def engine(self, on_ray: bool) -> Callable[..., Any]:
        """Return the engine of one process, or of many."""
        if on_ray:
            from scrubjay.experiments.ray_engine import RayEngine

            return RayEngine
        from scrubjay.experiments.local import LocalEngine

        return LocalEngine


_KINDS: dict[str, type[Any]] = {
    config.kind: config for config in (TrainConfig, BalletProbeConfig, SequenceTaskConfig, TeamTaskConfig)
}


def to_json(config: Experiment) -> str:
    """Return the text of config.json."""
    return json.dumps(serialization.encode(config), indent=2) + "\n"


def from_json(text: str) -> Experiment:
    """Return the config `to_json` wrote. Raises ValueError naming what does not fit."""
    fields = json.loads(text)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"kind={kind!r} in config.json: choose from {', '.join(_KINDS)}")
    return serialization.decode(_KINDS[kind], fields)
