# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""How tiles are loaded, stored and multiplied, and how products of tokens fade.

Decays come multiplied: of every level, blocks of 1, 2, 4, ... tokens, a token of a right block has what is
left at it of what its block began with, one of a left block what is left of it at its block's end.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Return the product of two tiles, as "tf32" or "tf32x3"."""
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def get(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a tile of a contiguous matrix `[ROWS, COLUMNS]`, with zeros outside of it."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(pointer + rows[:, None] * COLUMNS + columns[None, :], mask=mask, other=0.0)


@triton.jit
def put(pointer, tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store what `get` would load."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    tl.store(pointer + rows[:, None] * COLUMNS + columns[None, :], tile, mask=mask)


@triton.jit
def factors(pointer, rows, columns, C: tl.constexpr, F: tl.constexpr):
    """Load the decays of tokens: `[C, 1]` of one a token, or `[C, K]`."""
    if F == 1:
        loaded = tl.load(pointer + rows, mask=rows < C, other=0.0)[:, None]
    else:
        loaded = get(pointer, rows, columns, C, F)
    return loaded


@triton.jit
def kept(pointer, channels, C: tl.constexpr, F: tl.constexpr):
    """Load what is left at a chunk's end of what it began with, from what is left at each token: `[K, 1]`."""
    if F == 1:
        loaded = tl.load(pointer + (C - 1) + channels * 0)[:, None]
    else:
        loaded = tl.load(pointer + (C - 1) * F + channels, mask=channels < F, other=0.0)[:, None]
    return loaded


@triton.jit
def joined(rows, columns, level):
    """Return which tokens lie in a right block of 2^level and in the left block beside it."""
    i, j = rows[:, None] >> level, columns[None, :] >> level
    return ((i >> 1) == (j >> 1)) & (i > j)


@triton.jit
def ties(pointer, rows, columns, C: tl.constexpr, LEVELS: tl.constexpr):
    """Return what is left of each token at each, of one decay a token."""
    tied = tl.where((rows[:, None] == columns[None, :]) & (rows < C)[:, None], 1.0, 0.0)
    for level in range(LEVELS):
        left = tl.load(pointer + level * C + columns, mask=columns < C, other=0.0)
        right = tl.load(pointer + level * C + rows, mask=rows < C, other=0.0)
        tied += tl.where(joined(rows, columns, level), right[:, None] * left[None, :], 0.0)
    return tied


@triton.jit
def pairs(
    x, y, pointer, rows, columns, channels,
    C: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the products `[C, C]` of each x with each y before it or beside it, faded."""
    if F == 1:
        found = dot(x, tl.trans(y), PRECISION) * ties(pointer, rows, columns, C, LEVELS)
    else:
        own = tl.sum(x * y, axis=1)
        found = tl.where(rows[:, None] == columns[None, :], own[:, None], 0.0)
        for level in range(LEVELS):
            # [C, K]
            fade = get(pointer + level * C * F, rows, channels, C, F)
            product = dot(x * fade, tl.trans(y * fade), PRECISION)
            found += tl.where(joined(rows, columns, level), product, 0.0)
    return found


@triton.jit
def of_left(
    grad, y, pointer, rows, columns, channels,
    C: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the gradient of x from that of `pairs`."""
    if F == 1:
        found = dot(grad * ties(pointer, rows, columns, C, LEVELS), y, PRECISION)
    else:
        own = tl.sum(tl.where(rows[:, None] == columns[None, :], grad, 0.0), axis=1)
        found = own[:, None] * y
        for level in range(LEVELS):
            # [C, K]
            fade = get(pointer + level * C * F, rows, channels, C, F)
            here = tl.where(joined(rows, columns, level), grad, 0.0)
            found += fade * dot(here, y * fade, PRECISION)
    return found


@triton.jit
def of_right(
    grad, x, pointer, rows, columns, channels,
    C: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the gradient of y from that of `pairs`."""
    if F == 1:
        found = dot(tl.trans(grad * ties(pointer, rows, columns, C, LEVELS)), x, PRECISION)
    else:
        own = tl.sum(tl.where(rows[:, None] == columns[None, :], grad, 0.0), axis=1)
        found = own[:, None] * x
        for level in range(LEVELS):
            # [C, K]
            fade = get(pointer + level * C * F, rows, channels, C, F)
            here = tl.where(joined(rows, columns, level), grad, 0.0)
            found += fade * dot(tl.trans(here), x * fade, PRECISION)
    return found
