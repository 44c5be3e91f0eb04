"""What gates decide in chunks of matrices, formed for all of them at once, and its gradient by hand.

Letters as in `kernels.neural_memory`; a name with `grad_` is the gradient of what the rest of the name is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.neural.network import LEAST_LOG, decays_of


class Segment(NamedTuple):
    """Some chunks, and how they are gone through."""

    fresh: Bool[Tensor, "N R"] | None
    """Which begin anew, None if none does."""
    cut: Bool[Tensor, "N R"] | None
    """Across whose beginning no gradient flows."""
    incomplete: Bool[Tensor, "N R"] | None
    """Behind which the anchor stays."""
    learned: Bool[Tensor, "N R C"] | None
    """Which tokens are, None if all."""
    read_before_write: bool


class Given(NamedTuple):
    """What a segment's outputs are differentiable functions of."""

    query: Float[Tensor, "N R C D"]
    key: Float[Tensor, "N R C D"]
    value: Float[Tensor, "N R C D"]
    step_size: Float[Tensor, "N R C 1"]
    log_momentum: Float[Tensor, "N R C"]
    log_retention: Float[Tensor, "N R C"]
    weight: Float[Tensor, "H D D"]
    delta: Float[Tensor, "R D D"]
    momentum: Float[Tensor, "R D D"]
    anchor: Float[Tensor, "R D D"]


class Factors(NamedTuple):
    """What gates decide: how a chunk's tokens add up at the places of reads and at its end.

    Reads are of row t - 1 of what is written where they come before.
    """

    decay: Float[Tensor, "N R C C"]
    trace: Float[Tensor, "N R C C"]
    retained: Float[Tensor, "N R C"]
    kept: Float[Tensor, "N R C"]
    read_retained: Float[Tensor, "N R C"]
    read_built: Float[Tensor, "N R C"]
    read_mixed: Float[Tensor, "N R C C"]
    end_mixed: Float[Tensor, "N R C"]
    end_trace: Float[Tensor, "N R C"]
    end_built: Float[Tensor, "N R"]
    ends: Float[Tensor, "N R 2"]

    @classmethod
    def of(
        cls,
        log_retention: Float[Tensor, "N R C"],
        log_momentum: Float[Tensor, "N R C"],
        learned: Bool[Tensor, "N R C"] | None,
        read_before_write: bool,
    ) -> Factors:
        """Return the factors of some chunks; tokens not `learned` must have logarithms of 0."""
        decay, trace, retained, kept = decays_of(log_retention, log_momentum, learned)
        built = (decay @ kept[..., None])[..., 0]
        mixed = decay @ trace
        read_retained, read_built, read_mixed = retained, built, mixed
        if read_before_write:
            read_retained = functional.pad(retained[..., :-1], (1, 0), value=1)
            read_built = functional.pad(built[..., :-1], (1, 0))
            read_mixed = functional.pad(mixed[..., :-1, :], (0, 0, 1, 0))
        return cls(
            decay,
            trace,
            retained,
            kept,
            read_retained,
            read_built,
            read_mixed,
            end_mixed=mixed[..., -1, :],
            end_trace=trace[..., -1, :],
            end_built=built[..., -1],
            ends=torch.stack([retained[..., -1], kept[..., -1]], dim=-1),
        )

    def backward(
        self,
        log_retention: Float[Tensor, "N R C"],
        log_momentum: Float[Tensor, "N R C"],
        read_before_write: bool,
        grad_retained,
        grad_built,
        grad_mixed,
        grad_end_mixed,
        grad_end_trace,
        grad_ends,
    ) -> list[Tensor]:
        """Return the gradients of the logarithms of momentum and retention; those given are overwritten.

        Args:
            log_retention: What the factors are of.
            log_momentum: The same.
            read_before_write: The same.
            grad_retained: Of `read_retained`.
            grad_built: Of `read_built`.
            grad_mixed: Of `read_mixed`.
            grad_end_mixed: Of `end_mixed`.
            grad_end_trace: Of `end_trace`.
            grad_ends: `[N, R, 2, 2]`, of how much of delta and momentum is in delta and momentum.
        """
        grad_retained = _of_writes(grad_retained, grad_ends[..., 0, 0], 2, read_before_write)
        grad_built = _of_writes(grad_built, grad_ends[..., 0, 1], 2, read_before_write)
        grad_mixed = _of_writes(grad_mixed, grad_end_mixed, 2, read_before_write)
        grad_trace = self.decay.mT @ grad_mixed
        grad_trace[..., -1, :].add_(grad_end_trace)
        grad_decay = grad_mixed @ self.trace.mT
        grad_decay.addcmul_(grad_built[..., :, None], self.kept[..., None, :])
        grad_kept = (self.decay.mT @ grad_built[..., None])[..., 0]
        grad_kept[..., -1].add_(grad_ends[..., 1, 1])
        # Of the sums of logarithms: each is in its row, and less so in its column.
        owed = torch.stack([grad_trace.mul_(self.trace), grad_decay.mul_(self.decay)])
        sums = owed.sum(-1).sub_(owed.sum(-2))
        sums[0].addcmul_(grad_kept, self.kept)
        sums[1].addcmul_(grad_retained, self.retained)
        # What is owed to a sum is owed to all that it is a sum of.
        found = (sums.sum(-1, keepdim=True) - sums.cumsum(-1)).add_(sums)
        logs = (log_momentum, log_retention)
        return [part.mul_(log >= LEAST_LOG) for part, log in zip(found, logs, strict=True)]


def _of_writes(grad_reads: Tensor, grad_end: Tensor, dim: int, read_before_write: bool) -> Tensor:
    """Return the gradient at all rows of writes from those at reads and at the end."""
    if not read_before_write:
        grad_reads.select(dim, -1).add_(grad_end)
        return grad_reads
    # Row 0 of reads is before all writes, and the last of writes is the end's.
    rest = grad_reads.narrow(dim, 1, grad_reads.shape[dim] - 1)
    return torch.cat([rest, grad_end.unsqueeze(dim)], dim=dim)
