# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""The walk of what is learned, from a chunk's delta and momentum to the next one's.

A tile is loaded from the slot of its chunk and stored in that of the next: in a chunk's products delta and
momentum are operands whole, and an operand kept in registers beside its tile would fill them (at D = I = C =
64 a thread needed 500 and more, of 255). The slots stay in the second-level cache, and the gradient needs
them: 2 P numbers a chunk. To keep each g-th only would mean to walk again, and the walk is what takes time.

An anchor is delta at the start of its chunk, but behind an incomplete chunk it is an older one. The walk
keeps such an anchor in the tensor that returns it, written by a chunk that is incomplete and read by one that
is held.

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
    flushed,
    get,
    put,
    put_transposed,
    silu,
    silu_slope,
    squares,
    transposed,
)


@triton.jit
def _write_kernel(
    key_ptr, value_ptr, rule_ptr, lower_ptr, upper_ptr, flags_ptr, anchor_ptr, states_ptr, kept_ptr,
    N, H, key_b, key_t, key_h, value_b, value_t, value_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, RULE: tl.constexpr, MIXED: tl.constexpr, KEPT: tl.constexpr,
    PRODUCT: tl.constexpr, INNER: tl.constexpr, READ: tl.constexpr, ERROR: tl.constexpr, TAKEN: tl.constexpr,
    SQUARED: tl.constexpr, X_SQUARED: tl.constexpr, INNER_SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Walk the chunks: slot 0 of deltas and momenta comes filled, and chunk n fills slot n + 1."""
    row = tl.program_id(0).to(tl.int64)
    i_b, i_h = row // H, row % H
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_upper = upper_ptr + i_h * (D * I)
    p_kept_anchor = anchor_ptr + row * SIZE
    for n in range(N):
        chunk = row * N + n
        first = (chunk - row * N) * C
        p_rule, p_kept = rule_ptr + chunk * RULE, kept_ptr + chunk * KEPT
        o_now = (chunk + row) * (2 * SIZE)  # slots are one more than chunks
        o_next = o_now + 2 * SIZE
        flags = tl.load(flags_ptr + i_b * N + n)
        p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
        p_value = value_ptr + i_b * value_b + i_h * value_h + first * value_t
        p_anchor = states_ptr + o_now
        if (flags & 8) != 0:
            p_anchor = p_kept_anchor

        # What the chunk's keys write, at the anchor.
        # [C, D]
        error = -get(p_value, c, d, value_t, C, D)
        if RESIDUAL:
            # [C, D]
            error += get(p_key, c, d, key_t, C, D)
        x_squares = tl.zeros([BLOCK_C], tl.float32)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            # [D, I]
            anchor = transposed(p_anchor + UPPER, d, i, D, D, I)
            if (flags & 12) == 4:  # incomplete, and not held already
                put_transposed(p_kept_anchor + UPPER, anchor, d, i, D, D, I)
            # [D, I]
            upper = transposed(p_upper, d, i, D, D, I) + anchor
            if DEPTH == 2:
                # [D, I]
                anchor = get(p_anchor, d, i, I, D, I)
                if (flags & 12) == 4:
                    put(p_kept_anchor, anchor, d, i, I, D, I)
                # [D, I]
                lower = get(lower_ptr + i_h * (D * I), d, i, I, D, I) + anchor
                product = dot(get(p_key, c, d, key_t, C, D), lower, PRECISION)
                put(p_kept + PRODUCT, product, c, i, I, C, I)
                x = silu(product)
            else:
                # [C, I]
                x = get(p_key, c, i, key_t, C, I)
            x_squares += squares(x)
            error += dot(x, tl.trans(upper), PRECISION)
        # [C]
        step = tl.load(p_rule + c, mask=m_c, other=0.0)
        most = squares(error)
        squared = x_squares * most
        if DEPTH == 2:
            # The lower layer's part of it, and the clip of the step.
            tl.debug_barrier()
            inner_squares = tl.zeros([BLOCK_C], tl.float32)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                # [D, I]
                upper = transposed(p_upper, d, i, D, D, I) + transposed(p_anchor + UPPER, d, i, D, D, I)
                # [C, I]
                product = get(p_kept + PRODUCT, c, i, I, C, I)
                inner = dot(error, upper, PRECISION) * silu_slope(product)
                inner_squares += squares(inner)
                put(p_kept + INNER, inner, c, i, I, C, I)
            squared += squares(get(p_key, c, d, key_t, C, D)) * inner_squares
            # [C]
            most = tl.load(p_rule + 5 * C + 3 + c, mask=m_c, other=0.0) * most
            step = tl.where(step * squared > most, most / tl.where(squared > 0, squared, 1.0), step)
        # What reads and gradients need of it.
        tl.store(p_kept + SQUARED + c, squared, mask=m_c)
        tl.store(p_kept + TAKEN + c, step, mask=m_c)
        if DEPTH == 2:
            tl.store(p_kept + X_SQUARED + c, x_squares, mask=m_c)
            tl.store(p_kept + INNER_SQUARED + c, inner_squares, mask=m_c)
        put(p_kept + ERROR, error, c, d, D, C, D)
        error = step[:, None] * error
        # All is stored and loaded before other threads load or overwrite it.
        tl.debug_barrier()

        # Where it leaves delta and momentum: nothing, if the next chunk is fresh.
        # [C]
        end_mixed = tl.load(p_rule + 3 * C + c, mask=m_c, other=0.0)
        end_trace = tl.load(p_rule + 4 * C + c, mask=m_c, other=0.0)
        end_retained, end_built = tl.load(p_rule + 5 * C), tl.load(p_rule + 5 * C + 1)
        end_kept = tl.load(p_rule + 5 * C + 2)
        stays = (flags & 32) == 0
        error = tl.trans(error)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            if DEPTH == 2:
                inner = step[:, None] * get(p_kept + INNER, c, i, I, C, I)
                # [C, I]
                x = silu(get(p_kept + PRODUCT, c, i, I, C, I))
                # [D, C]
                key = tl.trans(get(p_key, c, d, key_t, C, D))
                # [D, I]
                delta = get(states_ptr + o_now, d, i, I, D, I)
                momentum = get(states_ptr + o_now + SIZE, d, i, I, D, I)
                delta = end_retained * delta + end_built * momentum
                delta = flushed(delta - dot(key, end_mixed[:, None] * inner, PRECISION))
                momentum = end_kept * momentum
                momentum = flushed(momentum - dot(key, end_trace[:, None] * inner, PRECISION))
                put(states_ptr + o_next, tl.where(stays, delta, 0.0), d, i, I, D, I)
                put(states_ptr + o_next + SIZE, tl.where(stays, momentum, 0.0), d, i, I, D, I)
            else:
                # [C, I]
                x = get(p_key, c, i, key_t, C, I)
            # [D, I]
            delta = transposed(states_ptr + o_now + UPPER, d, i, D, D, I)
            momentum = transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, D, I)
            delta = end_retained * delta + end_built * momentum
            delta = flushed(delta - dot(error, end_mixed[:, None] * x, PRECISION))
            momentum = end_kept * momentum
            momentum = flushed(momentum - dot(error, end_trace[:, None] * x, PRECISION))
            put_transposed(states_ptr + o_next + UPPER, tl.where(stays, delta, 0.0), d, i, D, D, I)
            put_transposed(states_ptr + o_next + SIZE + UPPER, tl.where(stays, momentum, 0.0), d, i, D, D, I)
        tl.debug_barrier()


def write_launch(inputs: Inputs, layout: Layout, anchor: Tensor, kept: Kept) -> Launch:
    """Return the launch that fills `kept` but its reads, and moves the `anchor` that incomplete chunks leave."""
    arguments = {"anchor_ptr": anchor, "states_ptr": kept.states, "kept_ptr": kept.chunks}
    return launch_of(_write_kernel, inputs.rule.shape[0], inputs, layout, arguments)
