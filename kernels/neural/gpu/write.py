# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Forward kernel of the writes: a loop over chunks that updates delta and momentum.

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
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.neural.gpu.launch import build_launch
from scrubjay.kernels.neural.gpu.layout import Layout, NeuralKernelInputs, NeuralKernelTrace
from scrubjay.kernels.neural.gpu.tiles import (
    FRESH_NEXT,
    INCOMPLETE,
    OLD_ANCHOR,
    dot,
    flush_denormals,
    get,
    get_transposed,
    put,
    put_transposed,
    silu,
    silu_slope,
    squares,
)


@triton.jit
def _write_kernel(
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
        error = -get(p_value, c, d, value_t, C, D)
        if RESIDUAL:
            # [C, D]
            error += get(p_key, c, d, key_t, C, D)
        x_squares = tl.zeros([BLOCK_C], tl.float32)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            # [D, I]
            anchor = get_transposed(p_anchor + UPPER, d, i, D, D, I)
            # Save the anchor, unless it is saved already.
            if (flags & (INCOMPLETE | OLD_ANCHOR)) == INCOMPLETE:
                put_transposed(p_old_anchor + UPPER, anchor, d, i, D, D, I)
            # [D, I]
            upper = get_transposed(p_upper, d, i, D, D, I) + anchor
            if DEPTH == 2:
                # [D, I]
                anchor = get(p_anchor, d, i, I, D, I)
                if (flags & (INCOMPLETE | OLD_ANCHOR)) == INCOMPLETE:
                    put(p_old_anchor, anchor, d, i, I, D, I)
                # [D, I]
                lower = get(lower_ptr + i_h * (D * I), d, i, I, D, I) + anchor
                product = dot(get(p_key, c, d, key_t, C, D), lower, PRECISION)
                put(p_trace + PRODUCT, product, c, i, I, C, I)
                x = silu(product)
            else:
                # [C, I]
                x = get(p_key, c, i, key_t, C, I)
            x_squares += squares(x)
            error += dot(x, tl.trans(upper), PRECISION)
        # Squared norm of the gradient: the upper layer's part.
        # [C]
        step = tl.load(p_rule + c, mask=m_c, other=0.0)
        error_squares = squares(error)
        squared_norm = x_squares * error_squares
        if DEPTH == 2:
            # The lower layer's part, and the clip of the step.
            tl.debug_barrier()
            inner_squares = tl.zeros([BLOCK_C], tl.float32)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                # [D, I]
                upper = get_transposed(p_upper, d, i, D, D, I)
                upper += get_transposed(p_anchor + UPPER, d, i, D, D, I)
                # [C, I]
                product = get(p_trace + PRODUCT, c, i, I, C, I)
                inner = dot(error, upper, PRECISION) * silu_slope(product)
                inner_squares += squares(inner)
                put(p_trace + INNER, inner, c, i, I, C, I)
            squared_norm += squares(get(p_key, c, d, key_t, C, D)) * inner_squares
            # [C]
            bound = tl.load(p_rule + ERROR_SHARE + c, mask=m_c, other=0.0) * error_squares
            largest_step = bound / tl.where(squared_norm > 0, squared_norm, 1.0)
            step = tl.where(step * squared_norm > bound, largest_step, step)
        # Save the results that reads and the backward pass need.
        tl.store(p_trace + SQUARED_NORM + c, squared_norm, mask=m_c)
        tl.store(p_trace + CLIPPED_STEP + c, step, mask=m_c)
        if DEPTH == 2:
            tl.store(p_trace + X_SQUARES + c, x_squares, mask=m_c)
            tl.store(p_trace + INNER_SQUARES + c, inner_squares, mask=m_c)
        put(p_trace + ERROR, error, c, d, D, C, D)
        error = step[:, None] * error
        # Wait until all threads have stored and loaded, before others load or overwrite.
        tl.debug_barrier()

        # Delta and momentum after the chunk; zeros if the next chunk is fresh.
        # [C]
        end_mixing = tl.load(p_rule + END_MIXING + c, mask=m_c, other=0.0)
        end_trace = tl.load(p_rule + END_TRACE + c, mask=m_c, other=0.0)
        end_retention, end_buildup = tl.load(p_rule + END_RETENTION), tl.load(p_rule + END_BUILDUP)
        end_momentum_retention = tl.load(p_rule + END_MOMENTUM_RETENTION)
        keep_state = (flags & FRESH_NEXT) == 0
        error = tl.trans(error)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            if DEPTH == 2:
                # The lower layer.
                # [C, I]
                inner = step[:, None] * get(p_trace + INNER, c, i, I, C, I)
                x = silu(get(p_trace + PRODUCT, c, i, I, C, I))
                # [D, C]
                key = tl.trans(get(p_key, c, d, key_t, C, D))
                # [D, I]
                delta = get(states_ptr + o_now, d, i, I, D, I)
                momentum = get(states_ptr + o_now + SIZE, d, i, I, D, I)
                delta = end_retention * delta + end_buildup * momentum
                delta = flush_denormals(delta - dot(key, end_mixing[:, None] * inner, PRECISION))
                momentum = end_momentum_retention * momentum
                momentum = flush_denormals(momentum - dot(key, end_trace[:, None] * inner, PRECISION))
                put(states_ptr + o_next, tl.where(keep_state, delta, 0.0), d, i, I, D, I)
                put(states_ptr + o_next + SIZE, tl.where(keep_state, momentum, 0.0), d, i, I, D, I)
            else:
                # [C, I]
                x = get(p_key, c, i, key_t, C, I)
            # The upper layer.
            # [D, I]
            delta = get_transposed(states_ptr + o_now + UPPER, d, i, D, D, I)
            momentum = get_transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, D, I)
            delta = end_retention * delta + end_buildup * momentum
            delta = flush_denormals(delta - dot(error, end_mixing[:, None] * x, PRECISION))
            momentum = end_momentum_retention * momentum
            momentum = flush_denormals(momentum - dot(error, end_trace[:, None] * x, PRECISION))
            put_transposed(states_ptr + o_next + UPPER, tl.where(keep_state, delta, 0.0), d, i, D, D, I)
            put_transposed(
                states_ptr + o_next + SIZE + UPPER, tl.where(keep_state, momentum, 0.0), d, i, D, D, I
            )
        tl.debug_barrier()


def write_launch(
    inputs: NeuralKernelInputs, layout: Layout, anchor: Tensor, trace: NeuralKernelTrace
) -> Launch:
    """Return the launch of the loop over chunks. It fills `trace`, except the slot `read` of each chunk.

    `anchor` must hold the initial anchor. Before the kernel processes a chunk whose last token is skipped, it
    overwrites `anchor` with the anchor of this chunk. Other chunks do not change `anchor`.
    """
    arguments = {"anchor_ptr": anchor, "states_ptr": trace.states, "trace_ptr": trace.chunks}
    return build_launch(_write_kernel, inputs.rule.shape[0], inputs, layout, arguments)
