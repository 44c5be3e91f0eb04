"""Coefficients of the learning rule for many chunks of a matrix memory, with a custom backward pass.

The coefficients depend on the gates only. Letters as in `kernels.neural_memory`; `grad_x` is the gradient of
`x`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.neural.network import LEAST_LOG, compute_decays


class MatrixInputs(NamedTuple):
    """Differentiable inputs of a segment of a matrix memory."""

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
    """Coefficients of the learning rule for each token of every chunk.

    The `read_` fields determine the read of each token. The `end_` fields and `ends` determine the state at
    the chunk's end. With `read_before_write`, the read of token t uses the coefficients after the write of
    token t - 1.
    """

    decay: Float[Tensor, "N R C C"]
    trace: Float[Tensor, "N R C C"]
    retention: Float[Tensor, "N R C"]
    momentum_retention: Float[Tensor, "N R C"]
    read_retention: Float[Tensor, "N R C"]
    read_buildup: Float[Tensor, "N R C"]
    read_mixing: Float[Tensor, "N R C C"]
    end_mixing: Float[Tensor, "N R C"]
    end_trace: Float[Tensor, "N R C"]
    end_buildup: Float[Tensor, "N R"]
    ends: Float[Tensor, "N R 2"]

    @classmethod
    def from_gates(
        cls,
        log_retention: Float[Tensor, "N R C"],
        log_momentum: Float[Tensor, "N R C"],
        valid_tokens: Bool[Tensor, "N R C"] | None,
        read_before_write: bool,
    ) -> Factors:
        """Return the coefficients from the gates. Log decays of skipped tokens must be 0."""
        decay, trace, retention, momentum_retention = compute_decays(
            log_retention, log_momentum, valid_tokens
        )
        buildup = (decay @ momentum_retention[..., None])[..., 0]
        mixing = decay @ trace
        read_retention, read_buildup, read_mixing = retention, buildup, mixing
        if read_before_write:
            read_retention = functional.pad(retention[..., :-1], (1, 0), value=1)
            read_buildup = functional.pad(buildup[..., :-1], (1, 0))
            read_mixing = functional.pad(mixing[..., :-1, :], (0, 0, 1, 0))
        return cls(
            decay,
            trace,
            retention,
            momentum_retention,
            read_retention,
            read_buildup,
            read_mixing,
            end_mixing=mixing[..., -1, :],
            end_trace=trace[..., -1, :],
            end_buildup=buildup[..., -1],
            ends=torch.stack([retention[..., -1], momentum_retention[..., -1]], dim=-1),
        )

    def backward(
        self,
        log_retention: Float[Tensor, "N R C"],
        log_momentum: Float[Tensor, "N R C"],
        read_before_write: bool,
        grad_retention,
        grad_buildup,
        grad_mixing,
        grad_end_mixing,
        grad_end_trace,
        grad_ends,
    ) -> list[Tensor]:
        """Return the gradients of `log_momentum` and `log_retention`, in this order. Overwrites all `grad_*`.

        Args:
            log_retention: As passed to `from_gates`.
            log_momentum: As passed to `from_gates`.
            read_before_write: As passed to `from_gates`.
            grad_retention: Gradient of `read_retention`.
            grad_buildup: Gradient of `read_buildup`.
            grad_mixing: Gradient of `read_mixing`.
            grad_end_mixing: Gradient of `end_mixing`.
            grad_end_trace: Gradient of `end_trace`.
            grad_ends: Gradient of the matrix that maps delta and momentum at the chunk's start to delta and
                momentum at its end, `[N, R, 2, 2]`. The matrix columns (last dim) belong to the start.
        """
        grad_retention = _shift_to_writes(grad_retention, grad_ends[..., 0, 0], 2, read_before_write)
        grad_buildup = _shift_to_writes(grad_buildup, grad_ends[..., 0, 1], 2, read_before_write)
        grad_mixing = _shift_to_writes(grad_mixing, grad_end_mixing, 2, read_before_write)
        grad_trace = self.decay.mT @ grad_mixing
        grad_trace[..., -1, :].add_(grad_end_trace)
        grad_decay = grad_mixing @ self.trace.mT
        grad_decay.addcmul_(grad_buildup[..., :, None], self.momentum_retention[..., None, :])
        grad_momentum_retention = (self.decay.mT @ grad_buildup[..., None])[..., 0]
        grad_momentum_retention[..., -1].add_(grad_ends[..., 1, 1])
        # Gradient of the cumulative log decays: each enters with + in its row and with - in its column.
        pair_grads = torch.stack([grad_trace.mul_(self.trace), grad_decay.mul_(self.decay)])
        sums = pair_grads.sum(-1).sub_(pair_grads.sum(-2))
        sums[0].addcmul_(grad_momentum_retention, self.momentum_retention)
        sums[1].addcmul_(grad_retention, self.retention)
        # The gradient of a log decay is the sum over all cumulative sums that contain it.
        grad_logs = (sums.sum(-1, keepdim=True) - sums.cumsum(-1)).add_(sums)
        logs = (log_momentum, log_retention)
        return [part.mul_(log >= LEAST_LOG) for part, log in zip(grad_logs, logs, strict=True)]


def _shift_to_writes(grad_reads: Tensor, grad_end: Tensor, dim: int, read_before_write: bool) -> Tensor:
    """Return the gradient of the coefficients after each token's write. May overwrite `grad_reads`.

    `grad_reads` is the gradient of the coefficients at each token's read. `grad_end` is the gradient of the
    coefficients at the chunk's end, after the last write. With `read_before_write`, the read of one token
    uses the coefficients after the write of the token before.
    """
    if not read_before_write:
        grad_reads.select(dim, -1).add_(grad_end)
        return grad_reads
    # Row 0 of the reads precedes all writes, and the last row of the writes is that of the end.
    rest = grad_reads.narrow(dim, 1, grad_reads.shape[dim] - 1)
    return torch.cat([rest, grad_end.unsqueeze(dim)], dim=dim)
