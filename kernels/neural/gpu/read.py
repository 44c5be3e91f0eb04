# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""What queries read, a program for each chunk.

Shapes at loads: C tokens of a chunk, D the width of a head, I a tile of the hidden width, all padded.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.neural.gpu.launch import launch_of
from scrubjay.kernels.neural.gpu.layout import Inputs, Kept, Layout
from scrubjay.kernels.neural.gpu.tiles import (
    dot,
    get,
    put,
    silu,
    transposed,
)


@triton.jit
def _read_kernel(
    query_ptr, key_ptr, rule_ptr, lower_ptr, upper_ptr, states_ptr, kept_ptr, out_ptr,
    N, H, query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, RULE: tl.constexpr, MIXED: tl.constexpr, KEPT: tl.constexpr,
    PRODUCT: tl.constexpr, INNER: tl.constexpr, READ: tl.constexpr, ERROR: tl.constexpr, TAKEN: tl.constexpr,
    SQUARED: tl.constexpr, X_SQUARED: tl.constexpr, INNER_SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write what the queries of one chunk read."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    p_rule, p_kept = rule_ptr + chunk * RULE, kept_ptr + chunk * KEPT
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * (2 * SIZE)  # slots are one more than chunks
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    # [C]
    retained = tl.load(p_rule + C + c, mask=m_c, other=0.0)
    built = tl.load(p_rule + 2 * C + c, mask=m_c, other=0.0)
    taken = tl.load(p_kept + TAKEN + c, mask=m_c, other=0.0)
    if DEPTH == 2:
        # [C, D]
        key = get(p_key, c, d, key_t, C, D)
        alike_lower = dot(get(p_query, c, d, query_t, C, D), tl.trans(key), PRECISION)
        alike_lower = alike_lower * get(p_rule + MIXED, c, c, C, C, C)
    alike = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    out = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            inner = taken[:, None] * get(p_kept + INNER, c, i, I, C, I)
            # [C, D]
            query = get(p_query, c, d, query_t, C, D)
            read = dot(query, get(lower_ptr + i_h * (D * I), d, i, I, D, I), PRECISION)
            read += retained[:, None] * dot(query, get(states_ptr + o_now, d, i, I, D, I), PRECISION)
            read += built[:, None] * dot(query, get(states_ptr + o_now + SIZE, d, i, I, D, I), PRECISION)
            read -= dot(alike_lower, inner, PRECISION)
            put(p_kept + READ, read, c, i, I, C, I)
            x, other = silu(read), silu(get(p_kept + PRODUCT, c, i, I, C, I))
        else:
            # [C, I]
            x, other = get(p_query, c, i, query_t, C, I), get(p_key, c, i, key_t, C, I)
        alike += dot(x, tl.trans(other), PRECISION)
        # [D, I]
        upper = transposed(upper_ptr + i_h * (D * I), d, i, D, D, I)
        out += dot(x, tl.trans(upper), PRECISION)
        # [D, I]
        delta = transposed(states_ptr + o_now + UPPER, d, i, D, D, I)
        out += retained[:, None] * dot(x, tl.trans(delta), PRECISION)
        # [D, I]
        momentum = transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, D, I)
        out += built[:, None] * dot(x, tl.trans(momentum), PRECISION)
    alike = alike * get(p_rule + MIXED, c, c, C, C, C)
    # [C, D]
    error = taken[:, None] * get(p_kept + ERROR, c, d, D, C, D)
    out -= dot(alike, error, PRECISION)
    if RESIDUAL:
        # [C, D]
        out += get(p_query, c, d, query_t, C, D)
    put(out_ptr + ((i_b * N * C + first) * H + i_h) * D, out, c, d, H * D, C, D)


def read_launch(inputs: Inputs, layout: Layout, y: Tensor, kept: Kept) -> Launch:
    """Return the launch that fills `y` and the reads of `kept`."""
    rows, count, _ = inputs.rule.shape
    arguments = {"states_ptr": kept.states, "kept_ptr": kept.chunks, "out_ptr": y}
    return launch_of(_read_kernel, rows * count, inputs, layout, arguments)
