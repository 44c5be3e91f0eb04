"""Linear schedules of learner settings over the environment steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Self

from scrubjay.agents.rl.learner import LearnerConfig

_ENDS = {"clip": "clip_end", "entropy_coefficient": "entropy_end"}
"""Field of the final value of each setting that can have a schedule."""


@dataclass(frozen=True)
class ScheduleConfig(LearnerConfig):
    """Base class of configs with the fields `clip` and `entropy_coefficient`, which can have schedules.

    Raises ValueError on an invalid value.
    """

    clip_end: float | None = field(default=None, kw_only=True)
    """Final clip range: the clip range changes linearly from `clip` to this value, and then keeps it. None
    for a constant clip range."""
    entropy_end: float | None = field(default=None, kw_only=True)
    """Final coefficient of the entropy bonus: the coefficient changes linearly from `entropy_coefficient` to
    this value, and then keeps it. None for a constant coefficient."""
    anneal_steps: int | None = field(default=None, kw_only=True)
    """Environment steps over which the schedules last; None for the total steps of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_end is not None and not 0 < self.clip_end < math.inf:
            raise ValueError(f"clip_end={self.clip_end}: must be positive and finite, or None")
        if self.entropy_end is not None and not 0 <= self.entropy_end < math.inf:
            raise ValueError(f"entropy_end={self.entropy_end}: must be finite and not negative, or None")
        if self.anneal_steps is not None and not (self.has_schedule and self.anneal_steps > 0):
            raise ValueError(
                f"anneal_steps={self.anneal_steps}: must be None or, with {self.schedule_fields}, at least 1"
            )

    @property
    def schedule_fields(self) -> str:
        """Settings that turn on a schedule, for errors."""
        return "clip_end or entropy_end"

    @property
    def has_schedule(self) -> bool:
        """True if a setting changes during the run."""
        return any(getattr(self, end) is not None for end in _ENDS.values())

    def with_total_steps(self, total_steps: int) -> Self:
        """Return a config with `anneal_steps=total_steps`.

        If there is no schedule or `anneal_steps` is already set, the same config is returned.
        """
        return (
            replace(self, anneal_steps=total_steps) if self.has_schedule and not self.anneal_steps else self
        )

    def check_anneal_steps(self) -> None:
        """Raise ValueError if there is a schedule whose length is unknown."""
        if self.has_schedule and self.anneal_steps is None:
            raise ValueError(
                f"{self.schedule_fields} requires anneal_steps: set anneal_steps, or use "
                "config.with_total_steps(total_steps)"
            )

    def at(self, steps: int) -> Self:
        """Return the config of an update after `steps` environment steps, with the current values."""
        values = self._current_values(steps)
        return replace(self, **values) if values else self

    def schedule_metrics(self, steps: int) -> dict[str, float]:
        """Return the current value of each setting that has a schedule, as metrics by name."""
        return {f"charts/{name}": value for name, value in self._current_values(steps).items()}

    def _current_values(self, steps: int) -> dict[str, float]:
        """Return the current values of all settings that have a schedule."""
        values = {}
        for name, end_name in _ENDS.items():
            first, last = getattr(self, name), getattr(self, end_name)
            if last is not None and self.anneal_steps is not None:
                part = min(1.0, steps / self.anneal_steps)
                values[name] = first * (1 - part) + last * part
        return values


def load_steps(state: dict[str, Any]) -> int:
    """Return the environment steps in a learner's state, 0 if it has none. Raises ValueError if invalid."""
    steps = state.get("steps", 0)
    if type(steps) is not int or steps < 0:
        raise ValueError(f"steps={steps!r:.40} in the learner state: must be an integer of at least 0")
    return steps
