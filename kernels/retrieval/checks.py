"""What the arguments of chunk retrieval and of its second half must be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scrubjay.kernels.dispatch import check_floats, unsupported_dtype
from scrubjay.kernels.retrieval.chosen import MOST_KEPT

# Limits of the kernels on an A100: bytes of a tile of query heads, and of a row.
_LARGEST_TILE = 64 * 512
_WIDEST_ROW = 512


def unsupported(query: Tensor, widths: dict[str, int], units: int, kept: int) -> str | None:
    """Return why the Triton kernels cannot do these sizes, None if they can."""
    size = query.element_size()
    for name, width in widths.items():
        if width * size > _WIDEST_ROW:
            return f"a {name} of {width} does not fit in shared memory, at most {_WIDEST_ROW // size} does"
    rows = query.shape[2] // units
    if rows * max(widths.values()) * size > _LARGEST_TILE:
        return f"{rows} query heads of one selection and key head do not fit in shared memory"
    if kept > MOST_KEPT:
        return f"top_k={kept} is more than the {MOST_KEPT} chunks its selection holds"
    return unsupported_dtype(query)


def of_one_dtype(
    query: Tensor, keys: Tensor, values: Tensor, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return all in the widest of their dtypes, `values` still `keys` where it was."""
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
    """Raise TypeError or ValueError unless queries can attend to chunks of these.

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
        raise ValueError(f"widths D={width}, V={values.shape[-1]} must be at least 1")
    if keys.shape[0] != batch or keys.shape[4] != width:
        raise ValueError(f"keys have shape {tuple(keys.shape)}; expected [{batch}, M, C, G, {width}]")
    if values.shape[:4] != keys.shape[:4]:
        raise ValueError(f"values have shape {tuple(values.shape)}; expected {tuple(keys.shape[:4])} + (V,)")
    check_heads("key heads", keys.shape[3], heads)
    if positions is not None and (positions.shape != (keys.shape[2], width) or values.shape[4] != width):
        raise ValueError(
            f"positions have shape {tuple(positions.shape)}; expected ({keys.shape[2]}, {width}) and V = D"
        )
    if lengths is not None and lengths.shape != keys.shape[:2]:
        raise ValueError(f"lengths have shape {tuple(lengths.shape)}; expected {tuple(keys.shape[:2])}")
    if combine not in ("hierarchical", "joint"):
        raise ValueError(f"combine={combine!r}; choose 'hierarchical' or 'joint'")


def check_heads(name: str, count: int, heads: int) -> None:
    """Raise ValueError unless `count` heads divide the query heads evenly."""
    if count < 1 or heads % count:
        raise ValueError(f"{count} {name} do not divide {heads} query heads evenly")


def nothing(query: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the read-out of no chunk at all, and its normaliser."""
    out = query.new_zeros(*query.shape[:-1], values.shape[-1])
    return out, out.new_full(out.shape[:-1], -math.inf, dtype=torch.promote_types(out.dtype, torch.float32))
