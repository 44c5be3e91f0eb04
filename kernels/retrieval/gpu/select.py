# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Top-k selection in one pass over the summaries, with the best K chunks in registers.

Each candidate is one 64-bit integer that sorts by score and then by chunk, earlier chunks first. Scores are
exact float32 products.

Letters in shape comments: T queries of a tile, M chunks, K best chunks, DS the width of summaries; all
padded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch, name_strides, pad_size
from scrubjay.kernels.retrieval.problem import Choice, Problem

_BLOCK_QUERIES, _MIN_BLOCK_CHUNKS = 16, 32


@triton.jit
def _packed_keys(scores, chunk):
    """Return one sortable integer per score; on ties the earlier chunk sorts highest."""
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    ordered_bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered_bits.to(tl.int64) << 32) | (0x7FFFFFFF ^ chunk).to(tl.int64)


@triton.jit
def _select_kernel(
    query_ptr, summaries_ptr, valid_ptr, total_ptr, chunks_ptr,
    T, M, S, GS,
    query_b, query_t, query_s,
    summaries_b, summaries_m, summaries_g,
    valid_b, valid_t, valid_m,
    scale,
    DS: tl.constexpr, K: tl.constexpr, NUM_SINKS: tl.constexpr, NUM_LOCALS: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_DS: tl.constexpr,
):  # fmt: skip
    i_tile = tl.program_id(0)
    i_s = tl.program_id(1).to(tl.int64)
    tiles = tl.cdiv(T, BLOCK_T)
    i_b, i_t = (i_tile // tiles).to(tl.int64), i_tile % tiles
    t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_DS)
    m_t, m_d = t < T, d < DS
    p_query = query_ptr + i_b * query_b + i_s * query_s
    # [T, DS]
    b_query = tl.load(
        p_query + t.to(tl.int64)[:, None] * query_t + d[None, :], mask=m_t[:, None] & m_d[None, :], other=0.0
    )
    p_summaries = summaries_ptr + i_b * summaries_b + (i_s * GS // S) * summaries_g
    nothing = -0x7FFFFFFFFFFFFFFF  # below every packed score, including -inf
    best = tl.full([BLOCK_T, BLOCK_K], nothing, tl.int64)
    if NUM_SINKS + NUM_LOCALS > 0:
        # [T]
        total = tl.load(total_ptr + i_b * T + t, mask=m_t, other=0)
        rank_before = tl.zeros([BLOCK_T], tl.int32)
    for first in range(0, M, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        m_m = m < M
        # [T, M]
        readable = (
            tl.load(
                valid_ptr
                + i_b * valid_b
                + t.to(tl.int64)[:, None] * valid_t
                + m.to(tl.int64)[None, :] * valid_m,
                mask=m_t[:, None] & m_m[None, :],
                other=0,
            )
            != 0
        )
        # [M, DS]
        b_summaries = tl.load(
            p_summaries + m.to(tl.int64)[:, None] * summaries_m + d[None, :],
            mask=m_m[:, None] & m_d[None, :],
            other=0.0,
        )
        scores = tl.dot(b_query, tl.trans(b_summaries), input_precision="ieee") * scale
        if NUM_SINKS + NUM_LOCALS > 0:
            rank = rank_before[:, None] + tl.cumsum(readable.to(tl.int32), axis=1)
            always = (rank <= NUM_SINKS) | (rank > total[:, None] - NUM_LOCALS)
            scores = tl.where(always, float("inf"), scores)
            rank_before += tl.sum(readable.to(tl.int32), axis=1)
        candidates = tl.where(readable, _packed_keys(scores, m[None, :]), nothing)
        candidates = tl.topk(candidates, BLOCK_K)
        best = tl.topk(tl.reshape(tl.join(best, candidates), [BLOCK_T, 2 * BLOCK_K]), BLOCK_K)
    chunk = tl.where(best == nothing, -1, 0x7FFFFFFF ^ (best & 0xFFFFFFFF).to(tl.int32))
    k = tl.arange(0, BLOCK_K)
    row = (i_b * T + t.to(tl.int64)) * S + i_s
    tl.store(chunks_ptr + row[:, None] * K + k[None, :], chunk, mask=m_t[:, None] & (k < K)[None, :])


def select_launch(problem: Problem, choice: Choice, chunks: Tensor) -> Launch:
    """Return the kernel launch, not yet run, that writes the selected chunks to `chunks`."""
    query, summaries, valid = problem.summary_query, problem.summaries, problem.valid
    batch, time, coarse, width = query.shape
    block_k = triton.next_power_of_2(choice.top_k)
    forces_chunks = choice.num_sinks + choice.num_locals > 0
    tensors = {"query": query, "summaries": summaries, "valid": valid, "chunks": chunks}
    tensors["total"] = valid.sum(dim=-1, dtype=torch.int32) if forces_chunks else None
    numbers = {
        "T": time,
        "M": summaries.shape[1],
        "S": coarse,
        "GS": summaries.shape[2],
        **name_strides("bts", {"query": query}),
        **name_strides("bmg", {"summaries": summaries}),
        **name_strides("btm", {"valid": valid}),
        "scale": choice.summary_scale,
    }
    constants = {
        "DS": width,
        "K": choice.top_k,
        "NUM_SINKS": choice.num_sinks,
        "NUM_LOCALS": choice.num_locals,
        "BLOCK_T": _BLOCK_QUERIES,
        "BLOCK_M": max(_MIN_BLOCK_CHUNKS, block_k),
        "BLOCK_K": block_k,
        "BLOCK_DS": pad_size(width),
    }
    grid = (batch * triton.cdiv(time, _BLOCK_QUERIES), coarse)
    return Launch.match(_select_kernel, grid, tensors, numbers, constants)
