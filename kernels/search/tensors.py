"""The scan of `nearest` over tensors: vectorised torch, and the choice of it, the definition or Triton."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scrubjay.kernels.dispatch import resolve, unsupported_dtype, without_autocast
from scrubjay.kernels.search import arrays, reference
from scrubjay.kernels.search.op import Nearest

_BLOCK = 1 << 18  # rows that are widened to float32 at a time


@without_autocast
@torch.no_grad()
def nearest(
    query: Tensor, keys: Tensor, count: int, norms: Tensor | None, allowed: Tensor | None, implementation: str
) -> Nearest[Tensor]:
    """Run `kernels.nearest` on tensors.

    Args: those of `kernels.nearest`.
    """
    path = _path(implementation, query, keys, norms, allowed)
    if path == "reference":
        return Nearest(*reference.nearest(query, keys, count, norms, allowed))
    if path == "triton":
        from scrubjay.kernels.search import gpu

        return _best(gpu.scores(query, keys, norms=norms, allowed=allowed), count)
    scores = _products(query, keys)
    if norms is not None:
        scores = scores / norms.float()
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    if scores.is_cuda:
        return _best(scores, count)
    # On the CPU twice as fast as a `topk` of whole numbers.
    found = arrays.best(scores.numpy(), count)
    return Nearest(torch.from_numpy(found.scores), torch.from_numpy(found.rows))


@without_autocast
@torch.no_grad()
def row_scores(query: Tensor, keys: Tensor, rows: Tensor, implementation: str) -> Tensor:
    """Run `kernels.row_scores` on tensors."""
    path = _path(implementation, query, keys, rows)
    if path == "reference":
        return reference.row_scores(query, keys, rows)
    if path == "triton":
        from scrubjay.kernels.search import gpu

        return gpu.scores(query, keys, rows=rows)
    return _products(query, keys[rows])


def _products(query: Tensor, keys: Tensor) -> Tensor:
    """Return the products with every row in float32, also where rows are stored in half of it."""
    query = query.float()
    if len(query) == 1:
        return torch.cat([block.float() @ query[0] for block in keys.split(_BLOCK)])[None]
    return torch.cat([query @ block.float().T for block in keys.split(_BLOCK)], dim=1)


def _best(scores: Tensor, count: int) -> Nearest[Tensor]:
    """Return the best by their scores [Q, N] in float32, the earlier of equals first.

    Torch's `topk` breaks ties as it likes. So each score and its row become one whole number, by which no two
    are equal: above, the score's bits in an order that agrees with it; below, the row counted from the end.
    """
    scores = torch.where(scores.isnan(), -math.inf, scores) + 0.0  # -0.0 becomes 0.0, its equal
    bits = scores.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    row = torch.arange(scores.shape[1], device=scores.device)
    packed = (ordered.long() << 32) | (0x7FFFFFFF - row)
    best = packed.topk(min(count, scores.shape[1])).values
    rows = 0x7FFFFFFF - (best & 0x7FFFFFFF)
    found = scores.gather(1, rows)
    rows = torch.where(found > -math.inf, rows, -1)
    missing = (0, count - rows.shape[1])
    return Nearest(
        torch.nn.functional.pad(found, missing, value=-math.inf),
        torch.nn.functional.pad(rows, missing, value=-1),
    )


def _path(implementation: str, query: Tensor, keys: Tensor, *others: Tensor | None) -> str:
    reason = unsupported_dtype(query, keys)
    if reason is not None:
        raise TypeError(f"query and keys are scanned in float16, bfloat16 and float32; {reason}")
    return resolve(implementation, query, keys, *others)
