# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Tensors, tiles and launches that the attention and gradient kernels share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch, ensure_dense_rows, name_strides, pad_size
from scrubjay.kernels.retrieval.problem import Choice, Problem, Reading


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


class AttentionOutputs(NamedTuple):
    """Outputs of the attention kernel."""

    out: Tensor
    """Read-out, `[B, T, H, V]`."""
    weights: Tensor
    """Softmax weights of the selected chunks, `[B, T, S, K]`."""
    normalisers: Tensor
    """Logsumexp over the steps of each chunk, `[B, T, H, K]`; if joint, over all chunks, `[B, T, H, 1]`."""
    lse: Tensor
    """Log normaliser that `chunk_retrieval` returns, `[B, T, H]`."""


class OutputGrads(NamedTuple):
    """Gradients of the read-out and of its log normaliser (None if that has no gradient)."""

    out: Tensor
    lse: Tensor | None


def pack_reading(reading: Reading) -> Reading:
    """Convert the tensors to the kernels' layout.

    Queries, keys and values get a contiguous last dim. Indices become int32. All other tensors become
    contiguous.
    """
    query, keys = ensure_dense_rows(reading.query), ensure_dense_rows(reading.keys)
    values = keys if reading.values is reading.keys else ensure_dense_rows(reading.values)
    positions, scores, lengths = reading.positions, reading.scores, reading.lengths
    if lengths is not None:
        lengths = lengths.clamp(0, keys.shape[2]).to(torch.int32).contiguous()
    return Reading(
        query,
        keys,
        values,
        reading.chunks.to(torch.int32).contiguous(),
        None if scores is None else scores.float().contiguous(),
        None if positions is None else positions.contiguous(),
        lengths,
    )


def tile_sizes(reading: Reading, rows: int) -> dict[str, int]:
    """Choose tile sizes. Wide heads take shorter tiles, and float32 still shorter ones."""
    width, value_width = pad_size(reading.query.shape[-1]), pad_size(reading.values.shape[-1])
    budget = 4096 if reading.query.dtype != torch.float32 else 1024
    max_steps = max(16, budget // max(width, value_width))
    return {
        "BLOCK_R": rows,
        "BLOCK_C": min(64, max_steps, pad_size(reading.keys.shape[2])),
        "BLOCK_D": width,
        "BLOCK_V": value_width,
    }


def build_launch(
    kernel: Any,
    grid: tuple[int, ...],
    reading: Reading,
    choice: Choice,
    tensors: dict[str, Tensor | None],
    rows: int,
    score_source: Problem | None = None,
) -> Launch:
    """Return the launch of a kernel. Tensors, sizes and constants are matched to its parameters by name.

    Args:
        kernel: Kernel of attention or of a gradient.
        grid: Number of programs along each axis.
        reading: Inputs of the op, packed for the kernels.
        choice: Options of the attention.
        tensors: Tensors of the kernel besides those of the reading.
        rows: Query heads per tile.
        score_source: Queries and summaries to compute scores from; None if the kernel computes no scores.
    """
    query, keys, values = reading.query, reading.keys, reading.values
    summary_query = None if score_source is None else score_source.summary_query
    summaries = None if score_source is None else score_source.summaries
    num_groups, width = (1, 1) if summaries is None else summaries.shape[2:]
    same_layout = keys.shape == values.shape and keys.stride() == values.stride()
    constants = {
        "C": keys.shape[2],
        "D": query.shape[-1],
        "V": values.shape[-1],
        "DS": width,
        "K": choice.top_k,
        "U": reading.units,
        "R": query.shape[2] // reading.units,
        "JOINT": choice.joint,
        "SHARED": values is keys
        or (same_layout and not keys.is_meta and keys.data_ptr() == values.data_ptr()),
        **tile_sizes(reading, rows),
        "BLOCK_K": triton.next_power_of_2(choice.top_k),
        "BLOCK_DS": pad_size(width),
    }
    numbers = {
        "T": query.shape[1],
        "M": keys.shape[1],
        "H": query.shape[2],
        "S": reading.chunks.shape[2],
        "G": keys.shape[3],
        "GS": num_groups,
        **name_strides("bth", {"query": query}),
        **name_strides("bmcg", {"keys": keys, "values": values}),
        **name_strides("bts", {"summary_query": summary_query}),
        **name_strides("bmg", {"summaries": summaries}),
        "scale": choice.scale,
        "summary_scale": choice.summary_scale,
    }
    own = reading._asdict() | {"summary_query": summary_query, "summaries": summaries}
    return Launch.match(kernel, grid, own | tensors, numbers, constants)
