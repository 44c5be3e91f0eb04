# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
"""Shared parts of sink attention's kernels: visibility limits, loads and stores of tiles, block sizes.

Step numbers are int32, relative to the step of the first query. They are exact for episodes of up to 2**30
steps.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch

Role = Literal["forward", "query gradient", "key gradient"]

FAR = tl.constexpr(2**30)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _relative(step, base):
    near = tl.minimum(tl.maximum(step - base, -FAR), FAR).to(tl.int32)
    return tl.where(step < 0, -FAR - 1, near)


@triton.jit
def locate_program(tiles, groups):
    """Return the tile, the key head and the batch row of this program."""
    program = tl.program_id(0).to(tl.int64)
    return program % tiles, program // tiles % groups, program // tiles // groups


@triton.jit
def load_limits(
    query_step, episode_start, query_step_t, episode_start_t, time, inside, base, window, num_sinks
):
    """Load the limits of the steps that are visible to each row. A row is a query of one head.

    Returns `first`, `last`, `sink_end` and `before_window`. A step from `first` to `last` is visible if it is
    less than `sink_end` or greater than `before_window`.
    """
    step = tl.load(query_step + time * query_step_t, mask=inside, other=-1).to(tl.int64)
    start = tl.load(episode_start + time * episode_start_t, mask=inside, other=0).to(tl.int64)
    first = _relative(tl.maximum(start, 0), base)
    before_stream = tl.maximum(tl.minimum(start, 0), -FAR).to(tl.int32)
    last = _relative(step, base)
    return first, last, tl.maximum(first + before_stream, -FAR) + num_sinks, last - window


@triton.jit
def load_keys(key_step, key_step_n, slot, slots, base):
    """Load the step numbers of key slots, relative to step `base`. An empty slot gets the lowest number."""
    step = tl.load(key_step + slot * key_step_n, mask=slot < slots, other=-1).to(tl.int64)
    return _relative(step, base)


@triton.jit
def is_visible(key, first, last, sink_end, before_window):
    """Return a mask of the keys that are visible under limits from `load_limits` or `widest_limits`."""
    return (key >= first) & (key <= last) & ((key < sink_end) | (key > before_window))


@triton.jit
def widest_limits(first, last, sink_end, before_window):
    """Return common limits for a tile of rows. They hide a key only if the limits of all rows hide it."""
    sees_any = last >= -FAR
    first = tl.min(tl.where(sees_any, first, FAR))
    before_window = tl.min(tl.where(sees_any, before_window, FAR))
    return first, tl.max(last), tl.max(tl.where(sees_any, sink_end, -FAR)), before_window


@triton.jit
def load_tile(pointer, rows, inside, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Load a tile. Row i begins at offset `rows[i]` of `pointer`."""
    column = tl.arange(0, BLOCK)
    mask = inside[:, None]
    if WIDTH < BLOCK:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(pointer + rows[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, rows, inside, tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Store a tile. Row i begins at offset `rows[i]` of `pointer`."""
    column = tl.arange(0, BLOCK)
    mask = inside[:, None]
    if WIDTH < BLOCK:
        mask = mask & (column < WIDTH)[None, :]
    tl.store(pointer + rows[:, None] + column[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


def build_launch(
    kernel: Any,
    role: Role,
    tensors: dict[str, Tensor],
    steps: dict[str, Tensor],
    extra: dict[str, Tensor | None],
    window: int,
    num_sinks: int,
    scale: float,
) -> Launch:
    """Build the launch of a kernel.

    Args:
        kernel: Kernel. The keys of the following dictionaries are names of its parameters.
        role: Purpose of the kernel, which determines the block sizes.
        tensors: Strided queries, keys and values, and the gradient of the output.
        steps: Tensors of step numbers of queries, keys and episode starts.
        extra: Contiguous tensors, which need no stride arguments; None for absent tensors.
        window: Window length in steps, including the query's own step.
        num_sinks: Number of sink steps at the start of an episode.
        scale: Factor of the scores.
    """
    batch, queries, heads, width = tensors["query"].shape
    slots, groups, value_width = tensors["values"].shape[1:]
    rows = queries * (heads // groups)
    by_keys = role == "key gradient"
    constants, num_warps = _choose_blocks(rows, width, value_width, tensors["query"].dtype, role)
    tiles = (
        triton.cdiv(slots, constants["BLOCK_KEYS"]) if by_keys else triton.cdiv(rows, constants["BLOCK_ROWS"])
    )
    strides = {
        f"{name}_{letter}": stride
        for name, tensor in tensors.items()
        for letter, stride in zip(
            "bng" if name in ("keys", "values") else "bth", tensor.stride(), strict=False
        )
    }
    strides |= {
        f"{name}_{letter}": stride
        for name, tensor in steps.items()
        for letter, stride in zip("bn" if name == "key_step" else "bt", tensor.stride(), strict=True)
    }
    # A larger window or sink count reaches every step anyway; the limit keeps int32 arithmetic exact.
    far = FAR.value - 1
    sizes = {"queries": queries, "slots": slots, "groups": groups, "scale": scale}
    limits = {"window": min(window, far), "num_sinks": min(num_sinks, far)}
    constants |= {"SHARED": heads // groups, "WIDTH": width, "VALUE_WIDTH": value_width}
    arguments = tensors | steps | extra | strides | sizes | limits
    return Launch(kernel, (tiles * groups * batch,), arguments, constants, num_warps)


def _choose_blocks(
    rows: int, width: int, value_width: int, dtype: torch.dtype, role: Role
) -> tuple[dict[str, int], int]:
    """Return block sizes and the number of warps.

    No registers spill at widths up to 128, or up to 64 in float32.
    """
    block_width = max(16, triton.next_power_of_2(width))
    block_value = max(16, triton.next_power_of_2(value_width))
    widest = max(block_width, block_value)
    if dtype == torch.float32:
        outer, inner = (32, 32) if widest <= 64 else (32, 16) if widest <= 128 else (16, 16)
        num_warps = 8
    elif widest <= 128:
        outer, inner, num_warps = 64, 32, 4 if role == "forward" or widest <= 64 else 8
    else:
        outer, inner, num_warps = 32, 32, 8
    block_rows, block_keys = (inner, outer) if role == "key gradient" else (outer, inner)
    # A decode step has only the heads of one group as rows, so a tile may have more keys.
    fewest = max(16, triton.next_power_of_2(rows))
    if fewest <= 16 and role == "forward" and dtype != torch.float32:
        block_keys, num_warps = 64, 4
    blocks = {
        "BLOCK_ROWS": min(block_rows, fewest),
        "BLOCK_KEYS": block_keys,
        "BLOCK_WIDTH": block_width,
        "BLOCK_VALUE": block_value,
    }
    return blocks, num_warps
