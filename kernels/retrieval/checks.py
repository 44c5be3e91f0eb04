"""Argument checks of `chunk_retrieval` and `attend_chosen`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scrubjay.kernels.dispatch import check_floats, unsupported_dtype
from scrubjay.kernels.retrieval.selection import MAX_TOP_K

# Shared memory limits of the kernels on an A100, in bytes: one tile of query heads, and one row.
_MAX_TILE_BYTES = 64 * 512
_MAX_ROW_BYTES = 512


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
