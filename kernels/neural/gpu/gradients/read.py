# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""What reads owe, a program for each chunk: first in the upper layer, then in the lower.

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
    put_transposed,
    silu,
    silu_slope,
    transposed,
)


@triton.jit
def _read_gradient_kernel(
    query_ptr, key_ptr, rule_ptr, lower_ptr, upper_ptr, states_ptr, kept_ptr,
    grad_ptr, query_grad_ptr, rule_grad_ptr, owed_ptr, to_ptr,
    N, H, query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, RULE: tl.constexpr, MIXED: tl.constexpr, KEPT: tl.constexpr,
    PRODUCT: tl.constexpr, INNER: tl.constexpr, READ: tl.constexpr, ERROR: tl.constexpr, TAKEN: tl.constexpr,
    SQUARED: tl.constexpr, X_SQUARED: tl.constexpr, INNER_SQUARED: tl.constexpr, OWED: tl.constexpr,
    X_OWED: tl.constexpr, ERROR_OWED: tl.constexpr, KEY_OWED: tl.constexpr,
    INNER_OWED: tl.constexpr, READ_GRAD: tl.constexpr, SLOPE_GRAD: tl.constexpr, PRODUCT_GRAD: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write what a chunk's reads owe, in the upper layer, to its inputs, coefficients, writes and state."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    p_rule, p_kept = rule_ptr + chunk * RULE, kept_ptr + chunk * KEPT
    p_rule_grad, p_owed = rule_grad_ptr + chunk * RULE, owed_ptr + chunk * OWED
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * (2 * SIZE)  # slots are one more than chunks
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    p_mixed = p_rule + MIXED
    p_token = ((i_b * N * C + first) * H + i_h) * D
    # [C]
    retained = tl.load(p_rule + C + c, mask=m_c, other=0.0)
    built = tl.load(p_rule + 2 * C + c, mask=m_c, other=0.0)
    taken = tl.load(p_kept + TAKEN + c, mask=m_c, other=0.0)

    # The upper layer's likeness of reads to writes, and what that owes to the steps.
    alike = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            x = silu(get(p_kept + READ, c, i, I, C, I))
            other = silu(get(p_kept + PRODUCT, c, i, I, C, I))
        else:
            # [C, I]
            x, other = get(p_query, c, i, query_t, C, I), get(p_key, c, i, key_t, C, I)
        alike += dot(x, tl.trans(other), PRECISION)
    # [C, D]
    grad = get(grad_ptr + p_token, c, d, H * D, C, D)
    # [C, C]
    mixed = get(p_mixed, c, c, C, C, C)
    grad_error = -dot(tl.trans(mixed * alike), grad, PRECISION)
    put(p_owed + ERROR_OWED, grad_error, c, d, D, C, D)
    # [C, D]
    error = taken[:, None] * get(p_kept + ERROR, c, d, D, C, D)
    grad_alike = -dot(grad, tl.trans(error), PRECISION)
    put(p_rule_grad + MIXED, grad_alike * alike, c, c, C, C, C)
    grad_alike = grad_alike * mixed

    # What it owes to the inputs of writes and of reads.
    grad_retained, grad_built = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            x, other = (
                silu(get(p_kept + READ, c, i, I, C, I)),
                silu(get(p_kept + PRODUCT, c, i, I, C, I)),
            )
        else:
            # [C, I]
            x, other = get(p_query, c, i, query_t, C, I), get(p_key, c, i, key_t, C, I)
        put(p_owed + X_OWED, dot(tl.trans(grad_alike), x, PRECISION), c, i, I, C, I)
        grad_x = dot(grad_alike, other, PRECISION)
        if DEPTH == 2:
            put(p_owed + READ_GRAD, grad_x, c, i, I, C, I)
        else:
            if RESIDUAL:
                # [C, I]
                grad_x += get(grad_ptr + p_token, c, i, H * D, C, I)
            put(p_owed + KEY_OWED, grad_x, c, i, I, C, I)
    tl.debug_barrier()

    # What reads owe through weights, delta and momentum, and so to the coefficients of these.
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            grad_x = get(p_owed + READ_GRAD, c, i, I, C, I)
            read = get(p_kept + READ, c, i, I, C, I)
            x = silu(read)
        else:
            # [C, I]
            grad_x = get(p_owed + KEY_OWED, c, i, I, C, I)
            x = get(p_query, c, i, query_t, C, I)
        # [C, D]
        grad = get(grad_ptr + p_token, c, d, H * D, C, D)
        grad_x += dot(grad, transposed(upper_ptr + i_h * (D * I), d, i, D, D, I), PRECISION)
        by_delta = dot(grad, transposed(states_ptr + o_now + UPPER, d, i, D, D, I), PRECISION)
        grad_retained += tl.sum(x * by_delta, axis=1)
        by_momentum = dot(grad, transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, D, I), PRECISION)
        grad_built += tl.sum(x * by_momentum, axis=1)
        grad_x += retained[:, None] * by_delta + built[:, None] * by_momentum
        if DEPTH == 2:
            put(p_owed + READ_GRAD, grad_x * silu_slope(read), c, i, I, C, I)
        else:
            put(query_grad_ptr + p_token, grad_x, c, i, H * D, C, I)

    # What they owe to delta and momentum.
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            x = silu(get(p_kept + READ, c, i, I, C, I))
        else:
            # [C, I]
            x = get(p_query, c, i, query_t, C, I)
        # [D, C]
        turned = tl.trans(get(grad_ptr + p_token, c, d, H * D, C, D))
        to_delta = dot(turned, retained[:, None] * x, PRECISION)
        put_transposed(to_ptr + o_now + UPPER, to_delta, d, i, D, D, I)
        to_momentum = dot(turned, built[:, None] * x, PRECISION)
        put_transposed(to_ptr + o_now + SIZE + UPPER, to_momentum, d, i, D, D, I)
    tl.store(p_rule_grad + C + c, grad_retained, mask=m_c)
    tl.store(p_rule_grad + 2 * C + c, grad_built, mask=m_c)


@triton.jit
def _lower_read_gradient_kernel(
    query_ptr, key_ptr, rule_ptr, lower_ptr, upper_ptr, states_ptr, kept_ptr,
    grad_ptr, query_grad_ptr, rule_grad_ptr, owed_ptr, to_ptr,
    N, H, query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, RULE: tl.constexpr, MIXED: tl.constexpr, KEPT: tl.constexpr,
    PRODUCT: tl.constexpr, INNER: tl.constexpr, READ: tl.constexpr, ERROR: tl.constexpr, TAKEN: tl.constexpr,
    SQUARED: tl.constexpr, X_SQUARED: tl.constexpr, INNER_SQUARED: tl.constexpr, OWED: tl.constexpr,
    X_OWED: tl.constexpr, ERROR_OWED: tl.constexpr, KEY_OWED: tl.constexpr,
    INNER_OWED: tl.constexpr, READ_GRAD: tl.constexpr, SLOPE_GRAD: tl.constexpr, PRODUCT_GRAD: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Go on from the upper layer's inputs to queries and the lower layer; add to coefficients."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    p_rule, p_kept = rule_ptr + chunk * RULE, kept_ptr + chunk * KEPT
    p_rule_grad, p_owed = rule_grad_ptr + chunk * RULE, owed_ptr + chunk * OWED
    SIZE: tl.constexpr = D * I * DEPTH
    o_now = (chunk + row) * (2 * SIZE)  # slots are one more than chunks
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    p_mixed = p_rule + MIXED
    p_token = ((i_b * N * C + first) * H + i_h) * D
    # [C]
    retained = tl.load(p_rule + C + c, mask=m_c, other=0.0)
    built = tl.load(p_rule + 2 * C + c, mask=m_c, other=0.0)
    taken = tl.load(p_kept + TAKEN + c, mask=m_c, other=0.0)

    # [C, D]
    query, key = get(p_query, c, d, query_t, C, D), get(p_key, c, d, key_t, C, D)
    alike = tl.trans(dot(query, tl.trans(key), PRECISION) * get(p_mixed, c, c, C, C, C))
    grad_alike = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        # [C, I]
        grad_read = get(p_owed + READ_GRAD, c, i, I, C, I)
        put(p_owed + INNER_OWED, -dot(alike, grad_read, PRECISION), c, i, I, C, I)
        # [C, I]
        inner = taken[:, None] * get(p_kept + INNER, c, i, I, C, I)
        grad_alike -= dot(grad_read, tl.trans(inner), PRECISION)
    p_mixed_grad = p_rule_grad + MIXED
    grad_mixed = grad_alike * dot(query, tl.trans(key), PRECISION)
    put(p_mixed_grad, get(p_mixed_grad, c, c, C, C, C) + grad_mixed, c, c, C, C, C)
    grad_alike = grad_alike * get(p_mixed, c, c, C, C, C)
    put(p_owed + KEY_OWED, dot(tl.trans(grad_alike), query, PRECISION), c, d, D, C, D)
    grad_query = dot(grad_alike, key, PRECISION)
    if RESIDUAL:
        # [C, D]
        grad_query += get(grad_ptr + p_token, c, d, H * D, C, D)
    grad_retained, grad_built = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        # [C, I]
        grad_read = get(p_owed + READ_GRAD, c, i, I, C, I)
        # [D, I]
        lower = get(lower_ptr + i_h * (D * I), d, i, I, D, I)
        grad_query += dot(grad_read, tl.trans(lower), PRECISION)
        # Sums of query * (grad_read delta^T), without a tile of [C, D].
        # [C, D]
        query = get(p_query, c, d, query_t, C, D)
        # [D, I]
        delta = get(states_ptr + o_now, d, i, I, D, I)
        grad_retained += tl.sum(grad_read * dot(query, delta, PRECISION), axis=1)
        grad_query += dot(retained[:, None] * grad_read, tl.trans(delta), PRECISION)
        # [D, I]
        momentum = get(states_ptr + o_now + SIZE, d, i, I, D, I)
        grad_built += tl.sum(grad_read * dot(query, momentum, PRECISION), axis=1)
        grad_query += dot(built[:, None] * grad_read, tl.trans(momentum), PRECISION)
    put(query_grad_ptr + p_token, grad_query, c, d, H * D, C, D)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        # [C, I]
        grad_read = get(p_owed + READ_GRAD, c, i, I, C, I)
        # [D, C]
        turned = tl.trans(get(p_query, c, d, query_t, C, D))
        put(to_ptr + o_now, dot(turned, retained[:, None] * grad_read, PRECISION), d, i, I, D, I)
        put(to_ptr + o_now + SIZE, dot(turned, built[:, None] * grad_read, PRECISION), d, i, I, D, I)
    grad_retained += tl.load(p_rule_grad + C + c, mask=m_c, other=0.0)
    tl.store(p_rule_grad + C + c, grad_retained, mask=m_c)
    grad_built += tl.load(p_rule_grad + 2 * C + c, mask=m_c, other=0.0)
    tl.store(p_rule_grad + 2 * C + c, grad_built, mask=m_c)


def read_gradient_launches(
    inputs: Inputs,
    layout: Layout,
    kept: Kept,
    grad_y: Tensor,
    grad_query: Tensor,
    grad_rule: Tensor,
    owed: Tensor,
    to: Tensor,
) -> list[Launch]:
    """Return the launches, one a layer, that fill `owed`, and gradients of query and of reads' coefficients.

    Args:
        inputs: Of the op.
        layout: Sizes and strides.
        kept: What the forward pass kept.
        grad_y: Of what was read.
        grad_query: Filled.
        grad_rule: Filled, where reads have coefficients.
        owed: Filled: what reads of each chunk owe to what it learned.
        to: Of the states, of which those after the last chunk are there; reads give theirs.
    """
    rows, count, _ = inputs.rule.shape
    arguments = {
        "states_ptr": kept.states,
        "kept_ptr": kept.chunks,
        "grad_ptr": grad_y,
        "query_grad_ptr": grad_query,
        "rule_grad_ptr": grad_rule,
        "owed_ptr": owed,
        "to_ptr": to,
    }
    kernels = (_read_gradient_kernel, _lower_read_gradient_kernel)[: len(inputs.weights)]
    return [launch_of(kernel, rows * count, inputs, layout, arguments) for kernel in kernels]
