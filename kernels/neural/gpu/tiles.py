# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""How tiles are loaded, multiplied and stored, and the network's functions of numbers."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Return the product of two tiles, as "tf32" or "tf32x3"."""
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def silu(x):
    """Return SiLU."""
    return x * tl.sigmoid(x)


@triton.jit
def silu_slope(x):
    """Return the derivative of SiLU."""
    gate = tl.sigmoid(x)
    return gate * (1 + x * (1 - gate))


@triton.jit
def silu_bend(x):
    """Return the second derivative of SiLU."""
    gate = tl.sigmoid(x)
    shut = 1 - gate
    return gate * shut * (2 + x * (shut - gate))


@triton.jit
def squares(x):
    """Return the squared length of each row."""
    return tl.sum(x * x, axis=1)


@triton.jit
def flushed(x):
    """Return `x` with zeros for what is too small to matter, as `network.flushed` does."""
    return tl.where(tl.abs(x) < 1e-30, 0.0, x)


@triton.jit
def _load(place, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load `[rows, columns]`, in float32, with zeros outside of `[ROWS, COLUMNS]`; masked only where some are."""
    UNEVEN_ROWS: tl.constexpr = (rows.shape[0] * 0 + ROWS) % rows.shape[0] != 0
    UNEVEN_COLUMNS: tl.constexpr = (columns.shape[0] * 0 + COLUMNS) % columns.shape[0] != 0
    if UNEVEN_ROWS or UNEVEN_COLUMNS:
        loaded = tl.load(place, mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :], other=0.0)
    else:
        loaded = tl.load(place)
    return loaded.to(tl.float32)


@triton.jit
def _store(place, tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    UNEVEN_ROWS: tl.constexpr = (rows.shape[0] * 0 + ROWS) % rows.shape[0] != 0
    UNEVEN_COLUMNS: tl.constexpr = (columns.shape[0] * 0 + COLUMNS) % columns.shape[0] != 0
    if UNEVEN_ROWS or UNEVEN_COLUMNS:
        tl.store(place, tile, mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :])
    else:
        tl.store(place, tile)


@triton.jit
def get(pointer, rows, columns, row_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load the tile `[rows, columns]` of a matrix `[ROWS, COLUMNS]`, in float32, with zeros outside of it."""
    place = pointer + (rows[:, None] * row_stride + columns[None, :])
    return _load(place, rows, columns, ROWS, COLUMNS)


@triton.jit
def put(pointer, tile, rows, columns, row_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store what `get` would load."""
    place = pointer + (rows[:, None] * row_stride + columns[None, :])
    _store(place, tile.to(pointer.dtype.element_ty), rows, columns, ROWS, COLUMNS)


@triton.jit
def transposed(pointer, rows, columns, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a tile of what lies column by column: the upper layer, so that its long side is as the lower's."""
    return _load(pointer + (rows[:, None] + columns[None, :] * column_stride), rows, columns, ROWS, COLUMNS)


@triton.jit
def put_transposed(pointer, tile, rows, columns, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store what `transposed` would load."""
    _store(pointer + (rows[:, None] + columns[None, :] * column_stride), tile, rows, columns, ROWS, COLUMNS)
