# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Attention inside the selected chunks, with one program per query and unit.

The rows of a tile are the R = H / U query heads of the unit. `kernels.retrieval.op` defines units, H and U.

Letters in shape comments: R query heads of a unit, C steps of a chunk, K selected chunks, D, V and DS widths
of keys, values and summaries; all padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scrubjay.kernels.launch import Launch, pad_size
from scrubjay.kernels.retrieval.gpu.tiles import AttentionOutputs, build_launch, rows_tile
from scrubjay.kernels.retrieval.problem import Choice, Problem, Reading


@triton.jit
def _attend_kernel(
    query_ptr, keys_ptr, values_ptr, summary_query_ptr, summaries_ptr, positions_ptr, lengths_ptr, chunks_ptr,
    scores_ptr, out_ptr, weights_ptr, normalisers_ptr, lse_ptr,
    T, M, H, S, G, GS,
    query_b, query_t, query_h,
    keys_b, keys_m, keys_c, keys_g,
    values_b, values_m, values_c, values_g,
    summary_query_b, summary_query_t, summary_query_s,
    summaries_b, summaries_m, summaries_g,
    scale, summary_scale,
    C: tl.constexpr, D: tl.constexpr, V: tl.constexpr, DS: tl.constexpr, K: tl.constexpr, U: tl.constexpr,
    R: tl.constexpr, JOINT: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_DS: tl.constexpr,
):  # fmt: skip
    i_row = tl.program_id(0).to(tl.int64)
    i_u = tl.program_id(1).to(tl.int64)
    i_b, i_t = i_row // T, i_row % T
    i_s, i_g = i_u * S // U, i_u * G // U
    r = tl.arange(0, BLOCK_R)
    d, v, k = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_K)
    head = i_u * R + r.to(tl.int64)
    m_r = r < R
    # [R, D]
    b_query = tl.load(
        query_ptr + i_b * query_b + i_t * query_t + head[:, None] * query_h + d[None, :],
        mask=m_r[:, None] & (d < D)[None, :],
        other=0.0,
    )
    o_kept = (i_row * S + i_s) * K
    # [K]
    chunks = tl.load(chunks_ptr + o_kept + k, mask=k < K, other=-1)
    # Chunk weights: the softmax of the scores, which are loaded or computed from the summaries.
    if JOINT:
        weights = tl.where(chunks >= 0, 1.0, 0.0)
    else:
        if scores_ptr is not None:
            # [K]
            scores = tl.load(scores_ptr + o_kept + k, mask=k < K, other=float("-inf"))
        else:
            ds = tl.arange(0, BLOCK_DS)
            # [DS]
            b_summary_query = tl.load(
                summary_query_ptr
                + i_b * summary_query_b
                + i_t * summary_query_t
                + i_s * summary_query_s
                + ds,
                mask=ds < DS,
                other=0.0,
            ).to(tl.float32)
            # [K, DS]
            b_summaries = tl.load(
                summaries_ptr
                + i_b * summaries_b
                + (i_s * GS // S) * summaries_g
                + chunks.to(tl.int64)[:, None] * summaries_m
                + ds[None, :],
                mask=(chunks >= 0)[:, None] & (ds < DS)[None, :],
                other=0.0,
            ).to(tl.float32)
            scores = tl.sum(b_summaries * b_summary_query[None, :], axis=1) * summary_scale
        scores = tl.where(chunks >= 0, scores, float("-inf"))
        best = tl.max(scores, axis=0)
        weights = tl.where(chunks >= 0, tl.exp(scores - tl.where(chunks >= 0, best, 0.0)), 0.0)
        total = tl.sum(weights, axis=0)
        weights = weights / tl.where(total > 0, total, 1.0)
        lse = tl.where(total > 0, best + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))
        tl.store(lse_ptr + i_row * H + head, tl.zeros([BLOCK_R], tl.float32) + lse, mask=m_r)
    tl.store(weights_ptr + o_kept + k, weights, mask=k < K)

    # Online softmax over the steps of each chunk, or of all chunks (joint), tile by tile.
    out = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
    largest = tl.full([BLOCK_R], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_R], tl.float32)
    for i_k in range(K):
        chunk = tl.load(chunks_ptr + o_kept + i_k).to(tl.int64)
        if chunk >= 0:
            length = C
            if lengths_ptr is not None:
                length = tl.load(lengths_ptr + i_b * M + chunk)
            p_keys = keys_ptr + i_b * keys_b + chunk * keys_m + i_g * keys_g
            p_values = values_ptr + i_b * values_b + chunk * values_m + i_g * values_g
            if JOINT:
                partial = out
            else:
                partial = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
                largest = tl.full([BLOCK_R], float("-inf"), tl.float32)
                mass = tl.zeros([BLOCK_R], tl.float32)
            for first in range(0, C, BLOCK_C):
                c = first + tl.arange(0, BLOCK_C)
                # [C, D]
                b_keys = rows_tile(p_keys, positions_ptr, c, d, length, keys_c, D)
                logits = tl.dot(b_query, tl.trans(b_keys), input_precision="tf32x3") * scale
                logits = tl.where((c < length)[None, :], logits, float("-inf"))
                new_largest = tl.maximum(largest, tl.max(logits, axis=1))
                # A tile entirely beyond the chunk's length would subtract -inf from -inf.
                shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
                attention = tl.exp(logits - shift[:, None])
                decay = tl.exp(largest - shift)
                mass = mass * decay + tl.sum(attention, axis=1)
                if SHARED:
                    b_values = b_keys
                else:
                    # [C, V]
                    b_values = rows_tile(p_values, positions_ptr, c, v, length, values_c, V)
                partial = partial * decay[:, None] + tl.dot(
                    attention.to(b_values.dtype), b_values, input_precision="tf32x3"
                )
                largest = new_largest
            # Add the chunk's read-out, weighted.
            if JOINT:
                out = partial
            else:
                weight = tl.sum(tl.where(k == i_k, weights, 0.0), axis=0)
                out += partial * (weight / mass)[:, None]
                tl.store(normalisers_ptr + (i_row * H + head) * K + i_k, largest + tl.log(mass), mask=m_r)
        else:
            if not JOINT:
                tl.store(
                    normalisers_ptr + (i_row * H + head) * K + i_k,
                    tl.full([BLOCK_R], float("-inf"), tl.float32),
                    mask=m_r,
                )
    if JOINT:
        mass = tl.where(mass > 0, mass, 1.0)
        out = out / mass[:, None]
        tl.store(normalisers_ptr + i_row * H + head, largest + tl.log(mass), mask=m_r)
        tl.store(lse_ptr + i_row * H + head, largest + tl.log(mass), mask=m_r)
    tl.store(
        out_ptr + (i_row * H + head)[:, None] * V + v[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=m_r[:, None] & (v < V)[None, :],
    )


def attend_launch(
    reading: Reading, choice: Choice, score_source: Problem | None, outputs: AttentionOutputs
) -> Launch:
    """Return the launch that fills `outputs`.

    Args:
        reading: Inputs of the op, packed for the kernels.
        choice: Options of the attention.
        score_source: Queries and summaries to compute scores from; None if the reading has scores.
        outputs: Output tensors.
    """
    batch, time, heads, _ = reading.query.shape
    rows = pad_size(heads // reading.units)
    grid = (batch * time, reading.units)
    return build_launch(_attend_kernel, grid, reading, choice, outputs._asdict(), rows, score_source)
