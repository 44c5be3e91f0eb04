# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""The gradient of the rule at the ends of chunks, a program for each.

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
    silu,
    transposed,
)


@triton.jit
def _rule_gradient_kernel(
    key_ptr, states_ptr, kept_ptr, rule_grad_ptr, to_ptr,
    N, H, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    RULE: tl.constexpr, KEPT: tl.constexpr, PRODUCT: tl.constexpr, INNER: tl.constexpr, ERROR: tl.constexpr,
    TAKEN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the coefficients at the end of one chunk, from those of the state after it."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * (2 * SIZE)  # slots are one more than chunks
    p_state, p_to = states_ptr + o_now, to_ptr + o_now + 2 * SIZE
    p_kept, p_rule_grad = kept_ptr + chunk * KEPT, rule_grad_ptr + chunk * RULE
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    # [C]
    taken = tl.load(p_kept + TAKEN + c, mask=m_c, other=0.0)
    grad_mixed, grad_trace = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    # Sums over a tile's columns alone: one number would be summed over warps in every block.
    grad_retained = tl.zeros([BLOCK_D], tl.float32)
    grad_built, grad_kept = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            x = silu(get(p_kept + PRODUCT, c, i, I, C, I))
            # [D, I]
            to_delta, to_momentum = get(p_to, d, i, I, D, I), get(p_to + SIZE, d, i, I, D, I)
            delta, momentum = get(p_state, d, i, I, D, I), get(p_state + SIZE, d, i, I, D, I)
            grad_retained += tl.sum(delta * to_delta, axis=1)
            grad_built += tl.sum(momentum * to_delta, axis=1)
            grad_kept += tl.sum(momentum * to_momentum, axis=1)
            # [C, D]
            key = get(p_key, c, d, key_t, C, D)
            # [C, I]
            inner = taken[:, None] * get(p_kept + INNER, c, i, I, C, I)
            grad_mixed -= tl.sum(inner * dot(key, to_delta, PRECISION), axis=1)
            grad_trace -= tl.sum(inner * dot(key, to_momentum, PRECISION), axis=1)
        else:
            # [C, I]
            x = get(p_key, c, i, key_t, C, I)
        # [D, I]
        to_delta = transposed(p_to + UPPER, d, i, D, D, I)
        to_momentum = transposed(p_to + SIZE + UPPER, d, i, D, D, I)
        delta = transposed(p_state + UPPER, d, i, D, D, I)
        momentum = transposed(p_state + SIZE + UPPER, d, i, D, D, I)
        grad_retained += tl.sum(delta * to_delta, axis=1)
        grad_built += tl.sum(momentum * to_delta, axis=1)
        grad_kept += tl.sum(momentum * to_momentum, axis=1)
        # [C, D]
        error = taken[:, None] * get(p_kept + ERROR, c, d, D, C, D)
        grad_mixed -= tl.sum(x * dot(error, to_delta, PRECISION), axis=1)
        grad_trace -= tl.sum(x * dot(error, to_momentum, PRECISION), axis=1)
    tl.store(p_rule_grad + 3 * C + c, grad_mixed, mask=m_c)
    tl.store(p_rule_grad + 4 * C + c, grad_trace, mask=m_c)
    tl.store(p_rule_grad + 5 * C, tl.sum(grad_retained))
    tl.store(p_rule_grad + 5 * C + 1, tl.sum(grad_built))
    tl.store(p_rule_grad + 5 * C + 2, tl.sum(grad_kept))


def rule_gradient_launch(inputs: Inputs, layout: Layout, kept: Kept, grad_rule: Tensor, to: Tensor) -> Launch:
    """Return the launch that fills the gradients of the coefficients at the ends of chunks."""
    rows, count, _ = inputs.rule.shape
    arguments = {"states_ptr": kept.states, "kept_ptr": kept.chunks, "rule_grad_ptr": grad_rule, "to_ptr": to}
    return launch_of(_rule_gradient_kernel, rows * count, inputs, layout, arguments)
