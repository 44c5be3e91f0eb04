"""What experiments share whose policy learns from an environment, one agent's and a team's alike."""

from __future__ import annotations

import dataclasses
import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from scrubjay.agents.rl.learner import LearnerConfig
from scrubjay.agents.rl.observations import leaf_spaces
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.experiments.evaluation.team import evaluate_policy
from scrubjay.experiments.kinds.plan import Plan
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.experiments.runs.device import resolve_device
from scrubjay.experiments.runs.plain import to_plain
from scrubjay.experiments.runs.room import ROOM, check_room
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.memory import MemoryConfig
from scrubjay.memory.sketch import nbytes, sketch, state_nbytes

_log = logging.getLogger(__name__)

_PER_ROW = 2**17  # bytes of an environment, where each row is one of its own
_COPIES = 4  # weights, their gradients, and Adam's two averages
_NUMBER = 4  # bytes
_PER_STEP = 8  # numbers of a step beside what is seen and done


@dataclass(frozen=True, kw_only=True)
class SampledConfig(Plan, ABC):
    """Rows of an environment are stepped by a policy; after every segment it learns."""

    kind: ClassVar[str]
    """Name in config.json of the class to rebuild."""
    acts: ClassVar[str | None]
    """Whose policy it is: "agent" or "team"."""
    shaped_by: ClassVar[tuple[str, ...]] = ("policy",)
    learner_field: ClassVar[str] = "learner"
    """What the learner's settings are called on the command line."""

    env: Any
    """What to learn; it has `num_envs` rows, which `make_rows` makes, `spaces` and `facts`."""
    policy: Any
    """Who learns; it has a `memory`, and `build`."""
    total_steps: int = 500_000
    """Environment steps of the whole run, over all rows; rounded up to whole updates."""
    segment_length: int
    """Steps per row between updates: gradients reach this far back, the memory's state further."""
    seed: int = 0
    """Source of all randomness: weights, environments, actions, the order of what is learned from."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy computes; auto takes the GPU if there is one."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints; a killed run loses at most this much work."""
    eval_episodes: int = 100
    """Episodes played by the trained policy at the end, for result.json; 0 for none."""
    recipe: str
    """Name of the task in run directories and plots."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("total_steps", "segment_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("seed", "checkpoint_seconds", "eval_episodes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")

    if TYPE_CHECKING:  # a dataclass below that has it as a field would take this for its default

        @property
        def learner(self) -> LearnerConfig:
            """How."""
            ...

    @property
    def steps_per_update(self) -> int:
        """Environment steps in one segment over all rows."""
        return self.env.num_envs * self.segment_length

    @property
    def planned_steps(self) -> int:
        """`total_steps`, rounded up to whole updates."""
        return -(-self.total_steps // self.steps_per_update) * self.steps_per_update

    @property
    def planned_learner(self) -> LearnerConfig:
        """The learner's settings, for as many steps as the run was begun for."""
        return self.learner.over(self.first_plan)

    @property
    def memory(self) -> MemoryConfig:
        """The policy's memory."""
        return self.policy.memory

    @property
    @abstractmethod
    def label(self) -> str:
        """Name of the contender: runs of one label share a curve."""

    @property
    @abstractmethod
    def success_without_memory(self) -> float | None:
        """The best success there is without memory; None where nobody worked it out."""

    @abstractmethod
    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return the same experiment with another memory in its policy."""

    def with_learner(self, learner: LearnerConfig) -> SampledConfig:
        """Return the same experiment with another learner."""
        return dataclasses.replace(self, learner=learner)

    def make_model(self) -> Any:
        """Return a new policy."""
        return self.make_policy()

    def make_policy(self, envs: Any = None) -> Any:
        """Return a new policy for the experiment's environment, or for `envs`, rows of one like it."""
        return self.policy.build(self.env.spaces() if envs is None else Spaces.of(envs))

    def rough_bytes(self) -> dict[str, int]:
        """Return about how many bytes training takes, by what takes them; makes one environment at most."""
        rows = self.env.num_envs
        check_room({f"env.num_envs={rows:,}": rows * _PER_ROW})
        spaces = self.env.spaces()
        policy = sketch(lambda: self.policy.build(spaces), ROOM)
        spaces_of_one = [*leaf_spaces(spaces.observation).values(), *leaf_spaces(spaces.action).values()]
        numbers = _PER_STEP + sum(math.prod(space.shape or ()) for space in spaces_of_one)
        steps = rows * self.segment_length * (spaces.num_agents or 1)
        return {
            f"policy.memory={type(self.memory).__name__}": _COPIES * nbytes(policy.state_dict()),
            f"policy.memory of env.num_envs={rows:,}": state_nbytes(policy, rows),
            f"env.num_envs={rows:,}, segment_length={self.segment_length:,}": _NUMBER * steps * numbers,
        }

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the parts once. Raises ValueError or TypeError naming what does not fit."""
        rows, learner = self.env.num_envs, self.learner
        if learner.acts != self.acts:
            raise ValueError(
                f"{self.learner_field}={type(learner).__name__}: it improves the policy of one "
                f"{learner.acts}, not of one {self.acts}"
            )
        if ray is None:
            resolve_device(self.device)
        elif max(ray.num_env_runners, ray.num_learners) > rows:
            raise ValueError(
                f"num_env_runners={ray.num_env_runners}, num_learners={ray.num_learners}: "
                f"at most env.num_envs={rows}, as each needs an environment's row"
            )
        else:
            learner.check_learners(ray.num_learners)
        if learner.rows_needed > rows:
            raise ValueError(
                f"{self.learner_field}.{learner.rows_by}={learner.rows_needed}: at most env.num_envs={rows}, "
                "as a minibatch is a set of whole rows"
            )
        state = self.planned_learner.build(self.make_policy()).get_state()
        to_plain(state, f"the state of {type(learner).__name__}'s learner")


def evaluate_result(policy: Any, config: SampledConfig) -> dict[str, Any]:
    """Return the summary of the episodes that belong to a run's result.

    It is empty if none are asked for or none ends.
    """
    if not config.eval_episodes:
        return {}
    seed = derive_seed(config.seed, "evaluation")
    try:
        return evaluate_policy(policy, config.env, config.eval_episodes, seed).summary()
    except ValueError as error:  # the training was fine; the environment never ends
        _log.warning("not evaluated: %s", error)
        return {}
