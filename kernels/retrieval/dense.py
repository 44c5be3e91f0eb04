"""Attention to every chunk, the unselected weighted by zero: large products, best for few chunks.

Queries lie side by side in memory and the steps of a chunk apart, so that a softmax over steps and products
with what is alike for all of them run along whole lines. Letters as in `chunk_retrieval`; N = B * G, and
R = H / G * T are the queries of all heads that read one key head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast, without_own_gradient
from scrubjay.kernels.normalisers import log_normaliser, softmax_or_zero
from scrubjay.kernels.retrieval.problem import Choice, Reading

# Scores of a block, which is to stay in the caches from one operation to the next.
_BLOCK_SCALARS = 1 << 17


def dense(
    reading: Reading, choice: Choice, in_order: bool = False
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"] | None]:
    """Return what is read and, if asked for, its normaliser.

    `in_order` says that every query lists all chunks as they come.
    """
    query, keys, values, index, kept, positions, lengths = reading
    assert kept is not None
    batch, time, heads, width = query.shape
    chunks, length, groups = keys.shape[1:4]
    dtype = reading.score_dtype
    scaled = (query.to(dtype) * choice.scale).view(batch, time, groups, heads // groups, width)
    scaled = scaled.permute(0, 2, 4, 3, 1).reshape(batch * groups, width, -1)
    flat_keys = keys.permute(0, 3, 1, 2, 4).reshape(batch * groups, chunks * length, width).to(dtype)
    flat_values = values.permute(0, 3, 4, 1, 2).reshape(batch * groups, -1, chunks * length)
    weights = (kept > -math.inf) if choice.joint else softmax_or_zero(kept)
    weights = _per_query_head(weights if in_order else _spread(weights, index, chunks), heads, groups)
    lse = None
    if choice.joint or positions is not None or lengths is not None:
        out, lse = _with_all(reading, choice, scaled, flat_keys, flat_values, weights)
    else:
        out = attend_all(scaled, flat_keys, flat_values, weights)
    out = out.view(batch, groups, -1, heads // groups, time).permute(0, 4, 1, 3, 2)
    if choice.return_lse and not choice.joint:
        lse = log_normaliser(kept).repeat_interleave(heads // kept.shape[2], dim=2)
    return out.reshape(batch, time, heads, values.shape[-1]), lse


def _with_all(
    reading: Reading, choice: Choice, query: Tensor, keys: Tensor, values: Tensor, weights: Tensor
) -> tuple[Float[Tensor, "N V R"], Float[Tensor, "B T H"] | None]:
    """Read with positions, lengths and one softmax over all chunks, where they are asked for."""
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
        attention = _weighted(attention, weights)
    attention = attention.to(values.dtype)
    out = torch.bmm(values, attention.flatten(1, 2))
    return out if positions is None else out + positions.T @ attention.sum(dim=1), lse


def attend_all(
    query: Float[Tensor, "N D R"],
    keys: Float[Tensor, "N MC D"],
    values: Float[Tensor, "N V MC"],
    weights: Float[Tensor, "B #G M 1 #HG T"],
) -> Float[Tensor, "N V R"]:
    """Return the sum of one attention per chunk, each times its weight; all that is given is finite."""
    inputs = (query, keys, values, weights)
    plain = values.dtype != query.dtype or query.is_cuda or without_own_gradient(*inputs)
    return _by_torch(*inputs) if plain else _Attention.apply(*inputs)


def _by_torch(query: Tensor, keys: Tensor, values: Tensor, weights: Tensor) -> Float[Tensor, "N V R"]:
    attention = _weighted(_attention(query, keys, weights.shape[2]), weights)
    return torch.bmm(values, attention.flatten(1, 2).to(values.dtype))


class _Attention(torch.autograd.Function):
    """The same in blocks, of which nothing is kept for the way back but what was given."""

    @staticmethod
    def forward(ctx, query, keys, values, weights):
        ctx.save_for_backward(query, keys, values, weights)
        out = query.new_empty(len(query), values.shape[1], query.shape[2])
        for own, rows, heads in _blocks(query, keys, weights):
            attention = _attention(query[own], keys[own], weights.shape[2])
            _weigh(attention, weights[rows, heads], attention)
            torch.bmm(values[own], attention.flatten(1, 2), out=out[own])
        return out

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        given: Sequence[Tensor] = ctx.saved_tensors
        if is_wanted_again(grad):
            return tuple(by_graph(_by_torch, given, grad))
        query, keys, values, weights = given
        wants_memory = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        grad = grad.contiguous()
        of_query, of_weights = torch.empty_like(query), torch.zeros_like(weights)
        # As the forward pass: features before steps.
        of_keys = keys.new_empty(keys.mT.shape) if wants_memory else None
        of_values = values.new_empty(values.shape) if wants_memory else None
        for own, rows, heads in _blocks(query, keys, weights):
            attention = _attention(query[own], keys[own], weights.shape[2])
            slope = torch.bmm(values[own].mT, grad[own]).view_as(attention)
            share = (attention * slope).sum(dim=2, keepdim=True)
            to_weights = of_weights[rows, heads]
            to_weights += _by_head(share, to_weights).sum_to_size(to_weights.shape)
            _weigh(attention, weights[rows, heads], attention)
            slope.sub_(share).mul_(attention)
            slope, attention = slope.flatten(1, 2), attention.flatten(1, 2)
            torch.bmm(keys[own].mT, slope, out=of_query[own])
            if of_keys is not None and of_values is not None:
                torch.bmm(query[own], slope.mT, out=of_keys[own])
                torch.bmm(grad[own], attention.mT, out=of_values[own])
        return of_query, None if of_keys is None else of_keys.mT, of_values, of_weights


def _attention(query: Tensor, keys: Tensor, chunks: int) -> Float[Tensor, "N M C R"]:
    """Return each query's softmax over the steps of every chunk."""
    return torch.softmax(torch.bmm(keys, query).unflatten(1, (chunks, -1)), dim=2)


def _by_head(per_step: Float[Tensor, "N M C R"], weights: Tensor) -> Float[Tensor, "B G M C HG T"]:
    batch, time = weights.shape[0], weights.shape[5]
    return per_step.view(batch, -1, *per_step.shape[1:3], per_step.shape[3] // time, time)


def _weighted(attention: Float[Tensor, "N M C R"], weights: Tensor) -> Float[Tensor, "N M C R"]:
    return (_by_head(attention, weights) * weights).view_as(attention)


def _weigh(attention: Tensor, weights: Tensor, out: Tensor) -> None:
    torch.mul(_by_head(attention, weights), weights, out=_by_head(out, weights))


def _blocks(query: Tensor, keys: Tensor, weights: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield which of N, which rows of the batch and, of the weights, which heads: all, or some of one row."""
    batch, apart = weights.shape[:2]
    groups, each = len(query) // batch, keys.shape[1] * query.shape[2]
    rows = _BLOCK_SCALARS // (groups * each)
    if rows:
        for first in range(0, batch, rows):
            yield slice(first * groups, (first + rows) * groups), slice(first, first + rows), slice(None)
        return
    some = max(1, _BLOCK_SCALARS // each)
    for row in range(batch):
        for group in range(0, groups, some):
            own = slice(row * groups + group, row * groups + min(group + some, groups))
            yield own, slice(row, row + 1), slice(group, group + some) if apart > 1 else slice(None)


def _spread(kept: Tensor, index: Int[Tensor, "B T S K"], chunks: int) -> Tensor:
    """Return `[B, T, S, M]` with what is kept at its chunk, zeros elsewhere."""
    table = kept.new_zeros(*kept.shape[:-1], chunks + 1)
    return table.scatter(-1, index, kept)[..., :chunks]


def _per_query_head(
    per_coarse_head: Float[Tensor, "B T S M"] | Bool[Tensor, "B T S M"], heads: int, groups: int
) -> Tensor:
    """Return `[B, G, M, 1, H / G, T]`, 1 for G and H / G where all heads share one selection."""
    batch, time, coarse, chunks = per_coarse_head.shape
    if coarse == 1:
        return per_coarse_head.permute(0, 2, 3, 1).contiguous()[:, :, :, None, None]
    spread = per_coarse_head.repeat_interleave(heads // coarse, dim=2)
    spread = spread.view(batch, time, groups, heads // groups, chunks)
    return spread.permute(0, 2, 4, 3, 1)[:, :, :, None].contiguous()
