# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
"""What a tile of rows may see of the keys, how tiles are loaded and stored, and of which sizes they are.

Steps are relative to the first query's and int32, which is exact for episodes of up to 2**30 steps.
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
def own_place(tiles, groups):
    """The tile, the key head and the batch row of this program."""
    program = tl.program_id(0).to(tl.int64)
    return program % tiles, program // tiles % groups, program // tiles // groups


@triton.jit
def load_limits(
    query_step, episode_start, query_step_t, episode_start_t, time, inside, base, window, num_sinks
):
    """What rows may see: from `first` to `last` the steps before `sink_end` and those after `passed`."""
    step = tl.load(query_step + time * query_step_t, mask=inside, other=-1).to(tl.int64)
    start = tl.load(episode_start + time * episode_start_t, mask=inside, other=0).to(tl.int64)
    first = _relative(tl.maximum(start, 0), base)
    before_stream = tl.maximum(tl.minimum(start, 0), -FAR).to(tl.int32)
    last = _relative(step, base)
    return first, last, tl.maximum(first + before_stream, -FAR) + num_sinks, last - window


@triton.jit
def load_keys(key_step, key_step_n, slot, slots, base):
    """Return the relative steps in slots, below all others where a slot is empty."""
    step = tl.load(key_step + slot * key_step_n, mask=slot < slots, other=-1).to(tl.int64)
    return _relative(step, base)


@triton.jit
def sees(key, first, last, sink_end, passed):
    """Return whether rows of these limits see these keys."""
    return (key >= first) & (key <= last) & ((key < sink_end) | (key > passed))


@triton.jit
def widest_limits(first, last, sink_end, passed):
    """Limits that hide only what is hidden from all rows."""
    reads = last >= -FAR
    first = tl.min(tl.where(reads, first, FAR))
    passed = tl.min(tl.where(reads, passed, FAR))
    return first, tl.max(last), tl.max(tl.where(reads, sink_end, -FAR)), passed


@triton.jit
def load_tile(pointer, rows, inside, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Load a tile whose row i begins at `rows[i]`."""
    column = tl.arange(0, BLOCK)
    mask = inside[:, None]
    if WIDTH < BLOCK:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(pointer + rows[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, rows, inside, tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Store a tile whose row i begins at `rows[i]`."""
    column = tl.arange(0, BLOCK)
    mask = inside[:, None]
    if WIDTH < BLOCK:
        mask = mask & (column < WIDTH)[None, :]
    tl.store(pointer + rows[:, None] + column[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


def launch_of(
    kernel: Any,
    role: Role,
    tensors: dict[str, Tensor],
    steps: dict[str, Tensor],
    extra: dict[str, Tensor | None],
    window: int,
    num_sinks: int,
    scale: float,
) -> Launch:
    """Return the launch of a kernel.

    Args:
        kernel: The kernel, which names its arguments as here.
        role: What it does, by which its tiles are chosen.
        tensors: Queries, keys and values, and the gradient of what was read, with their strides.
        steps: Of queries, keys and episodes' starts, with their strides.
        extra: What has no strides: contiguous tensors, or None.
        window: Steps seen before a query, its own included.
        num_sinks: Steps seen at the start of an episode.
        scale: Of the scores.
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
    # Beyond this all is in reach, and int32 arithmetic stays exact.
    far = FAR.value - 1
    sizes = {"queries": queries, "slots": slots, "groups": groups, "scale": scale}
    limits = {"window": min(window, far), "num_sinks": min(num_sinks, far)}
    constants |= {"SHARED": heads // groups, "WIDTH": width, "VALUE_WIDTH": value_width}
    arguments = tensors | steps | extra | strides | sizes | limits
    return Launch(kernel, (tiles * groups * batch,), arguments, constants, num_warps)


def _choose_blocks(
    rows: int, width: int, value_width: int, dtype: torch.dtype, role: Role
) -> tuple[dict[str, int], int]:
    """Return the tile sizes and the number of warps: none spills at widths to 128, or 64 in float32."""
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
    # A decode step has only the heads of a group: its tiles are low, so they may be long.
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
