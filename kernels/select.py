"""Deterministic top-k selection: among equal scores, the lower index comes first.

NumPy arrays are processed by NumPy, without importing torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")

FEW = 1024
"""Largest tensor that is sorted as a whole; for so few scores the number of calls dominates the runtime."""

_MODERATE = 8192
"""Largest tensor that is sorted as a whole if two of the largest scores are equal."""

_GROUP = 32
"""Scores per group in `largest`; the maxima of the groups are compared first."""


def best(scores: Float[Array, "*batch N"], count: int) -> Int[Array, "*batch K"]:
    """Return the indices of the `count` largest scores, best first; equal scores in order of index.

    Returns all indices if there are fewer scores. Scores must not be NaN. Scores of -inf come last, in any
    order.
    """
    count = min(count, scores.shape[-1])
    if not isinstance(scores, np.ndarray):
        return _select_in_tensor(scores, count)
    indices: Any
    if scores.ndim == 1:
        indices = _select_in_array(scores, count)
        return indices
    indices = np.empty((*scores.shape[:-1], count), dtype=np.int64)
    for row in np.ndindex(scores.shape[:-1]):
        indices[row] = _select_in_array(scores[row], count)
    return indices


def _select_in_array(scores: Float[np.ndarray, "N"], count: int) -> Int[np.ndarray, "K"]:
    if 0 < count < len(scores):
        bound = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= bound)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def _select_in_tensor(scores: Any, count: int) -> Any:
    import torch

    from scrubjay.kernels.dispatch import is_traced

    if scores.is_cuda and scores.dtype == torch.float32:
        return _select_by_packed_keys(scores, count)
    if scores.is_cuda or is_traced() or scores.numel() <= FEW:
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    # topk is ten times faster than a stable sort, but the order of equal scores is undefined.
    values, indices = largest(scores, min(count + 1, scores.shape[-1]))
    equal = values[..., 1:] == values[..., :-1]
    if not equal.any():
        return indices[..., :count]
    if scores.numel() <= _MODERATE:
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    equal &= values[..., 1:] > -math.inf
    tied = equal.any(dim=-1)
    indices = indices[..., :count].contiguous()
    indices[tied] = scores[tied].sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return indices


def largest(scores: Any, count: int) -> tuple[Any, Any]:
    """Return the `count` largest scores of a tensor and their indices, best first; ties in any order.

    Many scores are split into groups first. The `count` groups with the largest maxima contain the result, so
    only these groups are sorted.
    """
    import torch

    groups, remainder = divmod(scores.shape[-1], _GROUP)
    if scores.is_cuda or groups < 4 * count:
        return scores.topk(count, dim=-1)
    whole = scores[..., : groups * _GROUP].unflatten(-1, (groups, _GROUP))
    group = whole.amax(dim=-1).topk(count, dim=-1, sorted=False).indices
    some = whole.gather(-2, group[..., None].expand(*group.shape, _GROUP)).flatten(-2)
    if remainder:
        some = torch.cat([some, scores[..., -remainder:]], dim=-1)
    values, local = some.topk(count, dim=-1)
    inside = group.gather(-1, (local // _GROUP).clamp(max=count - 1)) * _GROUP + local % _GROUP
    return values, inside.where(local < count * _GROUP, local + (groups - count) * _GROUP)


def _select_by_packed_keys(scores: Any, count: int) -> Any:
    """Select by one distinct 64-bit key per score, without synchronizing with the GPU.

    The upper half of a key holds the bits of the score in sortable order. The lower half holds the index,
    counted from the end, so that the lower index wins among equal scores.
    """
    import torch

    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    ordered_bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    place = torch.arange(scores.shape[-1], device=scores.device)
    keys = (ordered_bits.long() << 32) | (0x7FFFFFFF - place)
    return 0x7FFFFFFF - (keys.topk(count, dim=-1).values & 0x7FFFFFFF)
