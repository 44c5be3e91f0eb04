"""Learners in several processes that make one update together, each with some of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn


class Alone:
    """No peers: what a learner of its own shares with nobody."""

    def place(self, num_rows: int) -> tuple[int, int]:
        """Return the number of rows before this learner's own `num_rows`, and of all rows."""
        return 0, num_rows

    def sum(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the sum of what all learners give."""
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by the sum of all learners' gradients."""

    def moments(self, values: Float[Tensor, "..."]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return mean and standard deviation (of a population) of all learners' values together."""
        return values.mean(), values.std(correction=0)


class Peers(Alone):
    """All processes of torch.distributed's group, which must exist.

    Every process must call the same methods in the same order. A peer that is gone is an error within
    `timeout_seconds`, not a wait without end.
    """

    def __init__(self, timeout_seconds: float = 60.0) -> None:
        # Of its own, since the default group's patience is half an hour; gloo, since it also carries CPU
        # tensors.
        self._group: Any = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    def place(self, num_rows: int) -> tuple[int, int]:  # noqa: D102
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
        for gradient, summed in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def moments(self, values: Float[Tensor, "..."]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:  # noqa: D102
        count = self.sum(values.new_tensor(float(values.numel())))
        mean = self.sum(values.sum()) / count
        return mean, (self.sum((values - mean).square().sum()) / count).sqrt()
