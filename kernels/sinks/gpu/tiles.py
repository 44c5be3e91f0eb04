# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
"""Device functions of sink attention: visibility limits, loads and stores of tiles.

Step numbers are int32, relative to the step of the first query. They are exact for episodes of up to 2**30
steps.
"""

from __future__ import annotations

import triton
import triton.language as tl

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
def locate_rows(tile, group, queries, SHARED: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Return the query and the head of each row of a tile, and a mask of the rows that exist."""
    row = (tile * BLOCK_ROWS).to(tl.int32) + tl.arange(0, BLOCK_ROWS)
    return (row // SHARED).to(tl.int64), group * SHARED + row % SHARED, row < queries * SHARED


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
def visible_by_row(key, limits):
    """Return a mask `[R, K]` of the keys that are visible to each row."""
    first, last, sink_end, before_window = limits
    return is_visible(key[None, :], first[:, None], last[:, None], sink_end[:, None], before_window[:, None])


@triton.jit
def visible_by_key(key, limits):
    """Return a mask `[K, R]` of the rows that see each key."""
    first, last, sink_end, before_window = limits
    return is_visible(key[:, None], first[None, :], last[None, :], sink_end[None, :], before_window[None, :])


@triton.jit
def is_any_visible(key, limits):
    """Return False if no row of a tile sees a key. The check is quick, but may return True without need."""
    first, last, sink_end, before_window = limits
    # These limits hide a key only if the limits of all rows hide it.
    sees_any = last >= -FAR
    first = tl.min(tl.where(sees_any, first, FAR))
    before_window = tl.min(tl.where(sees_any, before_window, FAR))
    sink_end = tl.max(tl.where(sees_any, sink_end, -FAR))
    return tl.max(is_visible(key, first, tl.max(last), sink_end, before_window).to(tl.int32)) > 0


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
