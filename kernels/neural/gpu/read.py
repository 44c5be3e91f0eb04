# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Forward kernel of the reads, with one program per chunk.

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
    dot,
    get,
    get_transposed,
    put,
    silu,
)


@triton.jit
def _read_kernel(
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
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    # Coefficients of the reads.
    # [C]
    retention = tl.load(p_rule + READ_RETENTION + c, mask=m_c, other=0.0)
    buildup = tl.load(p_rule + READ_BUILDUP + c, mask=m_c, other=0.0)
    clipped_step = tl.load(p_trace + CLIPPED_STEP + c, mask=m_c, other=0.0)
    # Similarity of queries and keys, for the lower layer.
    if DEPTH == 2:
        # [C, D]
        key = get(p_key, c, d, key_t, C, D)
        similarity_lower = dot(get(p_query, c, d, query_t, C, D), tl.trans(key), PRECISION)
        similarity_lower = similarity_lower * get(p_rule + READ_MIXING, c, c, C, C, C)
    # Per tile: the lower layer, then the upper layer's weights, delta and momentum.
    similarity = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    out = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            # [C, I]
            inner = clipped_step[:, None] * get(p_trace + INNER, c, i, I, C, I)
            # [C, D]
            query = get(p_query, c, d, query_t, C, D)
            read = dot(query, get(lower_ptr + i_h * (D * I), d, i, I, D, I), PRECISION)
            read += retention[:, None] * dot(query, get(states_ptr + o_now, d, i, I, D, I), PRECISION)
            read += buildup[:, None] * dot(query, get(states_ptr + o_now + SIZE, d, i, I, D, I), PRECISION)
            read -= dot(similarity_lower, inner, PRECISION)
            put(p_trace + READ, read, c, i, I, C, I)
            # [C, I]
            x, other = silu(read), silu(get(p_trace + PRODUCT, c, i, I, C, I))
        else:
            # [C, I]
            x, other = get(p_query, c, i, query_t, C, I), get(p_key, c, i, key_t, C, I)
        similarity += dot(x, tl.trans(other), PRECISION)
        # [D, I]
        upper = get_transposed(upper_ptr + i_h * (D * I), d, i, D, D, I)
        out += dot(x, tl.trans(upper), PRECISION)
        # [D, I]
        delta = get_transposed(states_ptr + o_now + UPPER, d, i, D, D, I)
        out += retention[:, None] * dot(x, tl.trans(delta), PRECISION)
        # [D, I]
        momentum = get_transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, D, I)
        out += buildup[:, None] * dot(x, tl.trans(momentum), PRECISION)
    # The chunk's own writes in the upper layer.
    similarity = similarity * get(p_rule + READ_MIXING, c, c, C, C, C)
    # [C, D]
    error = clipped_step[:, None] * get(p_trace + ERROR, c, d, D, C, D)
    out -= dot(similarity, error, PRECISION)
    if RESIDUAL:
        # [C, D]
        out += get(p_query, c, d, query_t, C, D)
    put(out_ptr + ((i_b * N * C + first) * H + i_h) * D, out, c, d, H * D, C, D)


def read_launch(inputs: NeuralKernelInputs, layout: Layout, y: Tensor, trace: NeuralKernelTrace) -> Launch:
    """Return the launch that writes the outputs to `y` and the results of the reads to `trace`."""
    rows, count, _ = inputs.rule.shape
    arguments = {"states_ptr": trace.states, "trace_ptr": trace.chunks, "out_ptr": y}
    return build_launch(_read_kernel, rows * count, inputs, layout, arguments)
