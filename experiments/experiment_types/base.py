"""Interface of experiment configs for run directories, resuming and plots."""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

from torch import nn

from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.memory import MemoryConfig


class Experiment(Protocol):
    """Config of any experiment type, with the members that run directories, resuming and plots require."""

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
        """Number of environment steps after which the run ends."""
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
        """Training step of the run `init_from` at which the initial weights were saved.

        None if `init_from` is None, or if the new run has not started yet."""
        ...

    @property
    def success_without_memory(self) -> float | None:
        """Best possible success rate without memory; None if it is unknown."""
        ...

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return a copy of this config with another memory."""
        ...

    def rough_bytes(self) -> dict[str, int]:
        """Return a dict from settings, such as `env.num_envs=8`, to estimated bytes in training.

        Raises ValueError if one setting alone exceeds the memory limit.
        """
        ...

    def with_total_steps(self, total_steps: int, completed_steps: int) -> Self:
        """Return a copy with the new total `total_steps`, for a run that has completed `completed_steps`.

        Raises ValueError if `total_steps` is not larger than `completed_steps`.
        """
        ...

    def without_extensions(self) -> Self:
        """Return this config as it was at the start of the run."""
        ...

    def with_run_fields(self, stored_config: Self) -> Self:
        """Return a copy that takes `total_steps`, `extensions` and `init_step` from `stored_config`."""
        ...

    def make_model(self) -> nn.Module:
        """Return a new, untrained model."""
        ...

    def check(self, ray: RayOptions | None = None) -> None:
        """Raise ValueError or TypeError if the experiment cannot run.

        The check is for this machine if `ray` is None, and otherwise for a Ray cluster with these options.
        """
        ...
