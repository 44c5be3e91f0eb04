"""Attention to every chunk by large products, with weight zero for unselected chunks; best for few chunks.

Scores have the layout `[N, M, C, R]`, with the queries contiguous in memory. So the softmax over the steps of
a chunk, and the product with one weight per chunk, run over contiguous memory.

Letters as in `chunk_retrieval`. N = B * G, and R = H / G * T is the number of queries of all heads that read
one key head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.derivatives import differentiate_graph, needs_graph
from scrubjay.kernels.dispatch import needs_plain_autograd, without_autocast
from scrubjay.kernels.normalisers import log_normaliser, softmax_or_zero
from scrubjay.kernels.retrieval.problem import Choice, Reading

# Scores per block, so that a block stays in the CPU caches between operations.
_BLOCK_SCALARS = 1 << 17


def dense(
    reading: Reading, choice: Choice, in_order: bool = False
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"] | None]:
    """Return the read-out and, if `choice.return_lse` is set, its log normaliser.

    `in_order` means that every query lists all chunks in order.
    """
    query, keys, values, index, scores, positions, lengths = reading
    assert scores is not None
    batch, time, heads, width = query.shape
    chunks, length, groups = keys.shape[1:4]
    dtype = reading.score_dtype
    scaled_query = (query.to(dtype) * choice.scale).view(batch, time, groups, heads // groups, width)
    scaled_query = scaled_query.permute(0, 2, 4, 3, 1).reshape(batch * groups, width, -1)
    flat_keys = keys.permute(0, 3, 1, 2, 4).reshape(batch * groups, chunks * length, width).to(dtype)
    flat_values = values.permute(0, 3, 4, 1, 2).reshape(batch * groups, -1, chunks * length)
    weights = (scores > -math.inf) if choice.joint else softmax_or_zero(scores)
    weights = _per_query_head(weights if in_order else _spread(weights, index, chunks), heads, groups)
    lse = None
    if choice.joint or positions is not None or lengths is not None:
        out, lse = _attend_general(reading, choice, scaled_query, flat_keys, flat_values, weights)
    else:
        out = attend_all(scaled_query, flat_keys, flat_values, weights)
    out = out.view(batch, groups, -1, heads // groups, time).permute(0, 4, 1, 3, 2)
    if choice.return_lse and not choice.joint:
        lse = log_normaliser(scores).repeat_interleave(heads // scores.shape[2], dim=2)
    return out.reshape(batch, time, heads, values.shape[-1]), lse


def _attend_general(
    reading: Reading, choice: Choice, query: Tensor, keys: Tensor, values: Tensor, weights: Tensor
) -> tuple[Float[Tensor, "N V R"], Float[Tensor, "B T H"] | None]:
    """Attend with the options that `attend_all` does not support: positions, lengths and joint attention."""
    positions, lengths = reading.positions, reading.lengths
    batch, time, heads, _ = reading.query.shape
    chunks, length, groups = reading.keys.shape[1:4]
    logits = torch.bmm(keys, query).unflatten(1, (chunks, length))
    if positions is not None:
        logits = logits + (positions.to(logits.dtype) @ query)[:, None]
    beyond = None
    if lengths is not None:
        beyond = torch.arange(length, device=keys.device) >= lengths[..., None]
        beyond = beyond[:, None].expand(-1, groups, -1, -1).flatten(0, 1)[..., None]
    lse = None
    if choice.joint:
        drop = ~weights.expand(-1, groups, -1, -1, heads // groups, -1).reshape(-1, chunks, 1, query.shape[2])
        logits = logits.masked_fill(drop if beyond is None else drop | beyond, -math.inf)
        flat = logits.flatten(1, 2).mT
        attention = softmax_or_zero(flat).mT.view_as(logits)
        if choice.return_lse:
            lse = log_normaliser(flat).view(batch, heads, time).transpose(1, 2).contiguous()
    else:
        if beyond is None:
            attention = torch.softmax(logits, dim=2)
        else:
            attention = softmax_or_zero(logits.masked_fill(beyond, -math.inf).mT).mT
        attention = _apply_weights(attention, weights)
    attention = attention.to(values.dtype)
    out = torch.bmm(values, attention.flatten(1, 2))
    return out if positions is None else out + positions.T @ attention.sum(dim=1), lse


def attend_all(
    query: Float[Tensor, "N D R"],
    keys: Float[Tensor, "N MC D"],
    values: Float[Tensor, "N V MC"],
    weights: Float[Tensor, "B #G M 1 #HG T"],
) -> Float[Tensor, "N V R"]:
    """Attend to each chunk separately; return the sum of the outputs, each multiplied by its weight.

    All inputs must be finite.
    """
    inputs = (query, keys, values, weights)
    plain = values.dtype != query.dtype or query.is_cuda or needs_plain_autograd(*inputs)
    return _attend_plain(*inputs) if plain else _Attention.apply(*inputs)


def _attend_plain(query: Tensor, keys: Tensor, values: Tensor, weights: Tensor) -> Float[Tensor, "N V R"]:
    attention = _apply_weights(_attention(query, keys, weights.shape[2]), weights)
    return torch.bmm(values, attention.flatten(1, 2).to(values.dtype))


class _Attention(torch.autograd.Function):
    """Autograd function of attention to all chunks, block by block. For backward it saves only its inputs."""

    @staticmethod
    def forward(ctx, query, keys, values, weights):
        ctx.save_for_backward(query, keys, values, weights)
        out = query.new_empty(len(query), values.shape[1], query.shape[2])
        for block, rows, heads in _blocks(query, keys, weights):
            attention = _attention(query[block], keys[block], weights.shape[2])
            _multiply_weights(attention, weights[rows, heads], attention)
            torch.bmm(values[block], attention.flatten(1, 2), out=out[block])
        return out

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        inputs: Sequence[Tensor] = ctx.saved_tensors
        if needs_graph(grad):
            return tuple(differentiate_graph(_attend_plain, inputs, grad))
        query, keys, values, weights = inputs
        needs_memory_grad = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        grad = grad.contiguous()
        query_grad, weights_grad = torch.empty_like(query), torch.zeros_like(weights)
        # Same layout as in the forward pass: features before steps.
        keys_grad = keys.new_empty(keys.mT.shape) if needs_memory_grad else None
        values_grad = values.new_empty(values.shape) if needs_memory_grad else None
        for block, rows, heads in _blocks(query, keys, weights):
            attention = _attention(query[block], keys[block], weights.shape[2])
            attention_grad = torch.bmm(values[block].mT, grad[block]).view_as(attention)
            share = (attention * attention_grad).sum(dim=2, keepdim=True)
            block_weights_grad = weights_grad[rows, heads]
            block_weights_grad += _split_heads(share, block_weights_grad).sum_to_size(
                block_weights_grad.shape
            )
            _multiply_weights(attention, weights[rows, heads], attention)
            attention_grad.sub_(share).mul_(attention)
            attention_grad, attention = attention_grad.flatten(1, 2), attention.flatten(1, 2)
            torch.bmm(keys[block].mT, attention_grad, out=query_grad[block])
            if keys_grad is not None and values_grad is not None:
                torch.bmm(query[block], attention_grad.mT, out=keys_grad[block])
                torch.bmm(grad[block], attention.mT, out=values_grad[block])
        return query_grad, None if keys_grad is None else keys_grad.mT, values_grad, weights_grad


def _attention(query: Tensor, keys: Tensor, chunks: int) -> Float[Tensor, "N M C R"]:
    """Return each query's softmax over the steps of every chunk."""
    return torch.softmax(torch.bmm(keys, query).unflatten(1, (chunks, -1)), dim=2)


def _split_heads(per_step: Float[Tensor, "N M C R"], weights: Tensor) -> Float[Tensor, "B G M C HG T"]:
    batch, time = weights.shape[0], weights.shape[5]
    return per_step.view(batch, -1, *per_step.shape[1:3], per_step.shape[3] // time, time)


def _apply_weights(attention: Float[Tensor, "N M C R"], weights: Tensor) -> Float[Tensor, "N M C R"]:
    return (_split_heads(attention, weights) * weights).view_as(attention)


def _multiply_weights(attention: Tensor, weights: Tensor, out: Tensor) -> None:
    torch.mul(_split_heads(attention, weights), weights, out=_split_heads(out, weights))


def _blocks(query: Tensor, keys: Tensor, weights: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield one tuple of three slices for each block.

    The first slice is for dim 0 of `query`. The second and third are for dims 0 and 1 of `weights`. A block
    holds all key heads of some sequences, or some key heads of one sequence.
    """
    batch, weight_groups = weights.shape[:2]
    groups, group_scalars = len(query) // batch, keys.shape[1] * query.shape[2]
    rows = _BLOCK_SCALARS // (groups * group_scalars)
    if rows:
        for first in range(0, batch, rows):
            yield slice(first * groups, (first + rows) * groups), slice(first, first + rows), slice(None)
        return
    block_groups = max(1, _BLOCK_SCALARS // group_scalars)
    for row in range(batch):
        for group in range(0, groups, block_groups):
            block = slice(row * groups + group, row * groups + min(group + block_groups, groups))
            yield (
                block,
                slice(row, row + 1),
                slice(group, group + block_groups) if weight_groups > 1 else slice(None),
            )


def _spread(entries: Tensor, index: Int[Tensor, "B T S K"], chunks: int) -> Tensor:
    """Scatter the entries of selected chunks into `[B, T, S, M]`; zeros for unselected chunks."""
    table = entries.new_zeros(*entries.shape[:-1], chunks + 1)
    return table.scatter(-1, index, entries)[..., :chunks]


def _per_query_head(
    per_coarse_head: Float[Tensor, "B T S M"] | Bool[Tensor, "B T S M"], heads: int, groups: int
) -> Tensor:
    """Expand `[B, T, S, M]` to the query heads, in the layout `[B, G, M, 1, H / G, T]`.

    If all heads share one selection, dims G and H / G have size 1.
    """
    batch, time, coarse, chunks = per_coarse_head.shape
    if coarse == 1:
        return per_coarse_head.permute(0, 2, 3, 1).contiguous()[:, :, :, None, None]
    spread = per_coarse_head.repeat_interleave(heads // coarse, dim=2)
    spread = spread.view(batch, time, groups, heads // groups, chunks)
    return spread.permute(0, 2, 4, 3, 1)[:, :, :, None].contiguous()
