"""What a run is for: with whose weights it begins, and how many steps it takes, at first and later."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from tyro.conf import Fixed, Suppress

from scrubjay.memory.serialization import LATER

RECORDED = {"recorded": True}
"""Marks fields that a run writes of itself, and nobody sets by a flag."""


@dataclass(frozen=True)
class Extension:
    """Another total of steps than a run was begun for. Raises ValueError if it has that many already."""

    planned: int
    """`total_steps` before."""
    done: int
    """Steps that were done when it was given."""
    total: int
    """`total_steps` since."""

    def __post_init__(self) -> None:
        if self.planned < 1 or self.done < 0:
            raise ValueError(
                f"extension of planned={self.planned} at done={self.done}: steps are counted from 0"
            )
        if self.total <= self.done:
            raise ValueError(
                f"total_steps={self.total}: {self.done} steps are done already; give a larger total"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What configs of all kinds share. Raises ValueError if its extensions do not follow from each other.

    `total_steps` is what a run is trained to; what changes in the course of a run, such as a step size, does
    so by `first_plan`, and stays as it was at that plan's end.
    """

    shaped_by: ClassVar[tuple[str, ...]]
    """The fields on which the shapes of the weights depend, the environment's spaces aside."""

    init_from: str | None = dataclasses.field(default=None, metadata=LATER)
    """Directory of a run whose newest weights this one begins with; its optimiser and counts stay there."""
    init_step: Annotated[int | None, Suppress, Fixed] = dataclasses.field(
        default=None, metadata=RECORDED | LATER
    )
    """Steps behind those weights; a run writes it when it begins."""
    extensions: Annotated[tuple[Extension, ...], Suppress, Fixed] = dataclasses.field(
        default=(), metadata=RECORDED | LATER
    )
    """Totals given later, as by `scrubjay resume RUN --total-steps N`; the last is `total_steps`."""

    if TYPE_CHECKING:  # each kind has it as a field, with a default of its own

        @property
        def total_steps(self) -> int:
            """Steps of the whole run."""
            ...

    def __post_init__(self) -> None:
        if self.init_from is not None:
            object.__setattr__(self, "init_from", os.fspath(self.init_from))
        if self.init_step is not None and self.init_step < 0:
            raise ValueError(f"init_step={self.init_step}: must not be negative")
        for before, after in pairwise(self.extensions):
            if after.planned != before.total or after.done < before.done:
                raise ValueError(f"extensions: {after} does not follow from {before}")
        if self.extensions and self.extensions[-1].total != self.total_steps:
            raise ValueError(
                f"total_steps={self.total_steps}: the last of extensions says {self.extensions[-1].total}; "
                "for a new run leave extensions=() away"
            )

    @property
    def first_plan(self) -> int:
        """`total_steps` as the run was begun."""
        return self.extensions[0].planned if self.extensions else self.total_steps

    def extended(self, total_steps: int, done: int) -> Self:
        """Return the same with another total, given when so many steps were done.

        Raises ValueError if that is no more.
        """
        extension = Extension(self.total_steps, done, total_steps)
        fields: dict[str, Any] = {
            "total_steps": total_steps,
            "extensions": (*self.extensions, extension),
        }
        return dataclasses.replace(self, **fields)

    def as_begun(self) -> Self:
        """Return the same as it was asked for when the run began."""
        fields: dict[str, Any] = {"total_steps": self.first_plan, "extensions": (), "init_step": None}
        return dataclasses.replace(self, **fields)

    def as_recorded_in(self, recorded: Any) -> Self:
        """Return the same with what a run of it has written since."""
        names = ("total_steps", "extensions", "init_step")
        return dataclasses.replace(self, **{name: getattr(recorded, name) for name in names})
