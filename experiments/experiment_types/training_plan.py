"""Training plan of a run: initial weights, total of steps, and later extensions of that total."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from tyro.conf import Fixed, Suppress

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
class TrainingPlan:
    """Base config of all experiment types. Raises ValueError if the fields contradict each other.

    A run is trained to `total_steps`, which `scrubjay resume RUN --total-steps N` can raise. Schedules, such
    as that of the learning rate, last for `first_plan` steps and then keep their last value.
    """

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

    if TYPE_CHECKING:  # each subclass has it as a field with its own default

        @property
        def total_steps(self) -> int:
            """Total steps of the run."""
            ...

    def __post_init__(self) -> None:
        if self.init_from is not None:
            object.__setattr__(self, "init_from", os.fspath(self.init_from))
        if self.init_step is not None and self.init_step < 0:
            raise ValueError(f"init_step={self.init_step}: must not be negative")
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
    def first_plan(self) -> int:
        """Value of `total_steps` before the first extension; schedules last for this number of steps."""
        return self.extensions[0].previous_total if self.extensions else self.total_steps

    def with_total_steps(self, total_steps: int, completed_steps: int) -> Self:
        """Return a copy with the new total `total_steps`, for a run that has completed `completed_steps`.

        Raises ValueError if `total_steps` is not larger than `completed_steps`.
        """
        extension = Extension(self.total_steps, completed_steps, total_steps)
        fields: dict[str, Any] = {
            "total_steps": total_steps,
            "extensions": (*self.extensions, extension),
        }
        return dataclasses.replace(self, **fields)

    def without_extensions(self) -> Self:
        """Return this config as it was at the start of the run."""
        fields: dict[str, Any] = {"total_steps": self.first_plan, "extensions": (), "init_step": None}
        return dataclasses.replace(self, **fields)

    def with_run_fields(self, stored_config: Any) -> Self:
        """Return a copy that takes `total_steps`, `extensions` and `init_step` from `stored_config`."""
        names = ("total_steps", "extensions", "init_step")
        return dataclasses.replace(self, **{name: getattr(stored_config, name) for name in names})
