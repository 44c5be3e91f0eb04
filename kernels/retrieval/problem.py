"""Tensors and options of one chunk retrieval call. Letters as in `chunk_retrieval`."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from scrubjay.kernels.dispatch import is_traced

Tensors = TypeVar("Tensors", "Problem", "Reading")


class Problem(NamedTuple):
    """Tensors of one call of `chunk_retrieval`. `valid` is a mask."""

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
        """Return U, the number of units (used pairs of coarse head and key head, see `chunk_retrieval`)."""
        return math.lcm(self.summary_query.shape[2], self.keys.shape[3])

    @property
    def coarse_dtype(self) -> torch.dtype:
        """Return the dtype of the chunks' scores."""
        return torch.promote_types(self.summary_query.dtype, torch.float32)

    def reading(self, chunks: Tensor, scores: Tensor | None = None) -> Reading:
        """Return the attention inputs for the selected chunks."""
        return Reading(self.query, self.keys, self.values, chunks, scores, self.positions, self.lengths)

    def rows(self, window: slice) -> Problem:
        """Return the tensors for a slice of the batch."""
        return _slice_tensors(
            self, ("query", "keys", "values", "summaries", "valid", "summary_query", "lengths"), window
        )

    def times(self, window: slice) -> Problem:
        """Return these inputs with only the queries in `window`, a slice of the time dim."""
        return _slice_tensors(self, ("query", "valid", "summary_query"), (slice(None), window))


class Reading(NamedTuple):
    """Inputs of the attention inside selected chunks, whose indices are `chunks`, `[B, T, S, K]`."""

    query: Tensor
    keys: Tensor
    values: Tensor
    chunks: Tensor
    scores: Tensor | None
    """Scores of the chunks; -inf for unused slots."""
    positions: Tensor | None
    lengths: Tensor | None

    @property
    def units(self) -> int:
        """Return U, the number of units (used pairs of coarse head and key head, see `chunk_retrieval`)."""
        return math.lcm(self.chunks.shape[2], self.keys.shape[3])

    @property
    def score_dtype(self) -> torch.dtype:
        """Return the dtype of the attention logits inside chunks and of their softmax."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def rows(self, window: slice) -> Reading:
        """Return the tensors for a slice of the batch."""
        return _slice_tensors(self, ("query", "keys", "values", "chunks", "scores", "lengths"), window)

    def times(self, window: slice) -> Reading:
        """Return these inputs with only the queries in `window`, a slice of the time dim."""
        return _slice_tensors(self, ("query", "chunks", "scores"), (slice(None), window))


def _slice_tensors(tensors: Tensors, names: tuple[str, ...], index: slice | tuple[slice, slice]) -> Tensors:
    slices = {name: getattr(tensors, name)[index] for name in names if getattr(tensors, name) is not None}
    if "keys" in slices and tensors.values is tensors.keys:
        slices["values"] = slices["keys"]
    return tensors._replace(**slices)


class Choice(NamedTuple):
    """Options of chunk selection and attention."""

    top_k: int
    joint: bool
    scale: float
    summary_scale: float
    num_sinks: int
    num_locals: int
    return_lse: bool = False


def any_along(mask: Bool[Tensor, "*dims"], dim: int | tuple[int, ...]) -> Bool[Tensor, "*others"]:
    """Reduce a mask by `any` along dims. On a CPU this is forty times as fast as `torch.any`."""
    if mask.is_cuda or is_traced() or not mask.numel():
        return mask.any(dim=dim)
    any_true = _drop_expanded(mask).view(torch.uint8).amax(dim=dim, keepdim=True).view(torch.bool)
    dims = [d % mask.ndim for d in ((dim,) if isinstance(dim, int) else dim)]
    return any_true.expand([1 if d in dims else size for d, size in enumerate(mask.shape)]).squeeze(dims)


def all_true(mask: Bool[Tensor, "*dims"]) -> bool:
    """Reduce a mask by `all`. On a CPU this is forty times as fast as `torch.all`."""
    use_all = mask.is_cuda or not mask.numel()
    return bool(mask.all() if use_all else _drop_expanded(mask).view(torch.uint8).amin())


def _drop_expanded(tensor: Tensor) -> Tensor:
    """Narrow the dims that `expand` created (stride 0) to size 1."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
