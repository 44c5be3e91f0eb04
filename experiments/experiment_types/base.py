"""Interface of an experiment config, as run directories, resume and plots use it."""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

from torch import nn

from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.memory import MemoryConfig


class Experiment(Protocol):
    """Config of an experiment of any kind, as run directories, resume and plots use it."""

    kind: ClassVar[str]
    """Name of this class in config.json."""

    policy_type: ClassVar[str | None]
    """Type of the policy that `make_policy` returns: "agent" or "team"; None if there is no policy."""

    shape_fields: ClassVar[tuple[str, ...]]
    """Fields that determine the shapes of the weights, besides the spaces of the environment."""

    @property
    def recipe(self) -> str:
        """Task name; runs with the same recipe share a panel in plots."""
        ...

    @property
    def label(self) -> str:
        """Method name; runs with the same label share a curve."""
        ...

    @property
    def seed(self) -> int:
        """Seed of all randomness."""
        ...

    @property
    def memory(self) -> MemoryConfig:
        """Memory config."""
        ...

    @property
    def planned_steps(self) -> int:
        """Environment steps at which the run ends."""
        ...

    @property
    def total_steps(self) -> int:
        """Total of steps as configured; `planned_steps` rounds it up to whole updates."""
        ...

    @property
    def init_from(self) -> str | None:
        """Directory of the run that provides the initial weights; None for random ones."""
        ...

    @property
    def init_step(self) -> int | None:
        """Step count of the initial weights; None if `init_from` is."""
        ...

    @property
    def success_without_memory(self) -> float | None:
        """Best possible success rate without memory; None if it is unknown."""
        ...

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return a copy of this config with another memory."""
        ...

    def rough_bytes(self) -> dict[str, int]:
        """Estimate the bytes that training takes, by the settings that need them. Raises ValueError."""
        ...

    def with_total_steps(self, total_steps: int, completed_steps: int) -> Self:
        """Return a copy with a larger total of steps, set at `completed_steps`. Raises ValueError if not
        larger."""
        ...

    def without_extensions(self) -> Self:
        """Return this config as it was at the start of the run."""
        ...

    def with_run_fields(self, stored_config: Self) -> Self:
        """Return a copy with the fields that a run records itself, taken from `stored_config`."""
        ...

    def make_model(self) -> nn.Module:
        """Return a new model, as it is at step 0."""
        ...

    def check(self, ray: RayOptions | None = None) -> None:
        """Raise ValueError or TypeError if the experiment cannot run on this machine, or with `ray` on
        Ray."""
        ...
