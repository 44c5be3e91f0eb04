"""Reinforcement learning by one agent: the experiment as data, and its engine in one process."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from scrubjay.agents.rl.policy import Policy, PolicyConfig
from scrubjay.agents.rl.ppo import PPO, PPOConfig
from scrubjay.agents.rl.sampler import Sampler
from scrubjay.experiments.evaluation.policy import evaluate
from scrubjay.experiments.kinds.engine import Engine
from scrubjay.experiments.kinds.sampled import SampledConfig
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.device import resolve_device
from scrubjay.experiments.runs.metrics import EpisodeWindow
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import MemoryConfig, name_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(SampledConfig):
    """A reinforcement-learning experiment: a policy with a memory learns one environment by PPO."""

    kind: ClassVar[str] = "train"
    acts: ClassVar[str | None] = "agent"

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

    def make_policy(self) -> Policy:
        """Return a new policy for the experiment's environment."""
        with self.env.make() as env:
            return Policy(env.observation_space, env.action_space, self.policy)

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
        PPO(self.make_policy(), self.ppo)


class LocalEngine(Engine):
    """Sampler and learner of a `TrainConfig`; on the CPU it resumes exactly."""

    model: Policy

    def _build(self) -> None:
        config = self.config
        self.episodes = EpisodeWindow()
        self._envs = config.env.make_vector()
        spaces = self._envs.single_observation_space, self._envs.single_action_space
        self.model = Policy(*spaces, config.policy).to(resolve_device(config.device))
        self.learner = PPO(self.model, config.ppo, derive_seed(config.seed, "minibatches"))
        self.sampler = Sampler(
            self._envs, self.model, config.segment_length, derive_seed(config.seed, "sampling")
        )

    def _learn(self) -> tuple[int, dict[str, float]]:
        before = dict(self.sampler.seconds)
        segment = self.sampler.collect()
        sampled = time.perf_counter()
        losses = self.learner.update(segment)
        learner_seconds = time.perf_counter() - sampled
        self.episodes.extend(self.sampler.pop_episodes())
        spent = {name: self.sampler.seconds[name] - before.get(name, 0.0) for name in ("env", "policy")}
        spent["learner"] = learner_seconds
        steps = segment.num_steps
        rates = {f"time/SPS_{name}": steps / max(seconds, 1e-9) for name, seconds in spent.items()}
        return steps, {**self.episodes.means(), **losses, **rates}

    def _get_parts(self) -> dict[str, Any]:
        return {
            "learner": self.learner.get_state(),
            "samplers": [{"first_row": 0, "sampler": self.sampler.get_state()}],
            "episodes": self.episodes.get_state(),
        }

    def _set_parts(self, training: dict[str, Any]) -> None:
        self.learner.set_state(training["learner"])
        if not self.sampler.exact:
            _log.warning(
                "%s offers no get_state/set_state: resuming with fresh episodes, not exactly",
                self.config.env.id,
            )
        samplers = training["samplers"]
        # Of a checkpoint made while an env runner was gone, the rows are not all there.
        if [len(saved["sampler"]["lengths"]) for saved in samplers] == [self.config.env.num_envs]:
            self.sampler.set_state(samplers[0]["sampler"])
        else:
            _log.warning("sampled by %d processes before and by 1 now: all begin new episodes", len(samplers))
            self.sampler.restart(derive_seed(self.config.seed, "sampling", self.step))
        self.episodes.set_state(training["episodes"])

    def _evaluate(self) -> dict[str, Any]:
        return evaluate_policy(self.model, self.config)

    def _close(self) -> None:
        self._envs.close()


def evaluate_policy(policy: Policy, config: TrainConfig) -> dict[str, Any]:
    """Return the summary of the episodes that belong to a run's result.

    It is empty if none are asked for or none ends.
    """
    if not config.eval_episodes:
        return {}
    seed = derive_seed(config.seed, "evaluation")
    try:
        return evaluate(policy, config.env, config.eval_episodes, seed).summary()
    except ValueError as error:  # the training was fine; the environment never ends
        _log.warning("not evaluated: %s", error)
        return {}
