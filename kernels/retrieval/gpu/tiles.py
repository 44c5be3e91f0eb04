# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Tile loads, tile sizes and launch arguments shared by the attention and gradient kernels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.retrieval.problem import Choice, Reading


@triton.jit
def rows_tile(
    pointer, positions_ptr, c, d, length, step, WIDTH: tl.constexpr
):  # fmt: skip
    """Load the steps `c` of one chunk as a tile `[BLOCK_C, BLOCK]`.

    Position codes are added to the steps if `positions_ptr` is not None. Steps beyond the length of the chunk
    are zero.
    """
    mask = (c < length)[:, None] & (d < WIDTH)[None, :]
    tile = tl.load(pointer + c.to(tl.int64)[:, None] * step + d[None, :], mask=mask, other=0.0)
    if positions_ptr is not None:
        code = tl.load(positions_ptr + c[:, None] * WIDTH + d[None, :], mask=mask, other=0.0)
        tile = (tile.to(tl.float32) + code.to(tl.float32)).to(tile.dtype)
    return tile


def stride_arguments(name: str, tensor: Tensor | None, dims: str) -> dict[str, int]:
    """Return the strides of the first dims of `tensor` as launch arguments, all zero for None.

    `dims` has one letter for each dim. The stride of dim "b" of the tensor named "keys" becomes `keys_b`.
    """
    return {f"{name}_{dim}": 0 if tensor is None else tensor.stride(i) for i, dim in enumerate(dims)}


def _is_shared(reading: Reading) -> bool:
    keys, values = reading.keys, reading.values
    same_layout = keys.shape == values.shape and keys.stride() == values.stride()
    return values is keys or (same_layout and not keys.is_meta and keys.data_ptr() == values.data_ptr())


def padded_size(width: int) -> int:
    """Return the tile size for `width`: the next power of two, at least 16."""
    return max(16, triton.next_power_of_2(width))


def tile_sizes(reading: Reading, rows: int) -> dict[str, int]:
    """Choose tile sizes. Wide heads take shorter tiles, and float32 still shorter ones."""
    length, width = reading.keys.shape[2], reading.query.shape[-1]
    value_width = reading.values.shape[-1]
    budget = 4096 if reading.query.dtype != torch.float32 else 1024
    max_steps = max(16, budget // max(padded_size(width), padded_size(value_width)))
    return {
        "BLOCK_R": rows,
        "BLOCK_C": min(64, max_steps, padded_size(length)),
        "BLOCK_D": padded_size(width),
        "BLOCK_V": padded_size(value_width),
    }


def kernel_sizes(reading: Reading, choice: Choice) -> dict[str, int]:
    """Return the compile-time sizes and flags that the attention and gradient kernels share."""
    units = reading.units
    return {
        "C": reading.keys.shape[2],
        "D": reading.query.shape[-1],
        "V": reading.values.shape[-1],
        "K": choice.top_k,
        "U": units,
        "R": reading.query.shape[2] // units,
        "JOINT": choice.joint,
        "SHARED": _is_shared(reading),
    }


def memory_arguments(reading: Reading, choice: Choice) -> dict[str, object]:
    """Return the launch arguments shared by the query and memory gradient kernels."""
    query, keys, values = reading.query, reading.keys, reading.values
    return {
        "query_ptr": query,
        "keys_ptr": keys,
        "values_ptr": values,
        "positions_ptr": reading.positions,
        "lengths_ptr": reading.lengths,
        "T": query.shape[1],
        "M": keys.shape[1],
        "H": query.shape[2],
        "S": reading.chunks.shape[2],
        "G": keys.shape[3],
        **stride_arguments("query", query, "bth"),
        **stride_arguments("keys", keys, "bmcg"),
        **stride_arguments("values", values, "bmcg"),
        "scale": choice.scale,
    }
