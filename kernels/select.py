"""The best of many scores, the earlier of equals first: whatever is kept by score is chosen here.

Arrays of numpy are chosen from by numpy, without importing torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", np.ndarray, "Tensor")

_FEW = 1024
"""Scores of a tensor that are sorted at once: of so few the number of calls is what costs."""

_GROUP = 32
"""Scores of which the largest is found first, where there are very many."""


def best(scores: Float[Array, "*batch N"], count: int) -> Int[Array, "*batch K"]:
    """Return where the `count` largest scores are, all if there are fewer; of equals the earlier comes first.

    No score may be NaN. Those of -inf come last, in any order.
    """
    count = min(count, scores.shape[-1])
    if not isinstance(scores, np.ndarray):
        return _of_tensor(scores, count)
    places: Any
    if scores.ndim == 1:
        places = _of_row(scores, count)
        return places
    places = np.empty((*scores.shape[:-1], count), dtype=np.int64)
    for row in np.ndindex(scores.shape[:-1]):
        places[row] = _of_row(scores[row], count)
    return places


def _of_row(scores: Float[np.ndarray, "N"], count: int) -> Int[np.ndarray, "K"]:
    if 0 < count < len(scores):
        bound = np.partition(scores, len(scores) - count)[len(scores) - count]
        candidates = np.flatnonzero(scores >= bound)
    else:
        candidates = np.arange(len(scores))
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def _of_tensor(scores: Any, count: int) -> Any:
    import torch

    from scrubjay.kernels.dispatch import is_traced

    if scores.is_cuda and scores.dtype == torch.float32:
        return _packed(scores, count)
    if scores.is_cuda or is_traced() or scores.numel() <= _FEW:
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    # topk is ten times faster than a stable sort and breaks ties as it likes, at the border above all.
    values, places = largest(scores, min(count + 1, scores.shape[-1]))
    equal = values[..., 1:] == values[..., :-1]
    if not equal.any():
        return places[..., :count]
    equal &= values[..., 1:] > -math.inf
    tied = equal.any(dim=-1)
    places = places[..., :count].contiguous()
    places[tied] = scores[tied].sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return places


def largest(scores: Any, count: int) -> tuple[Any, Any]:
    """Return the `count` largest scores of a tensor, the best first, and where they are; ties as they come.

    Of many the best of each group are compared first: all that is sought lies in the groups of the highest.
    """
    import torch

    groups, left = divmod(scores.shape[-1], _GROUP)
    if scores.is_cuda or groups < 4 * count:
        return scores.topk(count, dim=-1)
    whole = scores[..., : groups * _GROUP].unflatten(-1, (groups, _GROUP))
    group = whole.amax(dim=-1).topk(count, dim=-1, sorted=False).indices
    some = whole.gather(-2, group[..., None].expand(*group.shape, _GROUP)).flatten(-2)
    if left:
        some = torch.cat([some, scores[..., -left:]], dim=-1)
    values, found = some.topk(count, dim=-1)
    inside = group.gather(-1, (found // _GROUP).clamp(max=count - 1)) * _GROUP + found % _GROUP
    return values, inside.where(found < count * _GROUP, found + (groups - count) * _GROUP)


def _packed(scores: Any, count: int) -> Any:
    """Choose without waiting for the GPU, by one whole number for each score and its place.

    No two are equal: above, the score's bits in an order that agrees with it; below, the place counted from
    the end.
    """
    import torch

    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    place = torch.arange(scores.shape[-1], device=scores.device)
    packed = (ordered.long() << 32) | (0x7FFFFFFF - place)
    return 0x7FFFFFFF - (packed.topk(count, dim=-1).values & 0x7FFFFFFF)
