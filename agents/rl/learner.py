"""Interfaces of learners and of their configs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from scrubjay.agents.rl.data_parallel import SingleProcess


@runtime_checkable
class Learner(Protocol):
    """Interface of a learner, which updates the policy that it was built with.

    `get_state` and `set_state` save and restore everything except the policy's weights, as tensors and plain
    values. A resumed run then continues exactly.
    """

    def update(self, segment: Any) -> dict[str, float]:
        """Update the policy on a segment that this policy has sampled; return metrics by name."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Return the state of the learner, without the policy's weights."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` returned."""
        ...


@dataclass(frozen=True)
class LearnerConfig(ABC):
    """Base class of learner configs: a frozen dataclass that builds its learner."""

    policy_type: ClassVar[str] = "agent"
    """Type of policy that the learner trains: "agent" or "team"."""
    supports_peers: ClassVar[bool] = False
    """True if several processes can share one update through `peers`, each with a part of the batch."""
    min_rows_field: ClassVar[str | None] = None
    """Name of the config field that sets the minimum number of environments in a batch. None if the learner
    has no such field; the minimum is then 1."""

    @abstractmethod
    def build(self, policy: Any, seed: int = 0, peers: SingleProcess | None = None) -> Learner:
        """Return a learner that trains `policy`. Raises ValueError if config and policy do not match.

        `seed` seeds the learner's random numbers. Callers pass `peers` only if `supports_peers` is True.
        """

    @property
    def min_rows(self) -> int:
        """Minimum batch size of an update, in environments."""
        return 1 if self.min_rows_field is None else getattr(self, self.min_rows_field)

    def with_total_steps(self, total_steps: int) -> Self:
        """Return the config for a run of `total_steps` environment steps; the base class returns `self`."""
        return self

    def check_learners(self, count: int) -> None:
        """Raise ValueError if `count` learner processes cannot share one update."""
        if count > 1 and not self.supports_peers:
            raise ValueError(
                f"num_learners={count}: {type(self).__name__.removesuffix('Config')} does not support "
                "several learners; use 0 (in the driver process) or 1 (in a separate process)"
            )
