"""The slot for learners: what a config of one must be able to do, and what it builds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from scrubjay.agents.rl.peers import Alone


@runtime_checkable
class Learner(Protocol):
    """Improves the policy it was built with, segment by segment.

    What it knows besides the policy's weights goes through `get_state` and `set_state`, as tensors and plain
    values: with it a run goes on as if it had never stopped.
    """

    def update(self, segment: Any) -> dict[str, float]:
        """Learn from a segment that the policy has sampled; return what was measured on the way."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Return what the learner knows besides the policy's weights."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned."""
        ...


@dataclass(frozen=True)
class LearnerConfig(ABC):
    """Base of all learners' settings: a frozen dataclass that builds its learner."""

    acts: ClassVar[str] = "agent"
    """Whose policy it improves: "agent" or "team"."""
    shares: ClassVar[bool] = False
    """Whether learners in several processes, each with some of the rows, make one update through `peers`."""
    rows_by: ClassVar[str | None] = None
    """The field that says of how many rows an update is made at least; None if one will do."""

    @abstractmethod
    def build(self, policy: Any, seed: int = 0, peers: Alone | None = None) -> Learner:
        """Return a learner of `policy`; raises ValueError if the two do not fit.

        `seed` draws whatever it draws. Only a learner that `shares` is ever given peers.
        """

    @property
    def rows_needed(self) -> int:
        """The fewest rows of which an update can be made."""
        return 1 if self.rows_by is None else getattr(self, self.rows_by)

    def over(self, total_steps: int) -> Self:
        """Return the settings for a run of so many environment steps: by default the same."""
        return self

    def check_learners(self, count: int) -> None:
        """Raise ValueError if an update cannot be shared by so many learners, each in its own process."""
        if count > 1 and not self.shares:
            raise ValueError(
                f"num_learners={count}: {type(self).__name__.removesuffix('Config')} takes a whole batch in "
                "one learner; use 0, in the driver, or 1, in a process of its own"
            )
