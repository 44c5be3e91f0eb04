"""What one call of chunk retrieval is about; its letters are those of `chunk_retrieval`."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from scrubjay.kernels.dispatch import is_traced

Tensors = TypeVar("Tensors", "Problem", "Reading")


class Problem(NamedTuple):
    """The tensors of one call, `valid` a mask."""

    query: Tensor
    keys: Tensor
    values: Tensor
    summaries: Tensor
    valid: Tensor
    summary_query: Tensor
    positions: Tensor | None
    lengths: Tensor | None

    @property
    def units(self) -> int:
        """Return U, the number of different pairs of selection and key head."""
        return math.lcm(self.summary_query.shape[2], self.keys.shape[3])

    @property
    def coarse_dtype(self) -> torch.dtype:
        """Return the dtype of the chunks' scores."""
        return torch.promote_types(self.summary_query.dtype, torch.float32)

    def reading(self, chunks: Tensor, scores: Tensor | None = None) -> Reading:
        """Return what is left to do once chunks are chosen."""
        return Reading(self.query, self.keys, self.values, chunks, scores, self.positions, self.lengths)

    def rows(self, own: slice) -> Problem:
        """Return some rows of the batch."""
        return _sliced(
            self, ("query", "keys", "values", "summaries", "valid", "summary_query", "lengths"), own
        )

    def times(self, own: slice) -> Problem:
        """Return some queries of each row."""
        return _sliced(self, ("query", "valid", "summary_query"), (slice(None), own))


class Reading(NamedTuple):
    """The tensors of attention inside chunks that are chosen, `[B, T, S, K]`."""

    query: Tensor
    keys: Tensor
    values: Tensor
    chunks: Tensor
    scores: Tensor | None
    """The chunks' own, -inf for one that is absent."""
    positions: Tensor | None
    lengths: Tensor | None

    @property
    def units(self) -> int:
        """Return U, the number of different pairs of selection and key head."""
        return math.lcm(self.chunks.shape[2], self.keys.shape[3])

    @property
    def score_dtype(self) -> torch.dtype:
        """Return the dtype of the scores inside chunks and of their softmax."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def rows(self, own: slice) -> Reading:
        """Return some rows of the batch."""
        return _sliced(self, ("query", "keys", "values", "chunks", "scores", "lengths"), own)

    def times(self, own: slice) -> Reading:
        """Return some queries of each row."""
        return _sliced(self, ("query", "chunks", "scores"), (slice(None), own))


def _sliced(tensors: Tensors, names: tuple[str, ...], own: slice | tuple[slice, slice]) -> Tensors:
    found = {name: getattr(tensors, name)[own] for name in names if getattr(tensors, name) is not None}
    if "keys" in found and tensors.values is tensors.keys:
        found["values"] = found["keys"]
    return tensors._replace(**found)


class Choice(NamedTuple):
    """How chunks are chosen and combined."""

    top_k: int
    joint: bool
    scale: float
    summary_scale: float
    num_sinks: int
    num_locals: int
    return_lse: bool = False


def some(mask: Bool[Tensor, "*dims"], dim: int | tuple[int, ...]) -> Bool[Tensor, "*others"]:
    """Return whether any is true along a dimension: as `any`, forty times as fast on a CPU."""
    if mask.is_cuda or is_traced() or not mask.numel():
        return mask.any(dim=dim)
    found = _unexpanded(mask).view(torch.uint8).amax(dim=dim, keepdim=True).view(torch.bool)
    dims = [d % mask.ndim for d in ((dim,) if isinstance(dim, int) else dim)]
    return found.expand([1 if d in dims else size for d, size in enumerate(mask.shape)]).squeeze(dims)


def every(mask: Bool[Tensor, "*dims"]) -> bool:
    """Return whether all are true: as `all`, forty times as fast on a CPU."""
    plainly = mask.is_cuda or not mask.numel()
    return bool(mask.all() if plainly else _unexpanded(mask).view(torch.uint8).amin())


def _unexpanded(tensor: Tensor) -> Tensor:
    """Return a tensor without the copies that its expanded dimensions are."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
