"""What supervised experiments share: a memory learns to answer, and is tested at sizes it was not trained at."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from scrubjay.experiments.cluster import RayOptions
from scrubjay.experiments.metrics import OnUpdate
from scrubjay.memory import MemoryConfig, make_config, name_of


@dataclass(frozen=True)
class SupervisedConfig(ABC):
    """A memory learns by cross-entropy. Its task has two sizes: how much to remember, and for how long."""

    kind: ClassVar[str]
    """Name in config.json of the class to rebuild."""
    axes: ClassVar[tuple[str, str]]
    """The sizes' names in result.json: how much, how long."""

    recipe: str = ""
    """Name of the task in run directories and plots."""
    memory: MemoryConfig = field(default_factory=lambda: make_config("gru", dim=64))
    """What remembers."""
    learning_rate: float = 2e-3
    """Adam's step size at the start; falls linearly to zero."""
    total_steps: int = 3_000_000
    """Steps of the whole run, over all rows of all batches; the last batch is finished."""
    seed: int = 0
    """Source of all randomness."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints."""

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"total_steps={self.total_steps}: must be at least 1")
        for name in ("seed", "checkpoint_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}: must be positive")

    @property
    def label(self) -> str:
        """The memory's registered name."""
        return name_of(self.memory)

    @property
    def planned_steps(self) -> int:
        """`total_steps`."""
        return self.total_steps

    @property
    @abstractmethod
    def trained(self) -> tuple[int, int]:
        """The sizes trained at: how much, at most, and how long."""

    @property
    @abstractmethod
    def tested(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sizes in the test, the trained ones aside: how much, and how long."""

    @property
    @abstractmethod
    def axis_labels(self) -> tuple[str, str]:
        """The two sizes in words."""

    @abstractmethod
    def chance(self, count: int) -> float:
        """The best accuracy there is without memory, where there are `count` things to remember."""

    @property
    @abstractmethod
    def engine(self) -> Callable[..., Any]:
        """What trains it; imported when asked for."""

    @abstractmethod
    def check_parts(self) -> None:
        """Build the parts once. Raises ValueError or TypeError naming what does not fit."""

    @property
    def counts(self) -> list[int]:
        """How much there is to remember in the training's batches, by turns: 2, 4, ... and the most.

        Of the most alone learning hardly begins, so likely is a wrong choice and so low chance; and what is learned
        of a few alone may be of no use for more.
        """
        most = self.trained[0]
        doubled = [2**power for power in range(1, most.bit_length())]
        return [count for count in doubled if count < most] + [most]

    @property
    def success_without_memory(self) -> float:
        """`chance` at the most there is to remember in training."""
        return self.chance(self.trained[0])

    @property
    def tests(self) -> list[tuple[int, int]]:
        """All pairs of sizes in the test."""
        counts, spans = (
            sorted({trained, *tested}) for trained, tested in zip(self.trained, self.tested, strict=True)
        )
        return [(count, span) for count in counts for span in spans]

    def accuracies(self, result: dict[str, Any]) -> dict[tuple[int, int], float]:
        """Return the share of questions answered right, by the sizes in the test, from a run's result."""
        count, span = self.axes
        return {(test[count], test[span]): test["right"] / test["asked"] for test in result["tests"]}

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return the same experiment with another memory."""
        return dataclasses.replace(self, memory=memory)

    def check(self, ray: RayOptions | None = None) -> None:
        """Build the parts once. Raises ValueError or TypeError naming what does not fit, or if on Ray."""
        if ray is not None:
            raise ValueError(f"{self.recipe} is trained in one process; leave --engine ray away")
        self.check_parts()

    def run(
        self,
        run_dir: Path,
        progress: bool = False,
        ray: RayOptions | None = None,
        on_update: OnUpdate | None = None,
    ) -> None:
        """Train in this process, going on from the newest checkpoint in `run_dir` if there is one."""
        self.check(ray)
        from scrubjay.experiments.engine import train_with  # the engines themselves read configs

        train_with(self.engine, self, run_dir, progress, on_update)
