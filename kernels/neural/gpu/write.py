# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Kernels of the writes: a loop over chunks that updates delta and momentum, and its backward pass.

State slot n holds delta and momentum before chunk n. Chunk n loads them from slot n by tiles, and stores the
updated tiles in slot n + 1. In registers they would not fit: at D = I = C = 64 a thread needed more than 500
registers, and the limit is 255. The slots stay in the L2 cache. A slot takes 2 P numbers, with
P weights per head. The backward pass needs the slots. If fewer states were saved, it would need a second loop
over chunks, and the loop dominates the runtime.

The anchor of a chunk is its first delta. After an incomplete chunk, the anchor is an older delta. The
incomplete chunk stores it in the tensor `anchor`, and chunks with the flag OLD_ANCHOR read it from there.

Letters in shape comments: C tokens of a chunk, D the width of a head, I a tile of the hidden width; all
padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scrubjay.kernels.neural.gpu.tiles import (
    AFTER_INCOMPLETE,
    FRESH_NEXT,
    FRESH_OR_CUT,
    INCOMPLETE,
    OLD_ANCHOR,
    dot,
    flush_denormals,
    get,
    get_row,
    get_tokens,
    get_transposed,
    put,
    put_transposed,
    silu,
    silu_curvature,
    silu_slope,
    squares,
)


@triton.jit
def write_kernel(
    key_ptr, value_ptr, rule_ptr, lower_ptr, upper_ptr, flags_ptr, anchor_ptr, states_ptr, trace_ptr,
    N, H, key_b, key_t, key_h, value_b, value_t, value_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    RULE_SIZE: tl.constexpr, END_MIXING: tl.constexpr, END_TRACE: tl.constexpr,
    END_RETENTION: tl.constexpr, END_BUILDUP: tl.constexpr, END_MOMENTUM_RETENTION: tl.constexpr,
    ERROR_SHARE: tl.constexpr, TRACE_SIZE: tl.constexpr, PRODUCT: tl.constexpr, INNER: tl.constexpr,
    ERROR: tl.constexpr, CLIPPED_STEP: tl.constexpr, SQUARED_NORM: tl.constexpr, X_SQUARES: tl.constexpr,
    INNER_SQUARES: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Loop over the chunks: state slot 0 holds the initial state, and chunk n fills slot n + 1."""
    row = tl.program_id(0).to(tl.int64)
    i_b, i_h = row // H, row % H
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_upper = upper_ptr + i_h * (D * I)
    p_old_anchor = anchor_ptr + row * SIZE
    for n in range(N):
        chunk = row * N + n
        first = (chunk - row * N) * C
        p_rule, p_trace = rule_ptr + chunk * RULE_SIZE, trace_ptr + chunk * TRACE_SIZE
        o_now = (chunk + row) * (2 * SIZE)  # there is one more slot than chunks
        o_next = o_now + 2 * SIZE
        flags = tl.load(flags_ptr + i_b * N + n)
        p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
        p_value = value_ptr + i_b * value_b + i_h * value_h + first * value_t
        p_anchor = states_ptr + o_now
        if (flags & OLD_ANCHOR) != 0:
            p_anchor = p_old_anchor

        # Inner forward pass of the keys at the anchor weights: the error, and in two layers the product.
        # [C, D]
        error = -get_tokens(p_value, c, d, value_t, C, D)
        if RESIDUAL:
            # [C, D]
            error += get_tokens(p_key, c, d, key_t, C, D)
        x_squares = tl.zeros([BLOCK_C], tl.float32)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            # [D, I]
            anchor = get_transposed(p_anchor + UPPER, d, i, D, I)
            # Save the anchor, unless it is saved already.
            if (flags & (INCOMPLETE | OLD_ANCHOR)) == INCOMPLETE:
                put_transposed(p_old_anchor + UPPER, anchor, d, i, D, I)
            # [D, I]
            upper = get_transposed(p_upper, d, i, D, I) + anchor
            if DEPTH == 2:
                # [D, I]
                anchor = get(p_anchor, d, i, D, I)
                if (flags & (INCOMPLETE | OLD_ANCHOR)) == INCOMPLETE:
                    put(p_old_anchor, anchor, d, i, D, I)
                # [D, I]
                lower = get(lower_ptr + i_h * (D * I), d, i, D, I) + anchor
                product = dot(get_tokens(p_key, c, d, key_t, C, D), lower, PRECISION)
                put(p_trace + PRODUCT, product, c, i, C, I)
                x = silu(product)
            else:
                # [C, I]
                x = get_tokens(p_key, c, i, key_t, C, I)
            x_squares += squares(x)
            error += dot(x, tl.trans(upper), PRECISION)
        # Squared norm of the gradient: the upper layer's part.
        # [C]
        step = get_row(p_rule, c, C)
        error_squares = squares(error)
        squared_norm = x_squares * error_squares
        if DEPTH == 2:
            # The lower layer's part, and the clip of the step.
            tl.debug_barrier()
            inner_squares = tl.zeros([BLOCK_C], tl.float32)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                # [D, I]
                upper = get_transposed(p_upper, d, i, D, I)
                upper += get_transposed(p_anchor + UPPER, d, i, D, I)
                # [C, I]
                product = get(p_trace + PRODUCT, c, i, C, I)
                inner = dot(error, upper, PRECISION) * silu_slope(product)
                inner_squares += squares(inner)
                put(p_trace + INNER, inner, c, i, C, I)
            squared_norm += squares(get_tokens(p_key, c, d, key_t, C, D)) * inner_squares
            # [C]
            bound = get_row(p_rule + ERROR_SHARE, c, C) * error_squares
            largest_step = bound / tl.where(squared_norm > 0, squared_norm, 1.0)
            step = tl.where(step * squared_norm > bound, largest_step, step)
        # Save the results that reads and the backward pass need.
        tl.store(p_trace + SQUARED_NORM + c, squared_norm, mask=m_c)
        tl.store(p_trace + CLIPPED_STEP + c, step, mask=m_c)
        if DEPTH == 2:
            tl.store(p_trace + X_SQUARES + c, x_squares, mask=m_c)
            tl.store(p_trace + INNER_SQUARES + c, inner_squares, mask=m_c)
        put(p_trace + ERROR, error, c, d, C, D)
        error = step[:, None] * error
        # Wait until all threads have stored and loaded, before others load or overwrite.
        tl.debug_barrier()

        # Delta and momentum after the chunk; zeros if the next chunk is fresh.
        # [C]
        end_mixing = get_row(p_rule + END_MIXING, c, C)
        end_trace = get_row(p_rule + END_TRACE, c, C)
        end_retention, end_buildup = tl.load(p_rule + END_RETENTION), tl.load(p_rule + END_BUILDUP)
        end_momentum_retention = tl.load(p_rule + END_MOMENTUM_RETENTION)
        keep_state = (flags & FRESH_NEXT) == 0
        error = tl.trans(error)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            if DEPTH == 2:
                # The lower layer.
                # [C, I]
                inner = step[:, None] * get(p_trace + INNER, c, i, C, I)
                x = silu(get(p_trace + PRODUCT, c, i, C, I))
                # [D, C]
                key = tl.trans(get_tokens(p_key, c, d, key_t, C, D))
                # [D, I]
                delta = get(states_ptr + o_now, d, i, D, I)
                momentum = get(states_ptr + o_now + SIZE, d, i, D, I)
                delta = end_retention * delta + end_buildup * momentum
                delta = flush_denormals(delta - dot(key, end_mixing[:, None] * inner, PRECISION))
                momentum = end_momentum_retention * momentum
                momentum = flush_denormals(momentum - dot(key, end_trace[:, None] * inner, PRECISION))
                put(states_ptr + o_next, tl.where(keep_state, delta, 0.0), d, i, D, I)
                put(states_ptr + o_next + SIZE, tl.where(keep_state, momentum, 0.0), d, i, D, I)
            else:
                # [C, I]
                x = get_tokens(p_key, c, i, key_t, C, I)
            # The upper layer.
            # [D, I]
            delta = get_transposed(states_ptr + o_now + UPPER, d, i, D, I)
            momentum = get_transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, I)
            delta = end_retention * delta + end_buildup * momentum
            delta = flush_denormals(delta - dot(error, end_mixing[:, None] * x, PRECISION))
            momentum = end_momentum_retention * momentum
            momentum = flush_denormals(momentum - dot(error, end_trace[:, None] * x, PRECISION))
            put_transposed(states_ptr + o_next + UPPER, tl.where(keep_state, delta, 0.0), d, i, D, I)
            put_transposed(
                states_ptr + o_next + SIZE + UPPER, tl.where(keep_state, momentum, 0.0), d, i, D, I
            )
        tl.debug_barrier()


@triton.jit
def _add_anchor_gradient(grad_anchor, p_delta, p_momentum, p_anchor, flags, place, mask):
    """Add the gradient of a chunk's anchor to the gradient of the delta at the chunk's start.

    Delta is the change of the memory's weights. The anchor is the delta at which the chunk computes its inner
    gradients, by default that of its start. If it is an older one, its gradient is passed back to earlier
    chunks. If no gradient flows across the chunk's start, the gradients of delta and momentum there become 0.
    """
    if (flags & INCOMPLETE) != 0:
        grad_anchor += tl.load(p_anchor + place, mask=mask, other=0.0)
    if (flags & AFTER_INCOMPLETE) != 0:
        passed_on = tl.where((flags & (FRESH_OR_CUT | OLD_ANCHOR)) == OLD_ANCHOR, grad_anchor, 0.0)
        tl.store(p_anchor + place, passed_on, mask=mask)
    if (flags & (FRESH_OR_CUT | OLD_ANCHOR)) == 0:
        grad_anchor += tl.load(p_delta + place, mask=mask, other=0.0)
        tl.store(p_delta + place, grad_anchor, mask=mask)
    if (flags & FRESH_OR_CUT) != 0:
        tl.store(p_delta + place, tl.zeros_like(grad_anchor), mask=mask)
        tl.store(p_momentum + place, tl.zeros_like(grad_anchor), mask=mask)


@triton.jit
def write_gradient_kernel(
    key_ptr, rule_ptr, lower_ptr, upper_ptr, flags_ptr, source_ptr, anchor_ptr, states_ptr, trace_ptr,
    rule_grad_ptr, grads_ptr, states_grad_ptr, anchor_grad_ptr,
    N, H, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr,
    RULE_SIZE: tl.constexpr, END_MIXING: tl.constexpr, END_TRACE: tl.constexpr,
    END_RETENTION: tl.constexpr, END_BUILDUP: tl.constexpr, END_MOMENTUM_RETENTION: tl.constexpr,
    ERROR_SHARE: tl.constexpr, TRACE_SIZE: tl.constexpr, PRODUCT: tl.constexpr, INNER: tl.constexpr,
    ERROR: tl.constexpr, CLIPPED_STEP: tl.constexpr, SQUARED_NORM: tl.constexpr, X_SQUARES: tl.constexpr,
    INNER_SQUARES: tl.constexpr, GRADS_SIZE: tl.constexpr, X_GRAD: tl.constexpr, ERROR_GRAD: tl.constexpr,
    KEY_GRAD: tl.constexpr, INNER_GRAD: tl.constexpr, SLOPE_GRAD: tl.constexpr,
    PRODUCT_GRAD: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Loop over the chunks in reverse. Chunk n propagates the gradient of state n + 1 to state n.

    State n is the state before chunk n. The gradients of errors and keys are accumulated in `grads`.
    """
    row = tl.program_id(0).to(tl.int64)
    i_b, i_h = row // H, row % H
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_upper = upper_ptr + i_h * (D * I)
    p_anchor_grad = anchor_grad_ptr + row * SIZE
    for back in range(N):
        chunk = row * N + (N - 1 - back)
        n = chunk - row * N
        first = n * C
        p_rule, p_trace = rule_ptr + chunk * RULE_SIZE, trace_ptr + chunk * TRACE_SIZE
        p_rule_grad, p_grads = rule_grad_ptr + chunk * RULE_SIZE, grads_ptr + chunk * GRADS_SIZE
        p_states_grad = states_grad_ptr + (chunk + row) * (2 * SIZE)  # there is one more slot than chunks
        p_next_grad = p_states_grad + 2 * SIZE
        p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
        flags, source = tl.load(flags_ptr + i_b * N + n), tl.load(source_ptr + i_b * N + n).to(tl.int64)
        p_anchor = anchor_ptr + row * SIZE
        if source >= 0:
            p_anchor = states_ptr + (row * (N + 1) + source) * (2 * SIZE)
        # Coefficients at the chunk's end.
        # [C]
        clipped_step = get_row(p_trace + CLIPPED_STEP, c, C)
        end_mixing = get_row(p_rule + END_MIXING, c, C)
        end_trace = get_row(p_rule + END_TRACE, c, C)
        end_retention, end_buildup = tl.load(p_rule + END_RETENTION), tl.load(p_rule + END_BUILDUP)
        end_momentum_retention = tl.load(p_rule + END_MOMENTUM_RETENTION)

        # The chunk's end in the upper layer: gradients of inputs, errors, delta and momentum.
        # [C, D]
        grad_error = get(p_grads + ERROR_GRAD, c, d, C, D)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            if DEPTH == 2:
                # [C, I]
                x = silu(get(p_trace + PRODUCT, c, i, C, I))
            else:
                # [C, I]
                x = get_tokens(p_key, c, i, key_t, C, I)
            # [D, I]
            grad_delta = get_transposed(p_next_grad + UPPER, d, i, D, I)
            grad_momentum = get_transposed(p_next_grad + SIZE + UPPER, d, i, D, I)
            # [C, D]
            step_error = clipped_step[:, None] * get(p_trace + ERROR, c, d, C, D)
            # [C, I]
            grad_x = get(p_grads + X_GRAD, c, i, C, I)
            grad_x -= end_mixing[:, None] * dot(step_error, grad_delta, PRECISION)
            grad_x -= end_trace[:, None] * dot(step_error, grad_momentum, PRECISION)
            put(p_grads + X_GRAD, grad_x, c, i, C, I)
            grad_error -= dot(end_mixing[:, None] * x, tl.trans(grad_delta), PRECISION)
            grad_error -= dot(end_trace[:, None] * x, tl.trans(grad_momentum), PRECISION)
            grad_momentum = end_buildup * grad_delta + end_momentum_retention * grad_momentum
            # [D, I]
            grad_momentum += get_transposed(p_states_grad + SIZE + UPPER, d, i, D, I)
            put_transposed(p_states_grad + SIZE + UPPER, grad_momentum, d, i, D, I)
            grad_delta = end_retention * grad_delta + get_transposed(p_states_grad + UPPER, d, i, D, I)
            put_transposed(p_states_grad + UPPER, grad_delta, d, i, D, I)
        # Gradient of the step size.
        # [C, D]
        error = get(p_trace + ERROR, c, d, C, D)
        grad_step = tl.sum(grad_error * error, axis=1)
        grad_error = clipped_step[:, None] * grad_error

        per_square = tl.zeros([BLOCK_C], tl.float32)
        grad_share = tl.zeros([BLOCK_C], tl.float32)
        if DEPTH == 2:
            # The chunk's end in the lower layer.
            put(p_grads + ERROR_GRAD, grad_error, c, d, C, D)
            # [C, D]
            grad_key = get(p_grads + KEY_GRAD, c, d, C, D)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                # [C, D]
                key = get_tokens(p_key, c, d, key_t, C, D)
                # [C, I]
                inner = get(p_trace + INNER, c, i, C, I)
                # [D, I]
                grad_delta = get(p_next_grad, d, i, D, I)
                grad_momentum = get(p_next_grad + SIZE, d, i, D, I)
                step_inner = clipped_step[:, None] * inner
                grad_key -= dot(end_mixing[:, None] * step_inner, tl.trans(grad_delta), PRECISION)
                grad_key -= dot(end_trace[:, None] * step_inner, tl.trans(grad_momentum), PRECISION)
                # [C, I]
                grad_inner = get(p_grads + INNER_GRAD, c, i, C, I)
                grad_inner -= end_mixing[:, None] * dot(key, grad_delta, PRECISION)
                grad_inner -= end_trace[:, None] * dot(key, grad_momentum, PRECISION)
                put(p_grads + INNER_GRAD, grad_inner, c, i, C, I)
                grad_step += tl.sum(grad_inner * inner, axis=1)
                grad_momentum = end_buildup * grad_delta + end_momentum_retention * grad_momentum
                grad_momentum += get(p_states_grad + SIZE, d, i, D, I)
                put(p_states_grad + SIZE, grad_momentum, d, i, D, I)
                grad_delta = end_retention * grad_delta + get(p_states_grad, d, i, D, I)
                put(p_states_grad, grad_delta, d, i, D, I)

            # The clip of the step.
            # [C]
            step = get_row(p_rule, c, C)
            squared_norm = tl.load(p_trace + SQUARED_NORM + c, mask=m_c, other=1.0)
            is_clipped = clipped_step != step
            clip_grad = tl.where(is_clipped, 2 * grad_step / tl.where(is_clipped, squared_norm, 1.0), 0.0)
            per_square = -clip_grad * clipped_step
            # [C]
            share = get_row(p_rule + ERROR_SHARE, c, C)
            x_squares = get_row(p_trace + X_SQUARES, c, C)
            inner_squares = get_row(p_trace + INNER_SQUARES, c, C)
            # [C, D]
            key = get_tokens(p_key, c, d, key_t, C, D)
            per_inner = per_square * squares(key)
            put(p_grads + KEY_GRAD, grad_key + (per_square * inner_squares)[:, None] * key, c, d, C, D)
            grad_step = tl.where(is_clipped, 0.0, grad_step)
            tl.debug_barrier()

            # The inner backward pass at the anchor weights.
            # [C, D]
            error = get(p_trace + ERROR, c, d, C, D)
            per_x = per_square * squares(error)
            # [C, D]
            grad_error = get(p_grads + ERROR_GRAD, c, d, C, D)
            grad_share = 0.5 * clip_grad * squares(error)
            grad_error += (per_square * x_squares + clip_grad * share)[:, None] * error
            for block in range(0, I, BLOCK_I):
                i = block + tile
                # [C, I]
                grad_inner = clipped_step[:, None] * get(p_grads + INNER_GRAD, c, i, C, I)
                grad_inner += per_inner[:, None] * get(p_trace + INNER, c, i, C, I)
                put(p_grads + INNER_GRAD, grad_inner, c, i, C, I)
                grad_slope = grad_inner * silu_slope(get(p_trace + PRODUCT, c, i, C, I))
                put(p_grads + SLOPE_GRAD, grad_slope, c, i, C, I)
                # [D, I]
                upper = get_transposed(p_upper, d, i, D, I)
                upper += get_transposed(p_anchor + UPPER, d, i, D, I)
                grad_error += dot(grad_slope, tl.trans(upper), PRECISION)
        # Store the gradients of step size, error share and error.
        tl.store(p_rule_grad + c, grad_step, mask=m_c)
        tl.store(p_rule_grad + ERROR_SHARE + c, grad_share, mask=m_c)
        tl.debug_barrier()
        put(p_grads + ERROR_GRAD, grad_error, c, d, C, D)
        tl.debug_barrier()

        # The inner forward pass at the anchor weights.
        for block in range(0, I, BLOCK_I):
            i = block + tile
            # [D, I]
            upper = get_transposed(p_upper, d, i, D, I) + get_transposed(p_anchor + UPPER, d, i, D, I)
            # [C, I]
            grad_x = get(p_grads + X_GRAD, c, i, C, I) + dot(grad_error, upper, PRECISION)
            if DEPTH == 2:
                # [C, I]
                product = get(p_trace + PRODUCT, c, i, C, I)
                grad_x += per_x[:, None] * silu(product)
                # [C, D]
                error = get(p_trace + ERROR, c, d, C, D)
                # [C, I]
                grad_product = get(p_grads + INNER_GRAD, c, i, C, I) * silu_curvature(product)
                grad_product = grad_product * dot(error, upper, PRECISION) + grad_x * silu_slope(product)
                put(p_grads + PRODUCT_GRAD, grad_product, c, i, C, I)
            else:
                if RESIDUAL:
                    # [C, I]
                    grad_x += get(p_grads + ERROR_GRAD, c, i, C, I)
                put(p_grads + X_GRAD, grad_x, c, i, C, I)
        tl.debug_barrier()

        # Gradient of the anchor from both inner passes, in the upper layer and then in the lower.
        for block in range(0, I, BLOCK_I):
            i = block + tile
            inside = (d < D)[:, None] & (i < I)[None, :]
            place = UPPER + d[:, None] + i[None, :] * D
            # [D, C]
            tile_transposed = tl.trans(get(p_grads + ERROR_GRAD, c, d, C, D))
            if DEPTH == 2:
                # [C, I]
                x = silu(get(p_trace + PRODUCT, c, i, C, I))
                grad_upper = dot(tile_transposed, x, PRECISION)
                # [C, I]
                grad_slope = get(p_grads + SLOPE_GRAD, c, i, C, I)
                # [D, C]
                tile_transposed = tl.trans(get(p_trace + ERROR, c, d, C, D))
                grad_upper += dot(tile_transposed, grad_slope, PRECISION)
            else:
                grad_upper = dot(tile_transposed, get_tokens(p_key, c, i, key_t, C, I), PRECISION)
            _add_anchor_gradient(
                grad_upper, p_states_grad, p_states_grad + SIZE, p_anchor_grad, flags, place, inside
            )
        if DEPTH == 2:
            # [C, D]
            grad_key = get(p_grads + KEY_GRAD, c, d, C, D)
            if RESIDUAL:
                # [C, D]
                grad_key += get(p_grads + ERROR_GRAD, c, d, C, D)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                inside = (d < D)[:, None] & (i < I)[None, :]
                place = d[:, None] * I + i[None, :]
                # [C, I]
                grad_product = get(p_grads + PRODUCT_GRAD, c, i, C, I)
                # [D, C]
                tile_transposed = tl.trans(get_tokens(p_key, c, d, key_t, C, D))
                grad_lower = dot(tile_transposed, grad_product, PRECISION)
                _add_anchor_gradient(
                    grad_lower, p_states_grad, p_states_grad + SIZE, p_anchor_grad, flags, place, inside
                )
                # [D, I]
                lower = get(lower_ptr + i_h * (D * I), d, i, D, I) + get(p_anchor, d, i, D, I)
                grad_key += dot(grad_product, tl.trans(lower), PRECISION)
            put(p_grads + KEY_GRAD, grad_key, c, d, C, D)
        tl.debug_barrier()
