"""Interfaces of learners and of their configs, and data-parallel learners.

Several processes compute one update together, each from a part of the batch, through `Peers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn


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

    def check_rows(self, num_rows: int) -> None:
        """Raise ValueError if a batch of `num_rows` environments is too small for an update."""
        if num_rows < self.min_rows:
            raise ValueError(
                f"{self.min_rows_field}={self.min_rows} is more than the {num_rows} environments of the "
                "batch; use more environments or fewer minibatches"
            )

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


class SingleProcess:
    """Reductions for a learner in a single process: sums and moments over its own values only."""

    def locate_rows(self, num_rows: int) -> tuple[int, int]:
        """Return the index of this learner's first row in the whole batch, and the size of the whole batch.

        `num_rows` is the number of batch rows that this learner has.
        """
        return 0, num_rows

    def sum(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the elementwise sum of `values` over all learners."""
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradient of each parameter by its sum over all learners."""

    def moments(self, values: Float[Tensor, "..."]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the mean and the population standard deviation of the `values` of all learners together."""
        return values.mean(), values.std(correction=0)


class Peers(SingleProcess):
    """Reductions over all processes of the default torch.distributed group, which must be initialized.

    Every process must call the same methods in the same order. If a process is lost, the
    method raises an error in all other processes after `timeout_seconds`.
    """

    def __init__(self, timeout_seconds: float = 60.0) -> None:
        # A separate group, since the default group's timeout is half an hour; gloo, since it supports CPU
        # tensors.
        self._group: Any = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    def locate_rows(self, num_rows: int) -> tuple[int, int]:  # noqa: D102
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(distributed.get_world_size(self._group))]
        distributed.all_gather(counts, torch.tensor([num_rows]), group=self._group)
        numbers = torch.cat(counts).tolist()
        return sum(numbers[: distributed.get_rank(self._group)]), sum(numbers)

    def sum(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:  # noqa: D102
        total = values.clone()
        distributed.all_reduce(total, group=self._group)
        return total

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:  # noqa: D102
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def moments(self, values: Float[Tensor, "..."]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:  # noqa: D102
        count = self.sum(values.new_tensor(float(values.numel())))
        mean = self.sum(values.sum()) / count
        return mean, (self.sum((values - mean).square().sum()) / count).sqrt()
