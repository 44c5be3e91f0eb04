"""What run directories, resume and plots ask of an experiment, and nothing else."""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.memory import MemoryConfig


class Experiment(Protocol):
    """All that run directories, resume and plot ask of an experiment, of whatever kind."""

    kind: ClassVar[str]
    """Name in config.json of the class to rebuild."""

    acts: ClassVar[str | None]
    """Whose policy is trained, "agent" or "team"; then `make_policy` makes it. None where nothing acts."""

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

    def rough_bytes(self) -> dict[str, int]:
        """Return about how many bytes training takes, by what takes them, before anything is made of them.

        Raises ValueError naming what would not end.
        """
        ...

    def check(self, ray: RayOptions | None = None) -> None:
        """Raise ValueError or TypeError, in one clear line, if this cannot run here, or on Ray if told so."""
        ...
