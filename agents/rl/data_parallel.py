"""Data-parallel learners: several processes compute one update together, each from a part of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn


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
