"""Config of any experiment: what run directories, engines, resuming and plots require of it."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
from torch import nn
from tyro.conf import Fixed, Suppress

from scrubjay.experiments.cli.failures import check_at_least
from scrubjay.experiments.resources import check_memory_limit
from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.memory import MemoryConfig

if TYPE_CHECKING:
    from scrubjay.experiments.tasks.environments import EnvFacts

RECORDED = {"recorded": True}
"""Metadata of fields that a run records itself and that no flag sets."""


@dataclass(frozen=True)
class Extension:
    """Extension of a run to a larger total of steps. Raises ValueError if the total is already reached."""

    previous_total: int
    """`total_steps` before the extension."""
    done: int
    """Steps completed when the run was extended."""
    total: int
    """`total_steps` after the extension."""

    def __post_init__(self) -> None:
        if self.previous_total < 1 or self.done < 0:
            raise ValueError(
                f"extension from previous_total={self.previous_total} at done={self.done}: "
                "previous_total must be at least 1, and done must not be negative"
            )
        if self.total <= self.done:
            raise ValueError(
                f"total_steps={self.total}: the run has completed {self.done} steps; choose a larger total"
            )


@dataclass(frozen=True, kw_only=True)
class Experiment(ABC):
    """Base config of all experiments. Raises ValueError if the fields contradict each other.

    A run is trained to `total_steps`, which `scrubjay resume RUN --total-steps N` can raise. Schedules, such
    as that of the learning rate, last for `first_plan` steps and then keep their last value.
    """

    kind: ClassVar[str]
    """Name of this class in config.json."""
    policy_type: ClassVar[str | None] = None
    """Type of the trained policy: "agent" or "team"; None if there is no policy."""
    shape_fields: ClassVar[tuple[str, ...]]
    """Fields that determine the shapes of the weights, besides the spaces of the environment."""

    init_from: str | None = None
    """Run directory whose latest weights initialize this run. Optimizer state and step counts are not
    copied."""
    init_step: Annotated[int | None, Suppress, Fixed] = dataclasses.field(default=None, metadata=RECORDED)
    """Number of steps that the run `init_from` had trained its weights; recorded at the start of this run."""
    extensions: Annotated[tuple[Extension, ...], Suppress, Fixed] = dataclasses.field(
        default=(), metadata=RECORDED
    )
    """Extensions by `scrubjay resume RUN --total-steps N`; the last total is `total_steps`."""
    recipe: str
    """Task name in run directories and plots; runs with the same recipe share a panel."""
    total_steps: int
    """Total of steps; `planned_steps` rounds it up to whole updates."""
    seed: int = 0
    """Seed of all randomness."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints; a killed run loses at most this much work."""

    if TYPE_CHECKING:  # a field in some subclasses and a property in others

        @property
        def memory(self) -> MemoryConfig:
            """Memory config."""
            ...

    def __post_init__(self) -> None:
        if self.init_from is not None:
            object.__setattr__(self, "init_from", os.fspath(self.init_from))
        check_at_least(self, 1, "total_steps")
        check_at_least(self, 0, "seed", "checkpoint_seconds")
        if self.init_step is not None:
            check_at_least(self, 0, "init_step")
        for before, after in pairwise(self.extensions):
            if after.previous_total != before.total or after.done < before.done:
                raise ValueError(
                    f"extensions: {after} does not follow {before}; the later extension "
                    f"must have previous_total={before.total} and done of at least {before.done}"
                )
        if self.extensions and self.extensions[-1].total != self.total_steps:
            raise ValueError(
                f"total_steps={self.total_steps}: must equal the total of the last extension, "
                f"{self.extensions[-1].total}; for a new run pass extensions=()"
            )

    @property
    @abstractmethod
    def label(self) -> str:
        """Method name in plots; runs with the same label share a curve."""

    @property
    def planned_steps(self) -> int:
        """Number of steps after which the run ends; at least `total_steps`."""
        return self.total_steps

    @property
    @abstractmethod
    def success_without_memory(self) -> float | None:
        """Best possible success rate without memory; None if it is unknown."""

    @abstractmethod
    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return a copy of this config with another memory."""

    @abstractmethod
    def make_model(self) -> nn.Module:
        """Return a new, untrained model."""

    @abstractmethod
    def check(self, ray: RayOptions | None = None) -> EnvFacts | None:
        """Raise ValueError or TypeError if the experiment cannot run. Return the facts of its environment.

        The check is for this machine if `ray` is None, and otherwise for a Ray cluster with these options.
        """

    def rough_bytes(self) -> dict[str, int]:
        """Return a dict from settings, such as `env.num_envs=8`, to estimated bytes in training and test.

        An empty dict means that no estimate is known. Raises ValueError if one setting alone exceeds the
        memory limit.
        """
        return {}

    def check_limits(self) -> None:
        """Raise ValueError if the experiment exceeds the limits for untrusted runs."""
        check_memory_limit(self.rough_bytes())

    @property
    def first_plan(self) -> int:
        """Value of `total_steps` before the first extension; schedules last for this number of steps."""
        return self.extensions[0].previous_total if self.extensions else self.total_steps

    @property
    def has_schedule(self) -> bool:
        """True if a setting, such as the learning rate, changes over the first `first_plan` steps."""
        return False

    def with_total_steps(self, total_steps: int, completed_steps: int) -> Self:
        """Return a copy with the new total `total_steps`, for a run that has completed `completed_steps`.

        Raises ValueError if `total_steps` is not larger than `completed_steps`.
        """
        extension = Extension(self.total_steps, completed_steps, total_steps)
        return dataclasses.replace(self, total_steps=total_steps, extensions=(*self.extensions, extension))

    def without_extensions(self) -> Self:
        """Return this config as it was at the start of the run."""
        return dataclasses.replace(self, total_steps=self.first_plan, extensions=(), init_step=None)

    def with_run_fields(self, stored_config: Experiment) -> Self:
        """Return a copy that takes `total_steps`, `extensions` and `init_step` from `stored_config`."""
        return dataclasses.replace(
            self,
            total_steps=stored_config.total_steps,
            extensions=stored_config.extensions,
            init_step=stored_config.init_step,
        )


_PURPOSES = ("weights", "sampling", "minibatches", "evaluation")


def derive_seed(
    seed: int, purpose: Literal["weights", "sampling", "minibatches", "evaluation"], step: int = 0
) -> int:
    """Return a 31-bit seed for one purpose of an experiment. Different values of `step` give different seeds.

    A vector environment gives its environments consecutive seeds. Without derived seeds, experiments
    with seeds 0 and 1, or training and evaluation, would share nearly all their episodes.
    """
    # Step 0 is left out, for the same seeds as in versions without `step`.
    entropy = [seed, _PURPOSES.index(purpose), step][: 3 if step else 2]
    words = np.random.SeedSequence(entropy).generate_state(1)
    return int(words[0] >> 1)


def make_directory(config: Experiment) -> Path:
    """Create and return a directory with the default name, which no other process has created."""
    while True:
        path = default_path(config)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path


def default_path(config: Experiment) -> Path:
    """Return `runs/<recipe>-<memory>-s<seed>-<time>`, with a number appended if that path exists."""
    name = f"{config.recipe}-{config.label}-s{config.seed}-{datetime.now():%Y%m%d-%H%M%S}".replace("/", "-")
    path, number = Path("runs") / name, 1
    while path.exists():
        number += 1
        path = Path("runs") / f"{name}-{number}"
    return path
