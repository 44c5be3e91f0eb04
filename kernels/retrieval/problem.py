"""Tensors and options of one chunk retrieval call, and their checks. Letters as in `chunk_retrieval`."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from scrubjay.kernels.dispatch import check_floats, is_traced, unsupported_dtype

Tensors = TypeVar("Tensors", "Problem", "Reading")

MAX_TOP_K = 64
"""Largest `top_k` of the Triton kernels."""
# Shared memory limits of the kernels on an A100, in bytes: one tile of query heads, and one row.
_MAX_TILE_BYTES = 64 * 512
_MAX_ROW_BYTES = 512


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


def as_mask(valid: Tensor, chunks: int) -> Tensor:
    """Return `valid` as a mask of readable chunks. Counts of leading chunks are converted."""
    return (
        valid if valid.dtype == torch.bool else torch.arange(chunks, device=valid.device) < valid[..., None]
    )


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


def unsupported_sizes(query: Tensor, widths: dict[str, int], units: int, top_k: int) -> str | None:
    """Return the reason why the Triton kernels do not support these sizes; None if they do."""
    size = query.element_size()
    for name, width in widths.items():
        if width * size > _MAX_ROW_BYTES:
            return f"a {name} of {width} does not fit in shared memory; use at most {_MAX_ROW_BYTES // size}"
    rows = query.shape[2] // units
    if rows * max(widths.values()) * size > _MAX_TILE_BYTES:
        return f"{rows} query heads of one selection and key head do not fit in shared memory"
    if top_k > MAX_TOP_K:
        return f"top_k={top_k} is more than the {MAX_TOP_K} chunks that the Triton kernels support"
    return unsupported_dtype(query)


def promote_dtypes(
    query: Tensor, keys: Tensor, values: Tensor, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cast all tensors to their widest dtype. If `values` is the same object as `keys`, it remains so."""
    dtype = torch.promote_types(torch.promote_types(query.dtype, keys.dtype), values.dtype)
    dtype = dtype if positions is None else torch.promote_types(dtype, positions.dtype)
    shared = values is keys
    keys = keys.to(dtype)
    values = keys if shared else values.to(dtype)
    return query.to(dtype), keys, values, None if positions is None else positions.to(dtype)


def check_memory(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor | None,
    lengths: Tensor | None,
    combine: str,
) -> None:
    """Raise TypeError or ValueError if queries, memory and options do not match.

    Args: those of `kernels.chunk_retrieval`.
    """
    check_floats(query=query, keys=keys, values=values, positions=positions)
    if lengths is not None and lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"lengths have dtype {lengths.dtype}; expected torch.int32 or torch.int64")
    for name, tensor, rank in (("query", query, 4), ("keys", keys, 5), ("values", values, 5)):
        if tensor.ndim != rank:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {rank} dimensions")
    batch, _, heads, width = query.shape
    if 0 in (width, values.shape[-1]):
        raise ValueError(
            f"query has width {width}, values have width {values.shape[-1]}; both must be at least 1"
        )
    if keys.shape[0] != batch or keys.shape[4] != width:
        raise ValueError(
            f"keys have shape {tuple(keys.shape)}; expected [{batch}, chunks, steps, heads, {width}]"
        )
    if values.shape[:4] != keys.shape[:4]:
        raise ValueError(
            f"values have shape {tuple(values.shape)}; expected {tuple(keys.shape[:4])} + (width,)"
        )
    check_heads("key heads", keys.shape[3], heads)
    if positions is not None and (positions.shape != (keys.shape[2], width) or values.shape[4] != width):
        raise ValueError(
            f"positions have shape {tuple(positions.shape)}, values have width {values.shape[4]}; expected "
            f"positions of shape ({keys.shape[2]}, {width}) and values of width {width}"
        )
    if lengths is not None and lengths.shape != keys.shape[:2]:
        raise ValueError(f"lengths have shape {tuple(lengths.shape)}; expected {tuple(keys.shape[:2])}")
    if combine not in ("hierarchical", "joint"):
        raise ValueError(f"combine={combine!r}; choose 'hierarchical' or 'joint'")


def check_heads(name: str, count: int, heads: int) -> None:
    """Raise ValueError unless `count` heads divide the query heads evenly."""
    if count < 1 or heads % count:
        raise ValueError(f"{count} {name} do not divide {heads} query heads evenly; use a divisor of {heads}")


def empty_output(query: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result of attention to no chunks: a zero read-out, and a log normaliser of -inf."""
    out = query.new_zeros(*query.shape[:-1], values.shape[-1])
    return out, out.new_full(out.shape[:-1], -math.inf, dtype=torch.promote_types(out.dtype, torch.float32))
