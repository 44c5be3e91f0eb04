# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Chunk retrieval on Triton: select, attend, and the gradients of queries and of memory.

Letters as in `chunk_retrieval`; R = H / U query heads are a unit's and form the rows of a tile. Selection is
one pass over the summaries with the best K kept in registers, each as one 64-bit number that sorts by score and
then by chunk, the earlier first. Attention goes query by query over its chunks; the gradient of memory goes
chunk by chunk over the queries that chose it, listed in a fixed order, so it needs no atomics and is
deterministic. Scores of float32 are exact float32 products, and attention's are three TF32 ones each, whose
error is near float32's own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch, with_dense_rows
from scrubjay.kernels.retrieval.problem import Choice, Problem


@triton.jit
def _packed(scores, chunk):
    """Return one integer per score that sorts like it, and of equal scores the earlier chunk highest."""
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF ^ chunk).to(tl.int64)


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
    # [BLOCK_T, BLOCK_DS]
    b_query = tl.load(
        p_query + t.to(tl.int64)[:, None] * query_t + d[None, :], mask=m_t[:, None] & m_d[None, :], other=0.0
    )
    p_summaries = summaries_ptr + i_b * summaries_b + (i_s * GS // S) * summaries_g
    nothing = -0x7FFFFFFFFFFFFFFF  # below every packed score, that of -inf included
    best = tl.full([BLOCK_T, BLOCK_K], nothing, tl.int64)
    if NUM_SINKS + NUM_LOCALS > 0:
        total = tl.load(total_ptr + i_b * T + t, mask=m_t, other=0)
        rank_before = tl.zeros([BLOCK_T], tl.int32)
    for first in range(0, M, BLOCK_M):
        m = first + tl.arange(0, BLOCK_M)
        m_m = m < M
        # [BLOCK_T, BLOCK_M]
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
        # [BLOCK_M, BLOCK_DS]
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
        candidates = tl.where(readable, _packed(scores, m[None, :]), nothing)
        candidates = tl.topk(candidates, BLOCK_K)
        best = tl.topk(tl.reshape(tl.join(best, candidates), [BLOCK_T, 2 * BLOCK_K]), BLOCK_K)
    chunk = tl.where(best == nothing, -1, 0x7FFFFFFF ^ (best & 0xFFFFFFFF).to(tl.int32))
    k = tl.arange(0, BLOCK_K)
    row = (i_b * T + t.to(tl.int64)) * S + i_s
    tl.store(chunks_ptr + row[:, None] * K + k[None, :], chunk, mask=m_t[:, None] & (k < K)[None, :])


@triton.jit
def _rows_tile(
    pointer, positions_ptr, c, d, length, step, WIDTH: tl.constexpr
):  # fmt: skip
    """Load `[BLOCK_C, BLOCK]`: steps c of one chunk with their position codes, zeros beyond its length."""
    mask = (c < length)[:, None] & (d < WIDTH)[None, :]
    tile = tl.load(pointer + c.to(tl.int64)[:, None] * step + d[None, :], mask=mask, other=0.0)
    if positions_ptr is not None:
        code = tl.load(positions_ptr + c[:, None] * WIDTH + d[None, :], mask=mask, other=0.0)
        tile = (tile.to(tl.float32) + code.to(tl.float32)).to(tile.dtype)
    return tile


@triton.jit
def _attend_kernel(
    query_ptr, keys_ptr, values_ptr, summary_query_ptr, summaries_ptr, positions_ptr, lengths_ptr, chunks_ptr,
    out_ptr, weights_ptr, normalisers_ptr,
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
    # [BLOCK_R, BLOCK_D]
    b_query = tl.load(
        query_ptr + i_b * query_b + i_t * query_t + head[:, None] * query_h + d[None, :],
        mask=m_r[:, None] & (d < D)[None, :],
        other=0.0,
    )
    o_kept = (i_row * S + i_s) * K
    chunks = tl.load(chunks_ptr + o_kept + k, mask=k < K, other=-1)
    if JOINT:
        weights = tl.where(chunks >= 0, 1.0, 0.0)
    else:
        ds = tl.arange(0, BLOCK_DS)
        b_summary_query = tl.load(
            summary_query_ptr + i_b * summary_query_b + i_t * summary_query_t + i_s * summary_query_s + ds,
            mask=ds < DS,
            other=0.0,
        ).to(tl.float32)
        # [BLOCK_K, BLOCK_DS]
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
    tl.store(weights_ptr + o_kept + k, weights, mask=k < K)

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
                b_keys = _rows_tile(p_keys, positions_ptr, c, d, length, keys_c, D)
                logits = tl.dot(b_query, tl.trans(b_keys), input_precision="tf32x3") * scale
                logits = tl.where((c < length)[None, :], logits, float("-inf"))
                new_largest = tl.maximum(largest, tl.max(logits, axis=1))
                # A tile wholly beyond the chunk's length would subtract -inf from -inf.
                shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
                attention = tl.exp(logits - shift[:, None])
                decay = tl.exp(largest - shift)
                mass = mass * decay + tl.sum(attention, axis=1)
                if SHARED:
                    b_values = b_keys
                else:
                    b_values = _rows_tile(p_values, positions_ptr, c, v, length, values_c, V)
                partial = partial * decay[:, None] + tl.dot(
                    attention.to(b_values.dtype), b_values, input_precision="tf32x3"
                )
                largest = new_largest
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
    tl.store(
        out_ptr + (i_row * H + head)[:, None] * V + v[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=m_r[:, None] & (v < V)[None, :],
    )


@triton.jit
def _query_gradient_kernel(
    query_ptr, keys_ptr, values_ptr, positions_ptr, lengths_ptr, chunks_ptr, weights_ptr, normalisers_ptr,
    out_ptr, grad_ptr, query_grad_ptr, delta_ptr,
    T, M, H, S, G,
    query_b, query_t, query_h,
    keys_b, keys_m, keys_c, keys_g,
    values_b, values_m, values_c, values_g,
    scale,
    C: tl.constexpr, D: tl.constexpr, V: tl.constexpr, K: tl.constexpr, U: tl.constexpr, R: tl.constexpr,
    JOINT: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the queries' gradient, and delta: the gradient times each chunk's read-out (joint: the whole one)."""
    i_row = tl.program_id(0).to(tl.int64)
    i_u = tl.program_id(1).to(tl.int64)
    i_b, i_t = i_row // T, i_row % T
    i_s, i_g = i_u * S // U, i_u * G // U
    r = tl.arange(0, BLOCK_R)
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    head = i_u * R + r.to(tl.int64)
    m_r = r < R
    m_d, m_v = m_r[:, None] & (d < D)[None, :], m_r[:, None] & (v < V)[None, :]
    b_query = tl.load(
        query_ptr + i_b * query_b + i_t * query_t + head[:, None] * query_h + d[None, :], mask=m_d, other=0.0
    )
    o_out = (i_row * H + head)[:, None] * V + v[None, :]
    b_grad = tl.load(grad_ptr + o_out, mask=m_v, other=0.0)
    delta = tl.zeros([BLOCK_R], tl.float32)
    if JOINT:
        b_out = tl.load(out_ptr + o_out, mask=m_v, other=0.0)
        delta = tl.sum(b_out.to(tl.float32) * b_grad.to(tl.float32), axis=1)
        tl.store(delta_ptr + i_row * H + head, delta, mask=m_r)
        normaliser = tl.load(normalisers_ptr + i_row * H + head, mask=m_r, other=0.0)
    query_grad = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    o_kept = (i_row * S + i_s) * K
    for i_k in range(K):
        chunk = tl.load(chunks_ptr + o_kept + i_k).to(tl.int64)
        if chunk >= 0:
            length = C
            if lengths_ptr is not None:
                length = tl.load(lengths_ptr + i_b * M + chunk)
            p_keys = keys_ptr + i_b * keys_b + chunk * keys_m + i_g * keys_g
            p_values = values_ptr + i_b * values_b + chunk * values_m + i_g * values_g
            weight = tl.load(weights_ptr + o_kept + i_k)
            if not JOINT:
                normaliser = tl.load(normalisers_ptr + (i_row * H + head) * K + i_k, mask=m_r, other=0.0)
                delta = tl.zeros([BLOCK_R], tl.float32)
                if C > BLOCK_C:
                    for first in range(0, C, BLOCK_C):
                        c = first + tl.arange(0, BLOCK_C)
                        b_keys = _rows_tile(p_keys, positions_ptr, c, d, length, keys_c, D)
                        if SHARED:
                            b_values = b_keys
                        else:
                            b_values = _rows_tile(p_values, positions_ptr, c, v, length, values_c, V)
                        logits = tl.dot(b_query, tl.trans(b_keys), input_precision="tf32x3") * scale
                        attention = tl.where((c < length)[None, :], tl.exp(logits - normaliser[:, None]), 0.0)
                        value_grad = tl.dot(b_grad, tl.trans(b_values), input_precision="tf32x3")
                        delta += tl.sum(attention * value_grad, axis=1)
            for first in range(0, C, BLOCK_C):
                c = first + tl.arange(0, BLOCK_C)
                b_keys = _rows_tile(p_keys, positions_ptr, c, d, length, keys_c, D)
                if SHARED:
                    b_values = b_keys
                else:
                    b_values = _rows_tile(p_values, positions_ptr, c, v, length, values_c, V)
                logits = tl.dot(b_query, tl.trans(b_keys), input_precision="tf32x3") * scale
                attention = tl.where((c < length)[None, :], tl.exp(logits - normaliser[:, None]), 0.0)
                value_grad = tl.dot(b_grad, tl.trans(b_values), input_precision="tf32x3")
                if not JOINT and C <= BLOCK_C:
                    delta = tl.sum(attention * value_grad, axis=1)
                logit_grad = attention * (value_grad - delta[:, None]) * weight
                query_grad += tl.dot(logit_grad.to(b_keys.dtype), b_keys, input_precision="tf32x3")
            if not JOINT:
                tl.store(delta_ptr + (i_row * H + head) * K + i_k, delta, mask=m_r)
        else:
            if not JOINT:
                tl.store(delta_ptr + (i_row * H + head) * K + i_k, tl.zeros([BLOCK_R], tl.float32), mask=m_r)
    tl.store(
        query_grad_ptr + (i_row * H + head)[:, None] * D + d[None, :],
        (query_grad * scale).to(query_grad_ptr.dtype.element_ty),
        mask=m_d,
    )


@triton.jit
def _memory_gradient_kernel(
    query_ptr, keys_ptr, values_ptr, positions_ptr, lengths_ptr, weights_ptr, normalisers_ptr, delta_ptr,
    grad_ptr, order_ptr, offsets_ptr, keys_grad_ptr, values_grad_ptr,
    T, M, H, S, G,
    query_b, query_t, query_h,
    keys_b, keys_m, keys_c, keys_g,
    values_b, values_m, values_c, values_g,
    scale,
    C: tl.constexpr, D: tl.constexpr, V: tl.constexpr, K: tl.constexpr, U: tl.constexpr, R: tl.constexpr,
    JOINT: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    i_list = tl.program_id(0).to(tl.int64)
    i_c = tl.program_id(1)
    i_m, i_bg = i_list % M, i_list // M
    i_b, i_g = i_bg // G, i_bg % G
    c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    length = C
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + i_b * M + i_m)
    start = tl.load(offsets_ptr + i_list).to(tl.int64)
    stop = tl.load(offsets_ptr + i_list + 1).to(tl.int64)
    keys_grad = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    values_grad = tl.zeros([BLOCK_C, BLOCK_V], tl.float32)
    # What nobody chose may hold NaN and is not loaded.
    read = tl.where(stop > start, length, 0)
    b_keys = _rows_tile(
        keys_ptr + i_b * keys_b + i_m * keys_m + i_g * keys_g, positions_ptr, c, d, read, keys_c, D
    )
    if SHARED:
        b_values = b_keys
    else:
        b_values = _rows_tile(
            values_ptr + i_b * values_b + i_m * values_m + i_g * values_g,
            positions_ptr,
            c,
            v,
            read,
            values_c,
            V,
        )
    for first in range(start * R, stop * R, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        m_row = row < stop * R
        entry = tl.load(order_ptr + row // R, mask=m_row, other=0).to(tl.int64)
        i_k, i_u, i_t = entry % K, (entry // K) % U, (entry // (K * U)) % T
        head = i_u * R + row % R
        o_row = i_b * T + i_t
        m_d, m_v = m_row[:, None] & (d < D)[None, :], m_row[:, None] & (v < V)[None, :]
        b_query = tl.load(
            query_ptr + i_b * query_b + (i_t * query_t + head * query_h)[:, None] + d[None, :],
            mask=m_d,
            other=0.0,
        )
        b_grad = tl.load(grad_ptr + ((o_row * H + head) * V)[:, None] + v[None, :], mask=m_v, other=0.0)
        weight = tl.load(weights_ptr + (o_row * S + i_u * S // U) * K + i_k, mask=m_row, other=0.0)
        o_normaliser = o_row * H + head
        if not JOINT:
            o_normaliser = o_normaliser * K + i_k
        normaliser = tl.load(normalisers_ptr + o_normaliser, mask=m_row, other=0.0)
        delta = tl.load(delta_ptr + o_normaliser, mask=m_row, other=0.0)
        # [BLOCK_R, BLOCK_C]
        logits = tl.dot(b_query, tl.trans(b_keys), input_precision="tf32x3") * scale
        seen = m_row[:, None] & (c < length)[None, :]
        attention = tl.where(seen, tl.exp(logits - normaliser[:, None]), 0.0) * weight[:, None]
        value_grad = tl.dot(b_grad, tl.trans(b_values), input_precision="tf32x3")
        logit_grad = attention * (value_grad - delta[:, None])
        values_grad += tl.dot(tl.trans(attention.to(b_grad.dtype)), b_grad, input_precision="tf32x3")
        keys_grad += tl.dot(tl.trans(logit_grad.to(b_query.dtype)), b_query, input_precision="tf32x3")
    o_row = ((i_b * M + i_m) * C + c.to(tl.int64)) * G + i_g
    tl.store(
        keys_grad_ptr + o_row[:, None] * D + d[None, :],
        (keys_grad * scale).to(keys_grad_ptr.dtype.element_ty),
        mask=(c < C)[:, None] & (d < D)[None, :],
    )
    tl.store(
        values_grad_ptr + o_row[:, None] * V + v[None, :],
        values_grad.to(values_grad_ptr.dtype.element_ty),
        mask=(c < C)[:, None] & (v < V)[None, :],
    )


def forward(problem: Problem, choice: Choice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the read-out, the chunks kept (-1 for none), their weights and the log normalisers."""
    problem = _ready(problem)
    query = problem.query
    batch, time, heads, _ = query.shape
    kept = (batch, time, problem.summary_query.shape[2], choice.top_k)
    out = query.new_empty(batch, time, heads, problem.values.shape[-1])
    chunks = query.new_empty(kept, dtype=torch.int32)
    weights = query.new_empty(kept, dtype=torch.float32)
    normalisers = query.new_empty(
        batch, time, heads, 1 if choice.joint else choice.top_k, dtype=torch.float32
    )
    select_launch(problem, choice, chunks).run()
    attend_launch(problem, choice, chunks, out, weights, normalisers).run()
    return out, chunks, weights, normalisers


def backward(
    problem: Problem,
    choice: Choice,
    grad: Tensor,
    out: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    wanted: list[bool],
) -> list[Tensor]:
    """Return the gradients of the eight tensors of `problem`, an empty one where none is wanted.

    `saved` are the chunks kept, their weights and the log normalisers, as `forward` returned them.
    """
    problem = _ready(problem)
    grad = grad.contiguous()
    want = Problem(*wanted)
    found: dict[str, Tensor] = {}
    found["query"] = problem.query.new_empty(problem.query.shape)
    chunks, weights, normalisers = saved
    delta = torch.empty_like(normalisers)
    query_gradient_launch(problem, choice, saved, out, grad, found["query"], delta).run()
    if want.keys or want.values or want.positions:
        found["keys"] = problem.keys.new_empty(problem.keys.shape)
        found["values"] = problem.values.new_empty(problem.values.shape)
        listed = _readers(problem, chunks)
        memory_gradient_launch(
            problem, choice, saved, grad, delta, listed, found["keys"], found["values"]
        ).run()
    if problem.positions is not None and want.positions:
        both = found["keys"].sum((0, 1, 3), dtype=torch.float32) + found["values"].sum(
            (0, 1, 3), dtype=torch.float32
        )
        found["positions"] = both.to(problem.positions.dtype)
    if want.summaries or want.summary_query:
        found["summary_query"], found["summaries"] = _coarse_gradients(
            problem, choice, chunks, weights, delta
        )
    return [
        found[name] if wanted_here else problem.query.new_empty(0)
        for name, wanted_here in zip(Problem._fields, wanted, strict=True)
    ]


def _coarse_gradients(
    problem: Problem, choice: Choice, chunks: Tensor, weights: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of summary queries and summaries: a softmax's, then two dense products."""
    query, summaries = problem.summary_query, problem.summaries
    if choice.joint:
        return torch.zeros_like(query), torch.zeros_like(summaries)
    batch, time, coarse, _ = chunks.shape
    num_chunks, groups = summaries.shape[1:3]
    weight_grad = delta.view(batch, time, coarse, -1, choice.top_k).sum(dim=3)
    score_grad = weights * (weight_grad - (weights * weight_grad).sum(dim=-1, keepdim=True))
    dense = score_grad.new_zeros(batch, time, coarse, num_chunks + 1)  # the last column takes the absent
    dense.scatter_(-1, torch.where(chunks < 0, num_chunks, chunks).long(), score_grad * choice.summary_scale)
    dense = dense[..., :num_chunks].unflatten(2, (groups, -1))
    unread = ~problem.valid.any(dim=1)
    table = summaries.masked_fill(unread[:, :, None, None], 0).float()
    idle = ~problem.valid.any(dim=-1)[..., None, None]
    split = query.masked_fill(idle, 0).float().unflatten(2, (groups, -1))
    query_grad = torch.einsum("btgsm,bmgd->btgsd", dense, table).flatten(2, 3)
    summaries_grad = torch.einsum("btgsm,btgsd->bmgd", dense, split)
    return query_grad.to(query.dtype), summaries_grad.to(summaries.dtype)


def _readers(problem: Problem, chunks: Tensor) -> tuple[Tensor, Tensor]:
    """List who chose each chunk: entries `(b, t, u, k)` flattened, sorted by (b, key head, chunk), and offsets."""
    batch, _, coarse, _ = chunks.shape
    num_chunks, groups, units = problem.keys.shape[1], problem.keys.shape[3], problem.units
    unit = torch.arange(units, device=chunks.device)
    chosen = chunks[:, :, unit * coarse // units].long()
    row = torch.arange(batch, device=chunks.device).view(-1, 1, 1, 1)
    group = (unit * groups // units).view(1, 1, -1, 1)
    lists = batch * groups * num_chunks
    belongs = torch.where(chosen < 0, lists, (row * groups + group) * num_chunks + chosen)
    ordered, order = belongs.flatten().sort(stable=True)
    offsets = torch.searchsorted(ordered, torch.arange(lists + 1, device=chunks.device))
    return order, offsets


def _ready(problem: Problem) -> Problem:
    """Return the tensors as kernels read them: widths contiguous, lengths int32, positions packed."""
    shared = problem.values is problem.keys
    ready = {
        name: with_dense_rows(tensor)
        for name, tensor in problem._asdict().items()
        if tensor is not None and name not in ("valid", "positions", "lengths")
    }
    if shared:
        ready["values"] = ready["keys"]
    positions, lengths = problem.positions, problem.lengths
    return problem._replace(
        **ready,
        positions=None if positions is None else positions.contiguous(),
        lengths=None
        if lengths is None
        else lengths.clamp(0, problem.keys.shape[2]).to(torch.int32).contiguous(),
    )


def _strides(name: str, tensor: Tensor, dims: str) -> dict[str, int]:
    return {f"{name}_{dim}": tensor.stride(i) for i, dim in enumerate(dims)}


def _is_shared(problem: Problem) -> bool:
    keys, values = problem.keys, problem.values
    same_layout = keys.shape == values.shape and keys.stride() == values.stride()
    return values is keys or (same_layout and not keys.is_meta and keys.data_ptr() == values.data_ptr())


def _block(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _blocks(problem: Problem, rows: int) -> dict[str, int]:
    """Choose tile sizes: wide heads take shorter tiles, and float32, of twice the size, shorter ones still."""
    length, width = problem.keys.shape[2], problem.query.shape[-1]
    value_width = problem.values.shape[-1]
    budget = 4096 if problem.query.dtype != torch.float32 else 1024
    most = max(16, budget // max(_block(width), _block(value_width)))
    return {
        "BLOCK_R": rows,
        "BLOCK_C": min(64, most, _block(length)),
        "BLOCK_D": _block(width),
        "BLOCK_V": _block(value_width),
    }


def _sizes(problem: Problem, choice: Choice) -> dict[str, int]:
    units = problem.units
    return {
        "C": problem.keys.shape[2],
        "D": problem.query.shape[-1],
        "V": problem.values.shape[-1],
        "K": choice.top_k,
        "U": units,
        "R": problem.query.shape[2] // units,
        "JOINT": choice.joint,
        "SHARED": _is_shared(problem),
    }


def select_launch(problem: Problem, choice: Choice, chunks: Tensor) -> Launch:
    """Return the launch that fills `chunks`."""
    query, summaries, valid = problem.summary_query, problem.summaries, problem.valid
    batch, time, coarse, width = query.shape
    block_k = triton.next_power_of_2(choice.top_k)
    forced = choice.num_sinks + choice.num_locals > 0
    return Launch(
        _select_kernel,
        (batch * triton.cdiv(time, 16), coarse),
        {
            "query_ptr": query,
            "summaries_ptr": summaries,
            "valid_ptr": valid,
            "total_ptr": valid.sum(dim=-1, dtype=torch.int32) if forced else None,
            "chunks_ptr": chunks,
            "T": time,
            "M": summaries.shape[1],
            "S": coarse,
            "GS": summaries.shape[2],
            **_strides("query", query, "bts"),
            **_strides("summaries", summaries, "bmg"),
            **_strides("valid", valid, "btm"),
            "scale": choice.summary_scale,
        },
        {
            "DS": width,
            "K": choice.top_k,
            "NUM_SINKS": choice.num_sinks,
            "NUM_LOCALS": choice.num_locals,
            "BLOCK_T": 16,
            "BLOCK_M": max(32, block_k),
            "BLOCK_K": block_k,
            "BLOCK_DS": _block(width),
        },
    )


def attend_launch(
    problem: Problem, choice: Choice, chunks: Tensor, out: Tensor, weights: Tensor, normalisers: Tensor
) -> Launch:
    """Return the launch that fills `out`, `weights` and `normalisers`."""
    query, keys, values = problem.query, problem.keys, problem.values
    batch, time, heads, _ = query.shape
    sizes = _sizes(problem, choice)
    return Launch(
        _attend_kernel,
        (batch * time, sizes["U"]),
        {
            "query_ptr": query,
            "keys_ptr": keys,
            "values_ptr": values,
            "summary_query_ptr": problem.summary_query,
            "summaries_ptr": problem.summaries,
            "positions_ptr": problem.positions,
            "lengths_ptr": problem.lengths,
            "chunks_ptr": chunks,
            "out_ptr": out,
            "weights_ptr": weights,
            "normalisers_ptr": normalisers,
            "T": time,
            "M": keys.shape[1],
            "H": heads,
            "S": chunks.shape[2],
            "G": keys.shape[3],
            "GS": problem.summaries.shape[2],
            **_strides("query", query, "bth"),
            **_strides("keys", keys, "bmcg"),
            **_strides("values", values, "bmcg"),
            **_strides("summary_query", problem.summary_query, "bts"),
            **_strides("summaries", problem.summaries, "bmg"),
            "scale": choice.scale,
            "summary_scale": choice.summary_scale,
        },
        {
            **sizes,
            "DS": problem.summaries.shape[-1],
            **_blocks(problem, _block(sizes["R"])),
            "BLOCK_K": triton.next_power_of_2(choice.top_k),
            "BLOCK_DS": _block(problem.summaries.shape[-1]),
        },
    )


def query_gradient_launch(
    problem: Problem,
    choice: Choice,
    saved: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    grad: Tensor,
    query_grad: Tensor,
    delta: Tensor,
) -> Launch:
    """Return the launch that fills `query_grad` and `delta`."""
    chunks, weights, normalisers = saved
    batch, time = problem.query.shape[:2]
    sizes = _sizes(problem, choice)
    return Launch(
        _query_gradient_kernel,
        (batch * time, sizes["U"]),
        {
            **_shared_arguments(problem, chunks, choice),
            "chunks_ptr": chunks,
            "weights_ptr": weights,
            "normalisers_ptr": normalisers,
            "out_ptr": out,
            "grad_ptr": grad,
            "query_grad_ptr": query_grad,
            "delta_ptr": delta,
        },
        {**sizes, **_blocks(problem, _block(sizes["R"]))},
    )


def memory_gradient_launch(
    problem: Problem,
    choice: Choice,
    saved: tuple[Tensor, Tensor, Tensor],
    grad: Tensor,
    delta: Tensor,
    readers: tuple[Tensor, Tensor],
    keys_grad: Tensor,
    values_grad: Tensor,
) -> Launch:
    """Return the launch that fills `keys_grad` and `values_grad`."""
    chunks, weights, normalisers = saved
    batch, num_chunks, length, groups, _ = problem.keys.shape
    constants = {**_sizes(problem, choice), **_blocks(problem, 32)}
    return Launch(
        _memory_gradient_kernel,
        (batch * groups * num_chunks, triton.cdiv(length, constants["BLOCK_C"])),
        {
            **_shared_arguments(problem, chunks, choice),
            "weights_ptr": weights,
            "normalisers_ptr": normalisers,
            "delta_ptr": delta,
            "grad_ptr": grad,
            "order_ptr": readers[0],
            "offsets_ptr": readers[1],
            "keys_grad_ptr": keys_grad,
            "values_grad_ptr": values_grad,
        },
        constants,
    )


def _shared_arguments(problem: Problem, chunks: Tensor, choice: Choice) -> dict[str, object]:
    query, keys, values = problem.query, problem.keys, problem.values
    return {
        "query_ptr": query,
        "keys_ptr": keys,
        "values_ptr": values,
        "positions_ptr": problem.positions,
        "lengths_ptr": problem.lengths,
        "T": query.shape[1],
        "M": keys.shape[1],
        "H": query.shape[2],
        "S": chunks.shape[2],
        "G": keys.shape[3],
        **_strides("query", query, "bth"),
        **_strides("keys", keys, "bmcg"),
        **_strides("values", values, "bmcg"),
        "scale": choice.scale,
    }


def configurations() -> dict[str, Launch]:
    """Return the launches of the main configurations on meta tensors, to compile without a GPU."""
    # 16 query heads on 2 key heads in chunks of 64, selected per key head; and HCAM's, 4 heads of one selection.
    grouped, single = (16, 2, 2, 64), (4, 1, 1, 16)
    launches = {}
    for dtype, width, shape, joint in (
        (torch.bfloat16, 64, grouped, True),
        (torch.bfloat16, 128, grouped, True),
        (torch.float16, 64, single, False),
        (torch.float32, 64, grouped, True),
    ):
        combine = "joint" if joint else "hierarchical"
        name = f"{str(dtype).removeprefix('torch.')}, D={width}, {combine}, C={shape[3]}"
        for kernel, launch in _launches(dtype, width, shape, joint).items():
            launches[f"{kernel}: {name}"] = launch
    return launches


def _launches(
    dtype: torch.dtype, width: int, shape: tuple[int, int, int, int], joint: bool
) -> dict[str, Launch]:
    heads, groups, coarse, length = shape
    batch, time, num_chunks = 2, 128, 256

    def empty(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(*sizes, dtype=dtype, device="meta")

    choice = Choice(4, joint, width**-0.5, width**-0.5, 0, 0)
    keys = empty(batch, num_chunks, length, groups, width)
    values = empty(*keys.shape) if joint else keys
    problem = Problem(
        empty(batch, time, heads, width),
        keys,
        values,
        empty(batch, num_chunks, coarse, width),
        empty(batch, time, num_chunks, dtype=torch.bool),
        empty(batch, time, coarse, width),
        None if joint else empty(length, width),
        None,
    )
    out, grad = empty(*problem.query.shape), empty(*problem.query.shape)
    chunks = empty(batch, time, coarse, choice.top_k, dtype=torch.int32)
    weights = empty(*chunks.shape, dtype=torch.float32)
    normalisers = empty(batch, time, heads, 1 if joint else choice.top_k, dtype=torch.float32)
    delta = empty(*normalisers.shape, dtype=torch.float32)
    saved = (chunks, weights, normalisers)
    lists = batch * groups * num_chunks
    entries = batch * time * problem.units * choice.top_k
    readers = (empty(entries, dtype=torch.int64), empty(lists + 1, dtype=torch.int64))
    return {
        "select": select_launch(problem, choice, chunks),
        "attend": attend_launch(problem, choice, chunks, out, weights, normalisers),
        "query gradient": query_gradient_launch(problem, choice, saved, out, grad, out, delta),
        "memory gradient": memory_gradient_launch(problem, choice, saved, grad, delta, readers, keys, values),
    }
