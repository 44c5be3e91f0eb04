"""What run directories, resume and plots ask of an experiment, and nothing else."""

from __future__ import annotations

from typing import ClassVar, Protocol, Self

from torch import nn

from scrubjay.experiments.runs.cluster import RayOptions
from scrubjay.memory import MemoryConfig


class Experiment(Protocol):
    """All that run directories, resume and plot ask of an experiment, of whatever kind."""

    kind: ClassVar[str]
    """Name in config.json of the class to rebuild."""

    acts: ClassVar[str | None]
    """Whose policy is trained, "agent" or "team"; then `make_policy` makes it. None where nothing acts."""

    shaped_by: ClassVar[tuple[str, ...]]
    """The fields on which the shapes of the weights depend, the environment's spaces aside."""

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
    def total_steps(self) -> int:
        """What the user asked for: `planned_steps` may be more, as updates are whole."""
        ...

    @property
    def init_from(self) -> str | None:
        """Directory of a run whose weights this one begins with."""
        ...

    @property
    def init_step(self) -> int | None:
        """Steps behind those weights."""
        ...

    @property
    def success_without_memory(self) -> float | None:
        """The best success there is without memory; None where nobody worked it out."""
        ...

    def with_memory(self, memory: MemoryConfig) -> Self:
        """Return the same experiment with another memory."""
        ...

    def rough_bytes(self) -> dict[str, int]:
        """Return about how many bytes training takes, by what takes them; ValueError if it cannot end."""
        ...

    def extended(self, total_steps: int, done: int) -> Self:
        """Return the same with a larger total, given when so many steps were `done`; else ValueError."""
        ...

    def as_begun(self) -> Self:
        """Return the same as it was asked for when the run began."""
        ...

    def as_recorded_in(self, recorded: Self) -> Self:
        """Return the same with what a run of it has written since."""
        ...

    def make_model(self) -> nn.Module:
        """Return what learns, as it is at step 0."""
        ...

    def check(self, ray: RayOptions | None = None) -> None:
        """Raise ValueError or TypeError, in one clear line, if this cannot run here, or on Ray if told so."""
        ...
