"""Attention of a segment to what is stored and to its own steps, by scores with a bias, its gradient by hand.

Twenty operations forward and as many back, instead of a graph of sixty, a softmax to the base 2, and no
gradient for what is stored unless somebody asks for it. A second derivative, and all that is not plain
numbers on a CPU, goes the plain way.

Letters: B batch, T steps, S what is stored, N = S + T, M the last columns, at most N, H heads, E the width of
a head, D = H * E, R = B * H.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.derivatives import by_graph, has_own_gradient, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.memory.parts.heap import keep_freed

_LOG2_E = math.log2(math.e)


class Asked(NamedTuple):
    """What a segment asks, and whom."""

    query: Float[Tensor, "B T D"]
    keys: Float[Tensor, "B T D"]
    values: Float[Tensor, "B T D"]
    stored_keys: Float[Tensor, "B S D"]
    stored_values: Float[Tensor, "B S D"]
    hidden: Float[Tensor, "B T N"]
    """Added to scores of what is stored and, behind it, of the segment: a constant, -inf for what is not to
    be seen. A step must see something."""
    bias: Float[Tensor, "B T M"]
    """Added to scores of the last columns."""
    places: Float[Tensor, "H T M"]
    """Added to a head's scores of the last columns."""


def attend(asked: Asked) -> Float[Tensor, "B T D"]:
    """Return what a segment reads."""
    # A gradient of what is hidden is for the plain way alone.
    if asked.hidden.requires_grad or not has_own_gradient(*asked):
        return _plainly(*asked)
    return _Attention.apply(_plainly, *asked)


def weigh(asked: Asked) -> Float[Tensor, "B H T N"]:
    """Return how much of what a step reads is of each: of what is stored, then of the segment."""
    heads, last = len(asked.places), asked.places.shape[2]
    query, keys = (
        by_head(asked.query, heads),
        by_head(torch.cat([asked.stored_keys, asked.keys], dim=1), heads),
    )
    added = functional.pad(asked.bias[:, None] + asked.places, (keys.shape[2] - last, 0))
    added = added + asked.hidden[:, None]
    return torch.softmax((query * query.shape[-1] ** -0.5) @ keys.mT + added.to(query.dtype), dim=-1)


def by_head(x: Float[Tensor, "B steps D"], heads: int) -> Float[Tensor, "B H steps E"]:
    """Return a view with the parts of heads apart."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _plainly(*asked: Tensor) -> Tensor:
    given = Asked(*asked)
    values = by_head(torch.cat([given.stored_values, given.values], dim=1), len(given.places))
    return (weigh(given) @ values).transpose(1, 2).flatten(2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plain, *given):
        keep_freed()
        query, keys, values, stored_keys, stored_values, hidden, bias, places = given
        heads, last = len(places), places.shape[2]
        batch, time, dim = query.shape
        asked = by_head(query, heads) * ((dim // heads) ** -0.5 * _LOG2_E)
        asked = asked.reshape(batch * heads, time, dim // heads)
        columns = [_columns(*pair, heads) for pair in ((stored_keys, keys), (stored_values, values))]
        scores = torch.bmm(asked, columns[0].mT)
        of_heads = scores.unflatten(0, (batch, heads))
        first = of_heads.shape[3] - last
        of_heads[..., :first].add_(hidden[:, None, :, :first], alpha=_LOG2_E)
        of_heads[..., first:].add_((hidden[..., first:] + bias)[:, None], alpha=_LOG2_E)
        of_heads[..., first:].add_(places, alpha=_LOG2_E)
        # exp2(x * log2(e)) takes a third of the time of exp(x).
        scores.sub_(scores.amax(dim=-1, keepdim=True)).exp2_()
        total = scores.sum(dim=-1, keepdim=True)
        read = torch.bmm(scores, columns[1]).div_(total)
        ctx.plain = plain
        ctx.save_for_backward(*given, asked, *columns, scores, total, read)
        return read.unflatten(0, (batch, heads)).transpose(1, 2).reshape(query.shape)

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        given, kept = ctx.saved_tensors[: len(Asked._fields)], ctx.saved_tensors[len(Asked._fields) :]
        if is_wanted_again(grad):
            return None, *by_graph(ctx.plain, given, grad)
        asked, keys, values, scores, total, read = kept
        batch, time, dim = grad.shape
        heads, last = len(given[-1]), given[-1].shape[2]
        whole, of_head = scores.shape[2], (batch, heads)
        of_read = by_head(grad, heads).reshape(read.shape) / total
        of_scores = torch.bmm(of_read, values.mT)
        of_scores.sub_((of_read * read).sum(dim=-1, keepdim=True)).mul_(scores)
        of_query = torch.bmm(of_scores, keys).mul_((dim // heads) ** -0.5)
        # Of what is stored only what somebody waits for.
        first = 0 if any(ctx.needs_input_grad[4:6]) else whole - time
        of_keys = torch.bmm(of_scores[..., first:].mT, asked).mul_(1 / _LOG2_E)
        of_values = torch.bmm(scores[..., first:].mT, of_read)
        of_query, of_keys, of_values = (
            found.unflatten(0, of_head).transpose(1, 2).flatten(2) for found in (of_query, of_keys, of_values)
        )
        of_stored = whole - time - first
        by_heads = of_scores.unflatten(0, of_head)[..., whole - last :]
        return (
            None,
            of_query,
            of_keys[:, of_stored:],
            of_values[:, of_stored:],
            of_keys[:, :of_stored] if ctx.needs_input_grad[4] else None,
            of_values[:, :of_stored] if ctx.needs_input_grad[5] else None,
            None,
            by_heads.sum(dim=1) if ctx.needs_input_grad[7] else None,
            by_heads.sum(dim=0) if ctx.needs_input_grad[8] else None,
        )


def _columns(
    stored: Float[Tensor, "B S D"], own: Float[Tensor, "B T D"], heads: int
) -> Float[Tensor, "R N E"]:
    """Lay what is stored and what is the segment's own side by side, heads apart."""
    batch, count, dim = stored.shape
    columns = own.new_empty(batch, heads, count + own.shape[1], dim // heads)
    columns[:, :, :count] = by_head(stored, heads)
    columns[:, :, count:] = by_head(own, heads)
    return columns.flatten(0, 1)
