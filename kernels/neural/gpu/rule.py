# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Backward kernel of the coefficients at the ends of chunks, with one program per chunk.

Letters in shape comments: C tokens of a chunk, D the width of a head, I a tile of the hidden width; all
padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scrubjay.kernels.neural.gpu.tiles import (
    dot,
    get,
    get_row,
    get_tokens,
    get_transposed,
    silu,
)


@triton.jit
def rule_gradient_kernel(
    key_ptr, states_ptr, trace_ptr, rule_grad_ptr, states_grad_ptr,
    N, H, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    RULE_SIZE: tl.constexpr, END_MIXING: tl.constexpr, END_TRACE: tl.constexpr,
    END_RETENTION: tl.constexpr, END_BUILDUP: tl.constexpr, END_MOMENTUM_RETENTION: tl.constexpr,
    TRACE_SIZE: tl.constexpr, PRODUCT: tl.constexpr, INNER: tl.constexpr, ERROR: tl.constexpr,
    CLIPPED_STEP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the coefficients that determine the state after one chunk."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * (2 * SIZE)  # there is one more slot than chunks
    p_state, p_states_grad = states_ptr + o_now, states_grad_ptr + o_now + 2 * SIZE
    p_trace, p_rule_grad = trace_ptr + chunk * TRACE_SIZE, rule_grad_ptr + chunk * RULE_SIZE
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    # [C]
    clipped_step = get_row(p_trace + CLIPPED_STEP, c, C)
    grad_mixing, grad_trace = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    # Sums over a tile's columns only: a full sum would reduce over warps in every block.
    grad_retention = tl.zeros([BLOCK_D], tl.float32)
    grad_buildup, grad_momentum_retention = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        # The lower layer.
        if DEPTH == 2:
            # [C, I]
            x = silu(get(p_trace + PRODUCT, c, i, C, I))
            # [D, I]
            grad_delta, grad_momentum = (
                get(p_states_grad, d, i, D, I),
                get(p_states_grad + SIZE, d, i, D, I),
            )
            delta, momentum = get(p_state, d, i, D, I), get(p_state + SIZE, d, i, D, I)
            grad_retention += tl.sum(delta * grad_delta, axis=1)
            grad_buildup += tl.sum(momentum * grad_delta, axis=1)
            grad_momentum_retention += tl.sum(momentum * grad_momentum, axis=1)
            # [C, D]
            key = get_tokens(p_key, c, d, key_t, C, D)
            # [C, I]
            inner = clipped_step[:, None] * get(p_trace + INNER, c, i, C, I)
            grad_mixing -= tl.sum(inner * dot(key, grad_delta, PRECISION), axis=1)
            grad_trace -= tl.sum(inner * dot(key, grad_momentum, PRECISION), axis=1)
        else:
            # [C, I]
            x = get_tokens(p_key, c, i, key_t, C, I)
        # The upper layer.
        # [D, I]
        grad_delta = get_transposed(p_states_grad + UPPER, d, i, D, I)
        grad_momentum = get_transposed(p_states_grad + SIZE + UPPER, d, i, D, I)
        delta = get_transposed(p_state + UPPER, d, i, D, I)
        momentum = get_transposed(p_state + SIZE + UPPER, d, i, D, I)
        grad_retention += tl.sum(delta * grad_delta, axis=1)
        grad_buildup += tl.sum(momentum * grad_delta, axis=1)
        grad_momentum_retention += tl.sum(momentum * grad_momentum, axis=1)
        # [C, D]
        error = clipped_step[:, None] * get(p_trace + ERROR, c, d, C, D)
        grad_mixing -= tl.sum(x * dot(error, grad_delta, PRECISION), axis=1)
        grad_trace -= tl.sum(x * dot(error, grad_momentum, PRECISION), axis=1)
    # Store the gradients of the coefficients.
    tl.store(p_rule_grad + END_MIXING + c, grad_mixing, mask=m_c)
    tl.store(p_rule_grad + END_TRACE + c, grad_trace, mask=m_c)
    tl.store(p_rule_grad + END_RETENTION, tl.sum(grad_retention))
    tl.store(p_rule_grad + END_BUILDUP, tl.sum(grad_buildup))
    tl.store(p_rule_grad + END_MOMENTUM_RETENTION, tl.sum(grad_momentum_retention))
