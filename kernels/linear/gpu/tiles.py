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
def get(pointer, index, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load the entries `[rows, columns]` of matrix `index`; zeros outside.

    The matrices `[ROWS, COLUMNS]` stand one after another in memory.
    """
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    pointer += index * (ROWS * COLUMNS)
    return tl.load(pointer + rows[:, None] * COLUMNS + columns[None, :], mask=mask, other=0.0)


@triton.jit
def put(pointer, index, tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Store `tile` as the entries `[rows, columns]` of matrix `index`, as `get` loads them."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    pointer += index * (ROWS * COLUMNS)
    tl.store(pointer + rows[:, None] * COLUMNS + columns[None, :], tile, mask=mask)


@triton.jit
def get_row(pointer, index, columns, COLUMNS: tl.constexpr):
    """Load the entries `columns` of row `index`; zeros outside."""
    return tl.load(pointer + index * COLUMNS + columns, mask=columns < COLUMNS, other=0.0)


@triton.jit
def load_decays(pointer, index, rows, columns, C: tl.constexpr, F: tl.constexpr):
    """Load the decays of tokens: `[C, 1]` for one decay per token (F = 1), else `[C, K]`."""
    if F == 1:
        decays = get_row(pointer, index, rows, C)[:, None]
    else:
        decays = get(pointer, index, rows, columns, C, F)
    return decays


@triton.jit
def load_chunk_decay(pointer, index, channels, C: tl.constexpr, F: tl.constexpr):
    """Load the decay over a whole chunk, `[K, 1]`.

    `pointer` points to the decays from each chunk's start to each token. The last token's decays are loaded.
    """
    pointer += index * (C * F)
    if F == 1:
        decays = tl.load(pointer + (C - 1) + channels * 0)[:, None]
    else:
        decays = tl.load(pointer + (C - 1) * F + channels, mask=channels < F, other=0.0)[:, None]
    return decays


@triton.jit
def put_log_gradient(
    pointer, index, tile, rows, columns, C: tl.constexpr, F: tl.constexpr, ADD: tl.constexpr
):
    """Store a gradient of log decays, given per channel. With ADD, add it to the stored gradient."""
    if F == 1:
        total = tl.sum(tile, axis=1)
        if ADD:
            total += get_row(pointer, index, rows, C)
        tl.store(pointer + index * C + rows, total, mask=rows < C)
    else:
        if ADD:
            tile += get(pointer, index, rows, columns, C, F)
        put(pointer, index, tile, rows, columns, C, F)


@triton.jit
def is_block_pair(tokens, level):
    """Return the mask of token pairs: the row in a right block, the column in the left block beside it.

    Blocks have 2^level tokens.
    """
    i, j = tokens[:, None] >> level, tokens[None, :] >> level
    return ((i >> 1) == (j >> 1)) & (i > j)


@triton.jit
def pair_decays(pointer, tokens, C: tl.constexpr, LEVELS: tl.constexpr):
    """Return the decay between every two tokens `[C, C]` if F = 1; 0 for future tokens."""
    decays = tl.where((tokens[:, None] == tokens[None, :]) & (tokens < C)[:, None], 1.0, 0.0)
    for level in range(LEVELS):
        factors = get_row(pointer, level, tokens, C)
        decays += tl.where(is_block_pair(tokens, level), factors[:, None] * factors[None, :], 0.0)
    return decays


@triton.jit
def pair_products(
    x, y, pointer, tokens, channels,
    C: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the decayed causal products of `x` and `y`, `[C, C]`.

    Entry [i, j] is the dot product of x_i and y_j times the decay from token j to token i; 0 for j > i.
    """
    if F == 1:
        products = dot(x, tl.trans(y), PRECISION) * pair_decays(pointer, tokens, C, LEVELS)
    else:
        own = tl.sum(x * y, axis=1)
        products = tl.where(tokens[:, None] == tokens[None, :], own[:, None], 0.0)
        for level in range(LEVELS):
            # [C, K]
            decays = get(pointer, level, tokens, channels, C, F)
            product = dot(x * decays, tl.trans(y * decays), PRECISION)
            products += tl.where(is_block_pair(tokens, level), product, 0.0)
    return products


@triton.jit
def pair_gradient(
    grad, other, pointer, tokens, channels,
    C: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr, RIGHT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the gradient `[C, K]` of the argument `x` of `pair_products` or, with RIGHT, of `y`.

    `grad` is the gradient of the result of `pair_products`, and `other` is the other argument.
    """
    if F == 1:
        grad = grad * pair_decays(pointer, tokens, C, LEVELS)
        if RIGHT:
            grad = tl.trans(grad)
        result = dot(grad, other, PRECISION)
    else:
        own = tl.sum(tl.where(tokens[:, None] == tokens[None, :], grad, 0.0), axis=1)
        result = own[:, None] * other
        for level in range(LEVELS):
            # [C, K]
            decays = get(pointer, level, tokens, channels, C, F)
            level_grad = tl.where(is_block_pair(tokens, level), grad, 0.0)
            if RIGHT:
                level_grad = tl.trans(level_grad)
            result += decays * dot(level_grad, other * decays, PRECISION)
    return result
