# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Device functions: loads, stores and products of tiles, the activation, and the flags of chunk borders."""

from __future__ import annotations

import triton
import triton.language as tl

from scrubjay.kernels.neural.gpu.layout import BorderFlag

FRESH_OR_CUT = tl.constexpr(BorderFlag.FRESH_OR_CUT.value)
INCOMPLETE = tl.constexpr(BorderFlag.INCOMPLETE.value)
OLD_ANCHOR = tl.constexpr(BorderFlag.OLD_ANCHOR.value)
AFTER_INCOMPLETE = tl.constexpr(BorderFlag.AFTER_INCOMPLETE.value)
FRESH_NEXT = tl.constexpr(BorderFlag.FRESH_NEXT.value)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Return the matrix product of two tiles, with PRECISION "tf32" or "tf32x3"."""
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
def silu_curvature(x):
    """Return the second derivative of SiLU."""
    gate = tl.sigmoid(x)
    complement = 1 - gate
    return gate * complement * (2 + x * (complement - gate))


@triton.jit
def squares(x):
    """Return the squared norm of each row."""
    return tl.sum(x * x, axis=1)


@triton.jit
def flush_denormals(x):
    """Return `x` with zeros for negligible values, as `network.flush_denormals` does."""
    return tl.where(tl.abs(x) < 1e-30, 0.0, x)


@triton.jit
def _get(pointers, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    # Masked only if the matrix size is not a multiple of the tile size.
    UNEVEN_ROWS: tl.constexpr = (rows.shape[0] * 0 + ROWS) % rows.shape[0] != 0
    UNEVEN_COLUMNS: tl.constexpr = (columns.shape[0] * 0 + COLUMNS) % columns.shape[0] != 0
    if UNEVEN_ROWS or UNEVEN_COLUMNS:
        tile = tl.load(pointers, mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile.to(tl.float32)


@triton.jit
def _put(pointers, tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    UNEVEN_ROWS: tl.constexpr = (rows.shape[0] * 0 + ROWS) % rows.shape[0] != 0
    UNEVEN_COLUMNS: tl.constexpr = (columns.shape[0] * 0 + COLUMNS) % columns.shape[0] != 0
    if UNEVEN_ROWS or UNEVEN_COLUMNS:
        tl.store(pointers, tile, mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :])
    else:
        tl.store(pointers, tile)


@triton.jit
def get_row(pointer, columns, COLUMNS: tl.constexpr):
    """Load the entries `columns` of a row `[COLUMNS]`; zeros outside the row."""
    return tl.load(pointer + columns, mask=columns < COLUMNS, other=0.0)


@triton.jit
def get(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load the tile `[rows, columns]` of a matrix `[ROWS, COLUMNS]` in float32; zeros outside the matrix."""
    return get_tokens(pointer, rows, columns, COLUMNS, ROWS, COLUMNS)


@triton.jit
def put(pointer, tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store the tile `[rows, columns]` of a matrix `[ROWS, COLUMNS]`."""
    put_tokens(pointer, tile, rows, columns, COLUMNS, ROWS, COLUMNS)


@triton.jit
def get_tokens(pointer, rows, columns, row_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a tile, as `get` does, of a matrix whose rows are `row_stride` apart, such as tokens."""
    pointers = pointer + (rows[:, None] * row_stride + columns[None, :])
    return _get(pointers, rows, columns, ROWS, COLUMNS)


@triton.jit
def put_tokens(pointer, tile, rows, columns, row_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store a tile of a matrix whose rows are `row_stride` apart, such as tokens."""
    pointers = pointer + (rows[:, None] * row_stride + columns[None, :])
    _put(pointers, tile.to(pointer.dtype.element_ty), rows, columns, ROWS, COLUMNS)


@triton.jit
def get_transposed(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a tile of a column-major matrix, such as the transposed upper layer."""
    return _get(pointer + (rows[:, None] + columns[None, :] * ROWS), rows, columns, ROWS, COLUMNS)


@triton.jit
def put_transposed(pointer, tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store a tile of a column-major matrix."""
    _put(pointer + (rows[:, None] + columns[None, :] * ROWS), tile, rows, columns, ROWS, COLUMNS)
