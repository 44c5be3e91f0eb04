# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""The walk back through what was learned, from the gradients of a chunk's end to those of its start.

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
    silu_bend,
    silu_slope,
    squares,
    transposed,
)


@triton.jit
def _take_anchor(grad_anchor, p_delta, p_momentum, p_anchor, flags, place, mask):
    """Give an anchor's gradient to the delta it was, or keep it where an earlier chunk set that anchor.

    Where nothing flows across the beginning of the chunk, zeros are left.
    """
    if (flags & 4) != 0:
        grad_anchor += tl.load(p_anchor + place, mask=mask, other=0.0)
    if (flags & 16) != 0:
        tl.store(p_anchor + place, tl.where((flags & 10) == 8, grad_anchor, 0.0), mask=mask)
    if (flags & 10) == 0:
        grad_anchor += tl.load(p_delta + place, mask=mask, other=0.0)
        tl.store(p_delta + place, grad_anchor, mask=mask)
    if (flags & 2) != 0:
        tl.store(p_delta + place, tl.zeros_like(grad_anchor), mask=mask)
        tl.store(p_momentum + place, tl.zeros_like(grad_anchor), mask=mask)


@triton.jit
def _write_gradient_kernel(
    key_ptr, rule_ptr, lower_ptr, upper_ptr, flags_ptr, source_ptr, anchor_ptr, states_ptr, kept_ptr,
    rule_grad_ptr, owed_ptr, to_ptr, anchor_grad_ptr,
    N, H, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, RULE: tl.constexpr, MIXED: tl.constexpr, KEPT: tl.constexpr,
    PRODUCT: tl.constexpr, INNER: tl.constexpr, READ: tl.constexpr, ERROR: tl.constexpr, TAKEN: tl.constexpr,
    SQUARED: tl.constexpr, X_SQUARED: tl.constexpr, INNER_SQUARED: tl.constexpr, OWED: tl.constexpr,
    X_OWED: tl.constexpr, ERROR_OWED: tl.constexpr, KEY_OWED: tl.constexpr,
    INNER_OWED: tl.constexpr, READ_GRAD: tl.constexpr, SLOPE_GRAD: tl.constexpr, PRODUCT_GRAD: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Walk the chunks backward; the gradient of slot n + 1 is there when that of slot n is added to.

    What is owed to errors, and to keys, grows on the way to their gradient.
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
        p_rule, p_kept = rule_ptr + chunk * RULE, kept_ptr + chunk * KEPT
        p_rule_grad, p_owed = rule_grad_ptr + chunk * RULE, owed_ptr + chunk * OWED
        p_to = to_ptr + (chunk + row) * (2 * SIZE)  # slots are one more than chunks
        p_after = p_to + 2 * SIZE
        p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
        flags, source = tl.load(flags_ptr + i_b * N + n), tl.load(source_ptr + i_b * N + n).to(tl.int64)
        p_anchor = anchor_ptr + row * SIZE
        if source >= 0:
            p_anchor = states_ptr + (row * (N + 1) + source) * (2 * SIZE)
        # [C]
        taken = tl.load(p_kept + TAKEN + c, mask=m_c, other=0.0)
        end_mixed = tl.load(p_rule + 3 * C + c, mask=m_c, other=0.0)
        end_trace = tl.load(p_rule + 4 * C + c, mask=m_c, other=0.0)
        end_retained, end_built = tl.load(p_rule + 5 * C), tl.load(p_rule + 5 * C + 1)
        end_kept = tl.load(p_rule + 5 * C + 2)

        # What the chunk left, in the upper layer.
        # [C, D]
        grad_error = get(p_owed + ERROR_OWED, c, d, D, C, D)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            if DEPTH == 2:
                # [C, I]
                x = silu(get(p_kept + PRODUCT, c, i, I, C, I))
            else:
                # [C, I]
                x = get(p_key, c, i, key_t, C, I)
            # [D, I]
            to_delta = transposed(p_after + UPPER, d, i, D, D, I)
            to_momentum = transposed(p_after + SIZE + UPPER, d, i, D, D, I)
            # [C, D]
            step_error = taken[:, None] * get(p_kept + ERROR, c, d, D, C, D)
            # [C, I]
            grad_x = get(p_owed + X_OWED, c, i, I, C, I)
            grad_x -= end_mixed[:, None] * dot(step_error, to_delta, PRECISION)
            grad_x -= end_trace[:, None] * dot(step_error, to_momentum, PRECISION)
            put(p_owed + X_OWED, grad_x, c, i, I, C, I)
            grad_error -= dot(end_mixed[:, None] * x, tl.trans(to_delta), PRECISION)
            grad_error -= dot(end_trace[:, None] * x, tl.trans(to_momentum), PRECISION)
            to_momentum = end_built * to_delta + end_kept * to_momentum
            # [D, I]
            to_momentum += transposed(p_to + SIZE + UPPER, d, i, D, D, I)
            put_transposed(p_to + SIZE + UPPER, to_momentum, d, i, D, D, I)
            to_delta = end_retained * to_delta + transposed(p_to + UPPER, d, i, D, D, I)
            put_transposed(p_to + UPPER, to_delta, d, i, D, D, I)
        # [C, D]
        error = get(p_kept + ERROR, c, d, D, C, D)
        grad_step = tl.sum(grad_error * error, axis=1)
        grad_error = taken[:, None] * grad_error

        per_square = tl.zeros([BLOCK_C], tl.float32)
        grad_share = tl.zeros([BLOCK_C], tl.float32)
        if DEPTH == 2:
            # In the lower layer.
            put(p_owed + ERROR_OWED, grad_error, c, d, D, C, D)
            # [C, D]
            grad_key = get(p_owed + KEY_OWED, c, d, D, C, D)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                # [C, D]
                key = get(p_key, c, d, key_t, C, D)
                # [C, I]
                inner = get(p_kept + INNER, c, i, I, C, I)
                # [D, I]
                to_delta = get(p_after, d, i, I, D, I)
                to_momentum = get(p_after + SIZE, d, i, I, D, I)
                step_inner = taken[:, None] * inner
                grad_key -= dot(end_mixed[:, None] * step_inner, tl.trans(to_delta), PRECISION)
                grad_key -= dot(end_trace[:, None] * step_inner, tl.trans(to_momentum), PRECISION)
                # [C, I]
                grad_inner = get(p_owed + INNER_OWED, c, i, I, C, I)
                grad_inner -= end_mixed[:, None] * dot(key, to_delta, PRECISION)
                grad_inner -= end_trace[:, None] * dot(key, to_momentum, PRECISION)
                put(p_owed + INNER_OWED, grad_inner, c, i, I, C, I)
                grad_step += tl.sum(grad_inner * inner, axis=1)
                to_momentum = end_built * to_delta + end_kept * to_momentum
                put(p_to + SIZE, to_momentum + get(p_to + SIZE, d, i, I, D, I), d, i, I, D, I)
                to_delta = end_retained * to_delta + get(p_to, d, i, I, D, I)
                put(p_to, to_delta, d, i, I, D, I)

            # The clip.
            # [C]
            step = tl.load(p_rule + c, mask=m_c, other=0.0)
            squared = tl.load(p_kept + SQUARED + c, mask=m_c, other=1.0)
            clipped = taken != step
            owed = tl.where(clipped, 2 * grad_step / tl.where(clipped, squared, 1.0), 0.0)
            per_square = -owed * taken
            # [C]
            share = tl.load(p_rule + 5 * C + 3 + c, mask=m_c, other=0.0)
            x_squares = tl.load(p_kept + X_SQUARED + c, mask=m_c, other=0.0)
            inner_squares = tl.load(p_kept + INNER_SQUARED + c, mask=m_c, other=0.0)
            # [C, D]
            key = get(p_key, c, d, key_t, C, D)
            per_inner = per_square * squares(key)
            put(p_owed + KEY_OWED, grad_key + (per_square * inner_squares)[:, None] * key, c, d, D, C, D)
            grad_step = tl.where(clipped, 0.0, grad_step)
            tl.debug_barrier()

            # The write's backward pass at the anchor.
            # [C, D]
            error = get(p_kept + ERROR, c, d, D, C, D)
            per_x = per_square * squares(error)
            # [C, D]
            grad_error = get(p_owed + ERROR_OWED, c, d, D, C, D)
            grad_share = 0.5 * owed * squares(error)
            grad_error += (per_square * x_squares + owed * share)[:, None] * error
            for block in range(0, I, BLOCK_I):
                i = block + tile
                # [C, I]
                grad_inner = taken[:, None] * get(p_owed + INNER_OWED, c, i, I, C, I)
                grad_inner += per_inner[:, None] * get(p_kept + INNER, c, i, I, C, I)
                put(p_owed + INNER_OWED, grad_inner, c, i, I, C, I)
                grad_slope = grad_inner * silu_slope(get(p_kept + PRODUCT, c, i, I, C, I))
                put(p_owed + SLOPE_GRAD, grad_slope, c, i, I, C, I)
                # [D, I]
                upper = transposed(p_upper, d, i, D, D, I) + transposed(p_anchor + UPPER, d, i, D, D, I)
                grad_error += dot(grad_slope, tl.trans(upper), PRECISION)
        tl.store(p_rule_grad + c, grad_step, mask=m_c)
        tl.store(p_rule_grad + 5 * C + 3 + c, grad_share, mask=m_c)
        tl.debug_barrier()
        put(p_owed + ERROR_OWED, grad_error, c, d, D, C, D)
        tl.debug_barrier()

        # Its forward pass.
        for block in range(0, I, BLOCK_I):
            i = block + tile
            # [D, I]
            upper = transposed(p_upper, d, i, D, D, I) + transposed(p_anchor + UPPER, d, i, D, D, I)
            # [C, I]
            grad_x = get(p_owed + X_OWED, c, i, I, C, I) + dot(grad_error, upper, PRECISION)
            if DEPTH == 2:
                # [C, I]
                product = get(p_kept + PRODUCT, c, i, I, C, I)
                grad_x += per_x[:, None] * silu(product)
                # [C, D]
                error = get(p_kept + ERROR, c, d, D, C, D)
                # [C, I]
                grad_product = get(p_owed + INNER_OWED, c, i, I, C, I) * silu_bend(product)
                grad_product = grad_product * dot(error, upper, PRECISION) + grad_x * silu_slope(product)
                put(p_owed + PRODUCT_GRAD, grad_product, c, i, I, C, I)
            else:
                if RESIDUAL:
                    # [C, I]
                    grad_x += get(p_owed + ERROR_OWED, c, i, D, C, I)
                put(p_owed + X_OWED, grad_x, c, i, I, C, I)
        tl.debug_barrier()

        # What both owe to the anchor, in the upper layer and then in the lower.
        for block in range(0, I, BLOCK_I):
            i = block + tile
            inside = (d < D)[:, None] & (i < I)[None, :]
            place = UPPER + d[:, None] + i[None, :] * D
            # [D, C]
            turned = tl.trans(get(p_owed + ERROR_OWED, c, d, D, C, D))
            if DEPTH == 2:
                # [C, I]
                x = silu(get(p_kept + PRODUCT, c, i, I, C, I))
                grad_upper = dot(turned, x, PRECISION)
                # [C, I]
                grad_slope = get(p_owed + SLOPE_GRAD, c, i, I, C, I)
                # [D, C]
                turned = tl.trans(get(p_kept + ERROR, c, d, D, C, D))
                grad_upper += dot(turned, grad_slope, PRECISION)
            else:
                grad_upper = dot(turned, get(p_key, c, i, key_t, C, I), PRECISION)
            _take_anchor(grad_upper, p_to, p_to + SIZE, p_anchor_grad, flags, place, inside)
        if DEPTH == 2:
            # [C, D]
            grad_key = get(p_owed + KEY_OWED, c, d, D, C, D)
            if RESIDUAL:
                # [C, D]
                grad_key += get(p_owed + ERROR_OWED, c, d, D, C, D)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                inside = (d < D)[:, None] & (i < I)[None, :]
                place = d[:, None] * I + i[None, :]
                # [C, I]
                grad_product = get(p_owed + PRODUCT_GRAD, c, i, I, C, I)
                # [D, C]
                turned = tl.trans(get(p_key, c, d, key_t, C, D))
                grad_lower = dot(turned, grad_product, PRECISION)
                _take_anchor(grad_lower, p_to, p_to + SIZE, p_anchor_grad, flags, place, inside)
                # [D, I]
                lower = get(lower_ptr + i_h * (D * I), d, i, I, D, I) + get(p_anchor, d, i, I, D, I)
                grad_key += dot(grad_product, tl.trans(lower), PRECISION)
            put(p_owed + KEY_OWED, grad_key, c, d, D, C, D)
        tl.debug_barrier()


def write_gradient_launch(
    inputs: Inputs,
    layout: Layout,
    kept: Kept,
    grad_rule: Tensor,
    owed: Tensor,
    to: Tensor,
    grad_anchor: Tensor,
) -> Launch:
    """Return the launch of the walk back, that fills `to` and `grad_anchor` for the state before.

    Args:
        inputs: Of the op.
        layout: Sizes and strides.
        kept: What the forward pass kept.
        grad_rule: Filled: of the coefficients.
        owed: What reads of each chunk owe to what it learned.
        to: Of the states, from the last chunk's to the first's.
        grad_anchor: Of the state before everything.
    """
    arguments = {
        "anchor_ptr": inputs.state.anchor,
        "states_ptr": kept.states,
        "kept_ptr": kept.chunks,
        "rule_grad_ptr": grad_rule,
        "owed_ptr": owed,
        "to_ptr": to,
        "anchor_grad_ptr": grad_anchor,
    }
    return launch_of(_write_gradient_kernel, inputs.rule.shape[0], inputs, layout, arguments)
