# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Kernels of the reads, with one program per chunk: the forward pass, then the backward pass.

The backward pass goes first through the upper layer, then through the lower layer.

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
    put,
    put_tokens,
    put_transposed,
    silu,
    silu_slope,
)


@triton.jit
def read_kernel(
    query_ptr, key_ptr, rule_ptr, lower_ptr, upper_ptr, states_ptr, trace_ptr, out_ptr,
    N, H, query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    RULE_SIZE: tl.constexpr, READ_RETENTION: tl.constexpr, READ_BUILDUP: tl.constexpr,
    READ_MIXING: tl.constexpr, TRACE_SIZE: tl.constexpr, PRODUCT: tl.constexpr, INNER: tl.constexpr,
    READ: tl.constexpr, ERROR: tl.constexpr, CLIPPED_STEP: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write the outputs of one chunk's queries."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    p_rule, p_trace = rule_ptr + chunk * RULE_SIZE, trace_ptr + chunk * TRACE_SIZE
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * (2 * SIZE)  # there is one more slot than chunks
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    # Coefficients of the reads.
    # [C]
    retention = get_row(p_rule + READ_RETENTION, c, C)
    buildup = get_row(p_rule + READ_BUILDUP, c, C)
    clipped_step = get_row(p_trace + CLIPPED_STEP, c, C)
    # Similarity of queries and keys, for the lower layer.
    if DEPTH == 2:
        # [C, D]
        key = get_tokens(p_key, c, d, key_t, C, D)
        similarity_lower = dot(get_tokens(p_query, c, d, query_t, C, D), tl.trans(key), PRECISION)
        similarity_lower = similarity_lower * get(p_rule + READ_MIXING, c, c, C, C)
    # Per tile: the lower layer, then the upper layer's weights, delta and momentum.
    similarity = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    out = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            inner = clipped_step[:, None] * get(p_trace + INNER, c, i, C, I)
            # [C, D]
            query = get_tokens(p_query, c, d, query_t, C, D)
            read = dot(query, get(lower_ptr + i_h * (D * I), d, i, D, I), PRECISION)
            read += retention[:, None] * dot(query, get(states_ptr + o_now, d, i, D, I), PRECISION)
            read += buildup[:, None] * dot(query, get(states_ptr + o_now + SIZE, d, i, D, I), PRECISION)
            read -= dot(similarity_lower, inner, PRECISION)
            put(p_trace + READ, read, c, i, C, I)
            # [C, I]
            x, other = silu(read), silu(get(p_trace + PRODUCT, c, i, C, I))
        else:
            # [C, I]
            x, other = get_tokens(p_query, c, i, query_t, C, I), get_tokens(p_key, c, i, key_t, C, I)
        similarity += dot(x, tl.trans(other), PRECISION)
        # [D, I]
        upper = get_transposed(upper_ptr + i_h * (D * I), d, i, D, I)
        out += dot(x, tl.trans(upper), PRECISION)
        # [D, I]
        delta = get_transposed(states_ptr + o_now + UPPER, d, i, D, I)
        out += retention[:, None] * dot(x, tl.trans(delta), PRECISION)
        # [D, I]
        momentum = get_transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, I)
        out += buildup[:, None] * dot(x, tl.trans(momentum), PRECISION)
    # The chunk's own writes in the upper layer.
    similarity = similarity * get(p_rule + READ_MIXING, c, c, C, C)
    # [C, D]
    error = clipped_step[:, None] * get(p_trace + ERROR, c, d, C, D)
    out -= dot(similarity, error, PRECISION)
    if RESIDUAL:
        # [C, D]
        out += get_tokens(p_query, c, d, query_t, C, D)
    put_tokens(out_ptr + ((i_b * N * C + first) * H + i_h) * D, out, c, d, H * D, C, D)


@triton.jit
def read_gradient_kernel(
    query_ptr, key_ptr, rule_ptr, upper_ptr, states_ptr, trace_ptr, grad_ptr, query_grad_ptr,
    rule_grad_ptr, grads_ptr, states_grad_ptr,
    N, H, query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    RULE_SIZE: tl.constexpr, READ_RETENTION: tl.constexpr, READ_BUILDUP: tl.constexpr,
    READ_MIXING: tl.constexpr, TRACE_SIZE: tl.constexpr, PRODUCT: tl.constexpr, READ: tl.constexpr,
    ERROR: tl.constexpr, CLIPPED_STEP: tl.constexpr, GRADS_SIZE: tl.constexpr, X_GRAD: tl.constexpr,
    ERROR_GRAD: tl.constexpr, KEY_GRAD: tl.constexpr, READ_GRAD: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Backpropagate the reads of one chunk through the upper layer.

    Writes the gradients of the layer's inputs, of the read coefficients, of the chunk's errors and keys, and
    of the state before the chunk.
    """
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    p_rule, p_trace = rule_ptr + chunk * RULE_SIZE, trace_ptr + chunk * TRACE_SIZE
    p_rule_grad, p_grads = rule_grad_ptr + chunk * RULE_SIZE, grads_ptr + chunk * GRADS_SIZE
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * (2 * SIZE)  # there is one more slot than chunks
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    p_mixing = p_rule + READ_MIXING
    p_token = ((i_b * N * C + first) * H + i_h) * D
    # Coefficients of the reads.
    # [C]
    retention = get_row(p_rule + READ_RETENTION, c, C)
    buildup = get_row(p_rule + READ_BUILDUP, c, C)
    clipped_step = get_row(p_trace + CLIPPED_STEP, c, C)

    # Similarity of reads and writes in the upper layer, and the gradients of errors and mixing.
    similarity = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            x = silu(get(p_trace + READ, c, i, C, I))
            other = silu(get(p_trace + PRODUCT, c, i, C, I))
        else:
            # [C, I]
            x, other = get_tokens(p_query, c, i, query_t, C, I), get_tokens(p_key, c, i, key_t, C, I)
        similarity += dot(x, tl.trans(other), PRECISION)
    # [C, D]
    grad = get_tokens(grad_ptr + p_token, c, d, H * D, C, D)
    # [C, C]
    mixing = get(p_mixing, c, c, C, C)
    grad_error = -dot(tl.trans(mixing * similarity), grad, PRECISION)
    put(p_grads + ERROR_GRAD, grad_error, c, d, C, D)
    # [C, D]
    error = clipped_step[:, None] * get(p_trace + ERROR, c, d, C, D)
    grad_similarity = -dot(grad, tl.trans(error), PRECISION)
    put(p_rule_grad + READ_MIXING, grad_similarity * similarity, c, c, C, C)
    grad_similarity = grad_similarity * mixing

    # Gradients of the upper layer's inputs, through the similarity.
    grad_retention, grad_buildup = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            x, other = (
                silu(get(p_trace + READ, c, i, C, I)),
                silu(get(p_trace + PRODUCT, c, i, C, I)),
            )
        else:
            # [C, I]
            x, other = get_tokens(p_query, c, i, query_t, C, I), get_tokens(p_key, c, i, key_t, C, I)
        put(p_grads + X_GRAD, dot(tl.trans(grad_similarity), x, PRECISION), c, i, C, I)
        grad_x = dot(grad_similarity, other, PRECISION)
        if DEPTH == 2:
            put(p_grads + READ_GRAD, grad_x, c, i, C, I)
        else:
            if RESIDUAL:
                # [C, I]
                grad_x += get_tokens(grad_ptr + p_token, c, i, H * D, C, I)
            put(p_grads + KEY_GRAD, grad_x, c, i, C, I)
    tl.debug_barrier()

    # Gradients of the inputs and coefficients, through weights, delta and momentum.
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            grad_x = get(p_grads + READ_GRAD, c, i, C, I)
            read = get(p_trace + READ, c, i, C, I)
            x = silu(read)
        else:
            # [C, I]
            grad_x = get(p_grads + KEY_GRAD, c, i, C, I)
            x = get_tokens(p_query, c, i, query_t, C, I)
        # [C, D]
        grad = get_tokens(grad_ptr + p_token, c, d, H * D, C, D)
        grad_x += dot(grad, get_transposed(upper_ptr + i_h * (D * I), d, i, D, I), PRECISION)
        by_delta = dot(grad, get_transposed(states_ptr + o_now + UPPER, d, i, D, I), PRECISION)
        grad_retention += tl.sum(x * by_delta, axis=1)
        by_momentum = dot(grad, get_transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, I), PRECISION)
        grad_buildup += tl.sum(x * by_momentum, axis=1)
        grad_x += retention[:, None] * by_delta + buildup[:, None] * by_momentum
        if DEPTH == 2:
            put(p_grads + READ_GRAD, grad_x * silu_slope(read), c, i, C, I)
        else:
            put_tokens(query_grad_ptr + p_token, grad_x, c, i, H * D, C, I)

    # Gradients of delta and momentum.
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            x = silu(get(p_trace + READ, c, i, C, I))
        else:
            # [C, I]
            x = get_tokens(p_query, c, i, query_t, C, I)
        # [D, C]
        tile_transposed = tl.trans(get_tokens(grad_ptr + p_token, c, d, H * D, C, D))
        grad_delta = dot(tile_transposed, retention[:, None] * x, PRECISION)
        put_transposed(states_grad_ptr + o_now + UPPER, grad_delta, d, i, D, I)
        grad_momentum = dot(tile_transposed, buildup[:, None] * x, PRECISION)
        put_transposed(states_grad_ptr + o_now + SIZE + UPPER, grad_momentum, d, i, D, I)
    tl.store(p_rule_grad + READ_RETENTION + c, grad_retention, mask=m_c)
    tl.store(p_rule_grad + READ_BUILDUP + c, grad_buildup, mask=m_c)


@triton.jit
def lower_read_gradient_kernel(
    query_ptr, key_ptr, rule_ptr, lower_ptr, states_ptr, trace_ptr, grad_ptr, query_grad_ptr,
    rule_grad_ptr, grads_ptr, states_grad_ptr,
    N, H, query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    RULE_SIZE: tl.constexpr, READ_RETENTION: tl.constexpr, READ_BUILDUP: tl.constexpr,
    READ_MIXING: tl.constexpr, TRACE_SIZE: tl.constexpr, INNER: tl.constexpr, CLIPPED_STEP: tl.constexpr,
    GRADS_SIZE: tl.constexpr, KEY_GRAD: tl.constexpr, INNER_GRAD: tl.constexpr, READ_GRAD: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Backpropagate the reads of one chunk through the lower layer.

    Starts from the gradients of the upper layer's inputs. Writes the gradients of the queries, of the keys,
    of the read coefficients and of the state before the chunk.
    """
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    p_rule, p_trace = rule_ptr + chunk * RULE_SIZE, trace_ptr + chunk * TRACE_SIZE
    p_rule_grad, p_grads = rule_grad_ptr + chunk * RULE_SIZE, grads_ptr + chunk * GRADS_SIZE
    SIZE: tl.constexpr = D * I * DEPTH
    o_now = (chunk + row) * (2 * SIZE)  # there is one more slot than chunks
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    p_mixing = p_rule + READ_MIXING
    p_token = ((i_b * N * C + first) * H + i_h) * D
    # Coefficients of the reads.
    # [C]
    retention = get_row(p_rule + READ_RETENTION, c, C)
    buildup = get_row(p_rule + READ_BUILDUP, c, C)
    clipped_step = get_row(p_trace + CLIPPED_STEP, c, C)

    # Similarity of queries and keys, and the gradients of the lower layer's deltas and of mixing.
    # [C, D]
    query, key = get_tokens(p_query, c, d, query_t, C, D), get_tokens(p_key, c, d, key_t, C, D)
    similarity = tl.trans(dot(query, tl.trans(key), PRECISION) * get(p_mixing, c, c, C, C))
    grad_similarity = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        # [C, I]
        grad_read = get(p_grads + READ_GRAD, c, i, C, I)
        put(p_grads + INNER_GRAD, -dot(similarity, grad_read, PRECISION), c, i, C, I)
        # [C, I]
        inner = clipped_step[:, None] * get(p_trace + INNER, c, i, C, I)
        grad_similarity -= dot(grad_read, tl.trans(inner), PRECISION)
    # Gradients of queries and keys, through the similarity.
    p_mixing_grad = p_rule_grad + READ_MIXING
    grad_mixing = grad_similarity * dot(query, tl.trans(key), PRECISION)
    put(p_mixing_grad, get(p_mixing_grad, c, c, C, C) + grad_mixing, c, c, C, C)
    grad_similarity = grad_similarity * get(p_mixing, c, c, C, C)
    put(p_grads + KEY_GRAD, dot(tl.trans(grad_similarity), query, PRECISION), c, d, C, D)
    grad_query = dot(grad_similarity, key, PRECISION)
    if RESIDUAL:
        # [C, D]
        grad_query += get_tokens(grad_ptr + p_token, c, d, H * D, C, D)
    # Gradients of queries and coefficients, through weights, delta and momentum.
    grad_retention, grad_buildup = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        # [C, I]
        grad_read = get(p_grads + READ_GRAD, c, i, C, I)
        # [D, I]
        lower = get(lower_ptr + i_h * (D * I), d, i, D, I)
        grad_query += dot(grad_read, tl.trans(lower), PRECISION)
        # Sums of query * (grad_read delta^T), computed without a tile of [C, D].
        # [C, D]
        query = get_tokens(p_query, c, d, query_t, C, D)
        # [D, I]
        delta = get(states_ptr + o_now, d, i, D, I)
        grad_retention += tl.sum(grad_read * dot(query, delta, PRECISION), axis=1)
        grad_query += dot(retention[:, None] * grad_read, tl.trans(delta), PRECISION)
        # [D, I]
        momentum = get(states_ptr + o_now + SIZE, d, i, D, I)
        grad_buildup += tl.sum(grad_read * dot(query, momentum, PRECISION), axis=1)
        grad_query += dot(buildup[:, None] * grad_read, tl.trans(momentum), PRECISION)
    put_tokens(query_grad_ptr + p_token, grad_query, c, d, H * D, C, D)
    # Gradients of delta and momentum.
    for block in range(0, I, BLOCK_I):
        i = block + tile
        # [C, I]
        grad_read = get(p_grads + READ_GRAD, c, i, C, I)
        # [D, C]
        tile_transposed = tl.trans(get_tokens(p_query, c, d, query_t, C, D))
        put(
            states_grad_ptr + o_now,
            dot(tile_transposed, retention[:, None] * grad_read, PRECISION),
            d,
            i,
            D,
            I,
        )
        put(
            states_grad_ptr + o_now + SIZE,
            dot(tile_transposed, buildup[:, None] * grad_read, PRECISION),
            d,
            i,
            D,
            I,
        )
    grad_retention += get_row(p_rule_grad + READ_RETENTION, c, C)
    tl.store(p_rule_grad + READ_RETENTION + c, grad_retention, mask=m_c)
    grad_buildup += get_row(p_rule_grad + READ_BUILDUP, c, C)
    tl.store(p_rule_grad + READ_BUILDUP + c, grad_buildup, mask=m_c)
