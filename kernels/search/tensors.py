"""`nearest` and `row_scores` on tensors: vectorized torch and the choice of an implementation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scrubjay.kernels.dispatch import resolve, unsupported_dtype, without_autocast
from scrubjay.kernels.search import reference
from scrubjay.kernels.search.op import Nearest
from scrubjay.kernels.select import best

_BLOCK = 1 << 18  # rows converted to float32 at a time


@without_autocast
@torch.no_grad()
def nearest(
    query: Tensor,
    keys: Tensor,
    count: int,
    norms: Tensor | None,
    row_mask: Tensor | None,
    implementation: str,
) -> Nearest[Tensor]:
    """Run `kernels.nearest` on tensors.

    Args: those of `kernels.nearest`.
    """
    path = _path(implementation, query, keys, norms, row_mask)
    if path == "reference":
        return Nearest(*reference.nearest(query, keys, count, norms, row_mask))
    if path == "triton":
        from scrubjay.kernels.search import gpu

        return _select(gpu.scores(query, keys, norms=norms, row_mask=row_mask), count)
    scores = _products(query, keys)
    if norms is not None:
        scores = scores / norms.float()
    if row_mask is not None:
        scores = scores.masked_fill(~row_mask, -math.inf)
    return _select(scores, count)


@without_autocast
@torch.no_grad()
def row_scores(query: Tensor, keys: Tensor, rows: Tensor | None, implementation: str) -> Tensor:
    """Run `kernels.row_scores` on tensors."""
    path = _path(implementation, query, keys, rows)
    if path == "reference":
        every = torch.arange(len(keys), device=keys.device)
        return reference.row_scores(query, keys, every if rows is None else rows)
    if path == "triton":
        from scrubjay.kernels.search import gpu

        return gpu.scores(query, keys, rows=rows)
    return _products(query, keys if rows is None else keys[rows])


def _products(query: Tensor, keys: Tensor) -> Tensor:
    """Return the float32 dot products of queries and rows. Half-precision inputs are converted."""
    query = query.float()
    if len(query) == 1:
        return torch.cat([block.float() @ query[0] for block in keys.split(_BLOCK)])[None]
    return torch.cat([query @ block.float().T for block in keys.split(_BLOCK)], dim=1)


def _select(scores: Tensor, count: int) -> Nearest[Tensor]:
    scores = torch.where(scores.isnan(), -math.inf, scores)
    rows = best(scores, count)
    best_scores = scores.gather(1, rows)
    missing = (0, count - rows.shape[1])
    return Nearest(
        torch.nn.functional.pad(best_scores, missing, value=-math.inf),
        torch.nn.functional.pad(torch.where(best_scores > -math.inf, rows, -1), missing, value=-1),
    )


def _path(implementation: str, query: Tensor, keys: Tensor, *others: Tensor | None) -> str:
    reason = unsupported_dtype(query, keys)
    if reason is not None:
        raise TypeError(f"query and keys must be float16, bfloat16 or float32; {reason}")
    return resolve(implementation, query, keys, *others)
