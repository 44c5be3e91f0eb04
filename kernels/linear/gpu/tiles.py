# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Device functions: loads, stores and products of tiles, and decayed products of tokens.

The decays of a chunk are stored in levels. At level l = 0, 1, 2, ... the chunk is cut into blocks of 2^l
tokens, and neighboring blocks form pairs of a left and a right block. A level has one decay per token. In a
right block, it is the decay from the start of the block to the token. In a left block, it is the decay from
the token to the end of the block."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Return the matrix product of two tiles, with PRECISION "tf32" or "tf32x3"."""
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def get(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load the entries `[rows, columns]` of a contiguous matrix `[ROWS, COLUMNS]`; zeros outside."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(pointer + rows[:, None] * COLUMNS + columns[None, :], mask=mask, other=0.0)


@triton.jit
def put(pointer, tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store `tile` as the entries `[rows, columns]` of a contiguous matrix `[ROWS, COLUMNS]`."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    tl.store(pointer + rows[:, None] * COLUMNS + columns[None, :], tile, mask=mask)


@triton.jit
def load_decays(pointer, rows, columns, C: tl.constexpr, F: tl.constexpr):
    """Load the decays of tokens: `[C, 1]` for one decay per token (F = 1), else `[C, K]`."""
    if F == 1:
        decays = tl.load(pointer + rows, mask=rows < C, other=0.0)[:, None]
    else:
        decays = get(pointer, rows, columns, C, F)
    return decays


@triton.jit
def load_chunk_decay(pointer, channels, C: tl.constexpr, F: tl.constexpr):
    """Load the decay over a whole chunk, `[K, 1]`.

    `pointer` points to the decays from the chunk's start to each token. The last token's decays are loaded.
    """
    if F == 1:
        decays = tl.load(pointer + (C - 1) + channels * 0)[:, None]
    else:
        decays = tl.load(pointer + (C - 1) * F + channels, mask=channels < F, other=0.0)[:, None]
    return decays


@triton.jit
def is_block_pair(rows, columns, level):
    """Return the mask of entries with the row in a right block and the column in the left block beside it.

    Blocks have 2^level tokens.
    """
    i, j = rows[:, None] >> level, columns[None, :] >> level
    return ((i >> 1) == (j >> 1)) & (i > j)


@triton.jit
def pair_decays(pointer, rows, columns, C: tl.constexpr, LEVELS: tl.constexpr):
    """Return the decay between every two tokens `[C, C]` if F = 1; 0 for future tokens."""
    decays = tl.where((rows[:, None] == columns[None, :]) & (rows < C)[:, None], 1.0, 0.0)
    for level in range(LEVELS):
        left = tl.load(pointer + level * C + columns, mask=columns < C, other=0.0)
        right = tl.load(pointer + level * C + rows, mask=rows < C, other=0.0)
        decays += tl.where(is_block_pair(rows, columns, level), right[:, None] * left[None, :], 0.0)
    return decays


@triton.jit
def pair_products(
    x, y, pointer, rows, columns, channels,
    C: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the decayed causal products of `x` and `y`, `[C, C]`.

    Entry [i, j] is the dot product of x_i and y_j times the decay from token j to token i; 0 for j > i.
    """
    if F == 1:
        products = dot(x, tl.trans(y), PRECISION) * pair_decays(pointer, rows, columns, C, LEVELS)
    else:
        own = tl.sum(x * y, axis=1)
        products = tl.where(rows[:, None] == columns[None, :], own[:, None], 0.0)
        for level in range(LEVELS):
            # [C, K]
            decays = get(pointer + level * C * F, rows, channels, C, F)
            product = dot(x * decays, tl.trans(y * decays), PRECISION)
            products += tl.where(is_block_pair(rows, columns, level), product, 0.0)
    return products


@triton.jit
def pair_gradient(
    grad, other, pointer, rows, columns, channels,
    C: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr, RIGHT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the gradient `[C, K]` of the argument `x` of `pair_products` or, with RIGHT, of `y`.

    `grad` is the gradient of the result of `pair_products`, and `other` is the other argument.
    """
    if F == 1:
        grad = grad * pair_decays(pointer, rows, columns, C, LEVELS)
        if RIGHT:
            grad = tl.trans(grad)
        result = dot(grad, other, PRECISION)
    else:
        own = tl.sum(tl.where(rows[:, None] == columns[None, :], grad, 0.0), axis=1)
        result = own[:, None] * other
        for level in range(LEVELS):
            # [C, K]
            decays = get(pointer + level * C * F, rows, channels, C, F)
            level_grad = tl.where(is_block_pair(rows, columns, level), grad, 0.0)
            if RIGHT:
                level_grad = tl.trans(level_grad)
            result += decays * dot(level_grad, other * decays, PRECISION)
    return result
