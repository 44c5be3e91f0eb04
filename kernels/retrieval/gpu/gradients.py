# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Gradients of queries, memory and chunk scores.

The memory gradient loops over the queries that selected a chunk, listed in a fixed order. It needs no atomics
and is deterministic.

Letters in shape comments: R query heads of a unit, C steps of a chunk, K selected chunks, D, V and DS widths
of keys, values and summaries; all padded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from scrubjay.kernels.launch import Launch, pad_size
from scrubjay.kernels.retrieval.gpu.tiles import (
    AttentionOutputs,
    OutputGrads,
    build_launch,
    rows_tile,
    tile_sizes,
)
from scrubjay.kernels.retrieval.problem import Choice, Problem, Reading

# Query heads per tile of the memory gradient.
_READER_ROWS = 32


@triton.jit
def _query_gradient_kernel(
    query_ptr, keys_ptr, values_ptr, positions_ptr, lengths_ptr, chunks_ptr, weights_ptr, normalisers_ptr,
    out_ptr, grad_ptr, lse_grad_ptr, query_grad_ptr, delta_ptr,
    T, M, H, S, G,
    query_b, query_t, query_h,
    keys_b, keys_m, keys_c, keys_g,
    values_b, values_m, values_c, values_g,
    scale,
    C: tl.constexpr, D: tl.constexpr, V: tl.constexpr, K: tl.constexpr, U: tl.constexpr, R: tl.constexpr,
    JOINT: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the queries, and `delta`.

    `delta` holds the dot product of each chunk's read-out with its gradient. With JOINT, it holds one dot
    product for all chunks, minus the gradient of the log normaliser.
    """
    i_row = tl.program_id(0).to(tl.int64)
    i_u = tl.program_id(1).to(tl.int64)
    i_b, i_t = i_row // T, i_row % T
    i_s, i_g = i_u * S // U, i_u * G // U
    r = tl.arange(0, BLOCK_R)
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    head = i_u * R + r.to(tl.int64)
    m_r = r < R
    m_d, m_v = m_r[:, None] & (d < D)[None, :], m_r[:, None] & (v < V)[None, :]
    # [R, D]
    b_query = tl.load(
        query_ptr + i_b * query_b + i_t * query_t + head[:, None] * query_h + d[None, :], mask=m_d, other=0.0
    )
    o_out = (i_row * H + head)[:, None] * V + v[None, :]
    # [R, V]
    b_grad = tl.load(grad_ptr + o_out, mask=m_v, other=0.0)
    delta = tl.zeros([BLOCK_R], tl.float32)
    if JOINT:
        # [R, V]
        b_out = tl.load(out_ptr + o_out, mask=m_v, other=0.0)
        delta = tl.sum(b_out.to(tl.float32) * b_grad.to(tl.float32), axis=1)
        if lse_grad_ptr is not None:
            # The derivative of the normaliser by a logit is the attention weight.
            delta -= tl.load(lse_grad_ptr + i_row * H + head, mask=m_r, other=0.0)
        tl.store(delta_ptr + i_row * H + head, delta, mask=m_r)
        # [R]
        normaliser = tl.load(normalisers_ptr + i_row * H + head, mask=m_r, other=0.0)
    # Per chunk: recompute the softmax from its normaliser and accumulate the gradient.
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
                # [R]
                normaliser = tl.load(normalisers_ptr + (i_row * H + head) * K + i_k, mask=m_r, other=0.0)
                delta = tl.zeros([BLOCK_R], tl.float32)
                # Compute delta first if a chunk takes more than one tile.
                if C > BLOCK_C:
                    for first in range(0, C, BLOCK_C):
                        c = first + tl.arange(0, BLOCK_C)
                        # [C, D]
                        b_keys = rows_tile(p_keys, positions_ptr, c, d, length, keys_c, D)
                        if SHARED:
                            b_values = b_keys
                        else:
                            # [C, V]
                            b_values = rows_tile(p_values, positions_ptr, c, v, length, values_c, V)
                        logits = tl.dot(b_query, tl.trans(b_keys), input_precision="tf32x3") * scale
                        attention = tl.where((c < length)[None, :], tl.exp(logits - normaliser[:, None]), 0.0)
                        value_grad = tl.dot(b_grad, tl.trans(b_values), input_precision="tf32x3")
                        delta += tl.sum(attention * value_grad, axis=1)
            for first in range(0, C, BLOCK_C):
                c = first + tl.arange(0, BLOCK_C)
                # [C, D]
                b_keys = rows_tile(p_keys, positions_ptr, c, d, length, keys_c, D)
                if SHARED:
                    b_values = b_keys
                else:
                    # [C, V]
                    b_values = rows_tile(p_values, positions_ptr, c, v, length, values_c, V)
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
    # Chunks that no query selected may hold NaN and are not loaded.
    loaded_length = tl.where(stop > start, length, 0)
    # [C, D]
    b_keys = rows_tile(
        keys_ptr + i_b * keys_b + i_m * keys_m + i_g * keys_g, positions_ptr, c, d, loaded_length, keys_c, D
    )
    if SHARED:
        b_values = b_keys
    else:
        # [C, V]
        b_values = rows_tile(
            values_ptr + i_b * values_b + i_m * values_m + i_g * values_g,
            positions_ptr,
            c,
            v,
            loaded_length,
            values_c,
            V,
        )
    # Loop over the queries that selected the chunk, tile by tile.
    for first in range(start * R, stop * R, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        m_row = row < stop * R
        # [R]
        entry = tl.load(order_ptr + row // R, mask=m_row, other=0).to(tl.int64)
        i_k, i_u, i_t = entry % K, (entry // K) % U, (entry // (K * U)) % T
        head = i_u * R + row % R
        o_row = i_b * T + i_t
        m_d, m_v = m_row[:, None] & (d < D)[None, :], m_row[:, None] & (v < V)[None, :]
        # [R, D]
        b_query = tl.load(
            query_ptr + i_b * query_b + (i_t * query_t + head * query_h)[:, None] + d[None, :],
            mask=m_d,
            other=0.0,
        )
        # [R, V]
        b_grad = tl.load(grad_ptr + ((o_row * H + head) * V)[:, None] + v[None, :], mask=m_v, other=0.0)
        # [R]
        weight = tl.load(weights_ptr + (o_row * S + i_u * S // U) * K + i_k, mask=m_row, other=0.0)
        o_normaliser = o_row * H + head
        if not JOINT:
            o_normaliser = o_normaliser * K + i_k
        # [R]
        normaliser = tl.load(normalisers_ptr + o_normaliser, mask=m_row, other=0.0)
        delta = tl.load(delta_ptr + o_normaliser, mask=m_row, other=0.0)
        # [R, C]
        logits = tl.dot(b_query, tl.trans(b_keys), input_precision="tf32x3") * scale
        readable = m_row[:, None] & (c < length)[None, :]
        attention = tl.where(readable, tl.exp(logits - normaliser[:, None]), 0.0) * weight[:, None]
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


def query_gradient_launch(
    reading: Reading,
    choice: Choice,
    outputs: AttentionOutputs,
    output_grads: OutputGrads,
    query_grad: Tensor,
    delta: Tensor,
) -> Launch:
    """Return the launch that fills `query_grad` and `delta`.

    Args:
        reading: Inputs of the op, packed for the kernels.
        choice: Options of the attention.
        outputs: Outputs of the forward pass.
        output_grads: Gradients of the read-out and its log normaliser.
        query_grad: Output, the query gradient.
        delta: Output, dot products of read-outs with their gradients. Joint attention subtracts the gradient
            of the log normaliser.
    """
    batch, time, heads, _ = reading.query.shape
    tensors = outputs._asdict() | {"grad": output_grads.out, "query_grad": query_grad, "delta": delta}
    tensors["lse_grad"] = output_grads.lse if choice.joint else None
    rows = pad_size(heads // reading.units)
    return build_launch(_query_gradient_kernel, (batch * time, reading.units), reading, choice, tensors, rows)


def memory_gradient_launch(
    reading: Reading,
    choice: Choice,
    outputs: AttentionOutputs,
    output_grads: OutputGrads,
    delta: Tensor,
    readers: tuple[Tensor, Tensor],
    memory_grads: tuple[Tensor, Tensor],
) -> Launch:
    """Return the launch that fills the gradients of keys and values.

    Args:
        reading: Inputs of the op, packed for the kernels.
        choice: Options of the attention.
        outputs: Outputs of the forward pass.
        output_grads: Gradients of the read-out and its log normaliser.
        delta: Output of the launch of `query_gradient_launch`.
        readers: Result of `list_readers`.
        memory_grads: Outputs, the gradients of keys and of values.
    """
    batch, num_chunks, length, groups, _ = reading.keys.shape
    tensors = outputs._asdict() | {"grad": output_grads.out, "delta": delta}
    tensors |= dict(zip(("order", "offsets"), readers, strict=True))
    tensors |= dict(zip(("keys_grad", "values_grad"), memory_grads, strict=True))
    tiles = triton.cdiv(length, tile_sizes(reading, _READER_ROWS)["BLOCK_C"])
    grid = (batch * groups * num_chunks, tiles)
    return build_launch(_memory_gradient_kernel, grid, reading, choice, tensors, _READER_ROWS)


def list_readers(reading: Reading) -> tuple[Tensor, Tensor]:
    """Return all selections, sorted by batch row, key head and chunk, and where each chunk's selections
    begin.

    A selection is a flat index into the array of selected chunks, `[batch rows, queries, query heads, k]`.
    """
    chunks = reading.chunks
    batch, _, coarse, _ = chunks.shape
    num_chunks, groups, units = reading.keys.shape[1], reading.keys.shape[3], reading.units
    unit = torch.arange(units, device=chunks.device)
    unit_chunks = chunks[:, :, unit * coarse // units].long()
    batch_index = torch.arange(batch, device=chunks.device).view(-1, 1, 1, 1)
    group = (unit * groups // units).view(1, 1, -1, 1)
    lists = batch * groups * num_chunks
    list_index = torch.where(
        unit_chunks < 0, lists, (batch_index * groups + group) * num_chunks + unit_chunks
    )
    sorted_lists, order = list_index.flatten().sort(stable=True)
    offsets = torch.searchsorted(sorted_lists, torch.arange(lists + 1, device=chunks.device))
    return order, offsets


def score_gradients(
    choice: Choice, weights: Tensor, delta: Tensor, lse_grad: Tensor | None
) -> Float[Tensor, "B T S K"]:
    """Return the gradient of the selected scores, through their softmax and logsumexp.

    For combine="hierarchical" only.
    """
    batch, time, coarse, _ = weights.shape
    weight_grad = delta.view(batch, time, coarse, -1, choice.top_k).sum(dim=3)
    score_grad = weights * (weight_grad - (weights * weight_grad).sum(dim=-1, keepdim=True))
    if lse_grad is None:
        return score_grad
    return score_grad + weights * lse_grad.unflatten(2, (coarse, -1)).sum(dim=3)[..., None]


def coarse_gradients(
    problem: Problem, choice: Choice, chunks: Tensor, score_grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of summary queries and summaries, from the gradient of the selected scores."""
    query, summaries = problem.summary_query, problem.summaries
    batch, time, coarse, _ = chunks.shape
    num_chunks, groups = summaries.shape[1:3]
    dense_grad = score_grad.new_zeros(batch, time, coarse, num_chunks + 1)  # last column: unused slots
    dense_grad.scatter_(
        -1, torch.where(chunks < 0, num_chunks, chunks).long(), score_grad * choice.summary_scale
    )
    dense_grad = dense_grad[..., :num_chunks].unflatten(2, (groups, -1))
    unread = ~problem.valid.any(dim=1)
    table = summaries.masked_fill(unread[:, :, None, None], 0).float()
    idle_queries = ~problem.valid.any(dim=-1)[..., None, None]
    grouped_query = query.masked_fill(idle_queries, 0).float().unflatten(2, (groups, -1))
    query_grad = torch.einsum("btgsm,bmgd->btgsd", dense_grad, table).flatten(2, 3)
    summaries_grad = torch.einsum("btgsm,btgsd->bmgd", dense_grad, grouped_query)
    return query_grad.to(query.dtype), summaries_grad.to(summaries.dtype)
