"""Attention to a sliding window with relative positions, over a segment, with its gradient by hand.

Queries go in blocks, which see one run of keys each; scores of distances are added along the diagonals of a
block's scores, and its softmax, if it has one, is one to the base 2.

Letters: B batch, T steps, W window, H heads, E width of a head, D = H * E, R = H * B; L queries and C = W + L
keys a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.heap import keep_freed


class Weights(NamedTuple):
    """The parameters of `WindowAttention`, in the order that `read_segment` takes them in."""

    query: Float[Tensor, "D D"]
    key: Float[Tensor, "D D"]
    value: Float[Tensor, "D D"]
    far: Float[Tensor, "H E W+1"]
    """What queries meet at each distance, farthest first."""
    output: Float[Tensor, "D D"]
    content_bias: Float[Tensor, "H E"]
    position_bias: Float[Tensor, "H E"]


class Block(NamedTuple):
    """Queries that see one run of keys."""

    queries: slice
    keys: slice
    hidden: Float[Tensor, "B L C"]
    """What is added to scores: 0 or -inf."""


class _Kept(NamedTuple):
    """What the way back needs of the way forward."""

    context: Float[Tensor, "B*(W+T) D"]
    content: Float[Tensor, "R T E"]
    position: Float[Tensor, "R T E"]
    keys: Float[Tensor, "R W+T E"]
    values: Float[Tensor, "R W+T E"]
    total: Float[Tensor, "R T 1"]
    read: Float[Tensor, "R T E"]
    flat: Float[Tensor, "B*T D"]


def blocks(clock: Clock, window: int, shortest: int) -> list[Block]:
    """Return the blocks of a segment: those of the queries' episodes, inside their windows, are seen."""
    time = clock.length
    length = -(-time // -(-time // max(window, shortest)))
    found = []
    for begin in range(0, time, length):
        end = min(begin + length, time)
        behind = torch.arange(end - begin)[:, None] - torch.arange(-window, end - begin)
        seen = behind.int() <= clock.step[:, begin:end].clamp(max=window).int()[..., None]
        hidden = torch.where(seen & (behind >= 0), 0.0, -math.inf)
        found.append(Block(slice(begin, end), slice(begin, end + window), hidden))
    return found


def read_segment(
    plain: Callable[..., Tensor],
    seen: list[Block],
    offset: float | None,
    x: Float[Tensor, "B T D"],
    recent: Float[Tensor, "B W D"],
    *weights: Tensor,
) -> Float[Tensor, "B T D"]:
    """Return what every step of a segment reads.

    Args:
        plain: The same of `x`, `recent` and weights, of plain operations.
        seen: The blocks of the segment.
        offset: What is added to a score before its sigmoid; None for a softmax.
        x: Inputs.
        recent: Those before.
        weights: Those of `Weights`.
    """
    return _Segment.apply(plain, seen, offset, x, recent, *weights)


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plain, seen, offset, x, recent, *weights):
        keep_freed()
        y, kept, scores = _forward(seen, offset, x, recent, Weights(*weights))
        ctx.plain, ctx.seen, ctx.offset, ctx.count = plain, seen, offset, 2 + len(weights)
        ctx.save_for_backward(x, recent, *weights, *kept, *scores)
        return y

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        given, saved = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        if is_wanted_again(grad):
            return None, None, None, *by_graph(ctx.plain, given, grad)
        kept, scores = _Kept(*saved[: len(_Kept._fields)]), saved[len(_Kept._fields) :]
        x, recent, *weights = given
        past = recent if ctx.needs_input_grad[4] else None
        return (
            None,
            None,
            None,
            *_backward(ctx.seen, ctx.offset, grad, x, past, Weights(*weights), kept, scores),
        )


def _forward(
    seen: list[Block], offset: float | None, x: Tensor, recent: Tensor, w: Weights
) -> tuple[Tensor, _Kept, list[Tensor]]:
    batch, time, dim = x.shape
    heads, width = w.content_bias.shape
    scale = width**-0.5 / _unit(offset)
    query = torch.mm(x.reshape(-1, dim), w.query.T * scale)
    content, position = (
        _by_head(query + bias.flatten() * scale, batch, heads) for bias in (w.content_bias, w.position_bias)
    )
    context = torch.cat([recent, x], dim=1).flatten(0, 1)
    both = torch.mm(context, torch.cat([w.key, w.value]).T)
    keys, values = (_by_head(part, batch, heads) for part in both.split(dim, dim=1))
    by_distance = torch.bmm(position.view(heads, -1, width), w.far).view(heads * batch, time, -1)
    total, read, scores = content.new_empty(len(content), time, 1), torch.empty_like(content), []
    for queries, columns, hidden in seen:
        score = torch.bmm(content[:, queries], keys[:, columns].transpose(1, 2))
        _diagonals(score, by_distance.shape[2]).add_(by_distance[:, queries])
        score.view(heads, *hidden.shape).add_(hidden)
        if offset is None:
            score.sub_(score.amax(dim=-1, keepdim=True)).exp2_()
            torch.sum(score, dim=-1, keepdim=True, out=total[:, queries])
            torch.div(torch.bmm(score, values[:, columns]), total[:, queries], out=read[:, queries])
        else:
            read[:, queries] = torch.bmm(score.add_(offset).sigmoid_(), values[:, columns])
        scores.append(score)
    flat = _by_step(read, batch)
    kept = _Kept(context, content, position, keys, values, total, read, flat)
    return torch.mm(flat, w.output.T).view(x.shape), kept, scores


def _backward(
    seen: list[Block],
    offset: float | None,
    grad: Tensor,
    x: Tensor,
    recent: Tensor | None,
    w: Weights,
    kept: _Kept,
    scores: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `x`, of `recent` if it is given, and of all weights."""
    batch, time, dim = x.shape
    heads, width = w.content_bias.shape
    scale, window, unit = width**-0.5, w.far.shape[2] - 1, _unit(offset)
    grad = grad.reshape(-1, dim)
    of_read = _by_head(grad @ w.output, batch, heads)
    of_read = of_read.div_(kept.total) if offset is None else of_read
    passed = (of_read * kept.read).sum(dim=-1, keepdim=True) if offset is None else None
    of_content = torch.empty_like(kept.content)
    of_distance = of_content.new_empty(*of_content.shape[:2], window + 1)
    of_keys, of_values = torch.zeros_like(kept.keys), torch.zeros_like(kept.values)
    for (queries, columns, _), score in zip(seen, scores, strict=True):
        of_score = torch.bmm(of_read[:, queries], kept.values[:, columns].transpose(1, 2))
        if passed is None:
            of_score.mul_(score - score.square())
        else:
            of_score.sub_(passed[:, queries]).mul_(score)
        of_content[:, queries] = torch.bmm(of_score, kept.keys[:, columns])
        of_distance[:, queries] = _diagonals(of_score, window + 1)
        of_keys[:, columns] += torch.bmm(of_score.transpose(1, 2), kept.content[:, queries])
        of_values[:, columns] += torch.bmm(score.transpose(1, 2), of_read[:, queries])
    of_distance = of_distance.view(heads, batch * time, window + 1)
    of_position = torch.bmm(of_distance, w.far.transpose(1, 2))
    of_far = torch.bmm(kept.position.view(heads, -1, width).transpose(1, 2), of_distance)
    biases = (part.view(heads, -1, width).sum(dim=1) * scale for part in (of_content, of_position))
    of_query = _by_step(of_content.view(of_position.shape).add(of_position).view(of_content.shape), batch)
    of_both = grad.new_empty(len(kept.context), 2 * dim)
    by_step = of_both.view(batch, -1, 2, heads, width).unbind(2)
    of_keys, of_values = (
        part.unflatten(0, (heads, batch)).permute(1, 2, 0, 3) for part in (of_keys, of_values)
    )
    torch.mul(of_keys, unit, out=by_step[0])
    by_step[1].copy_(of_values)
    to_context = torch.cat([w.key, w.value])
    own = of_both.view(batch, -1, 2 * dim)[:, window:].reshape(-1, 2 * dim)
    of_x = torch.mm(own, to_context).addmm_(of_query, w.query * scale)
    of_weights = of_both.T @ kept.context
    return (
        of_x.view(x.shape),
        None if recent is None else of_both.view(batch, -1, 2 * dim)[:, :window] @ to_context,
        (of_query.T @ x.reshape(-1, dim)) * scale,
        of_weights[:dim],
        of_weights[dim:],
        of_far.mul_(unit),
        grad.T @ kept.flat,
        *biases,
    )


def _unit(offset: float | None) -> float:
    """Return what a score's unit is worth: to the base 2, a softmax takes a third of the time."""
    return math.log(2) if offset is None else 1.0


def _by_head(x: Float[Tensor, "steps D"], batch: int, heads: int) -> Float[Tensor, "R T E"]:
    steps = x.unflatten(0, (batch, -1)).unflatten(2, (heads, -1))
    return steps.permute(2, 0, 1, 3).reshape(heads * batch, steps.shape[1], -1)


def _by_step(x: Float[Tensor, "R T E"], batch: int) -> Float[Tensor, "steps D"]:
    return x.view(-1, batch, *x.shape[1:]).permute(1, 2, 0, 3).reshape(batch * x.shape[1], -1)


def _diagonals(score: Float[Tensor, "R L C"], count: int) -> Float[Tensor, "R L count"]:
    """View the places that are at each distance: in row j those from j on."""
    rows, length, columns = score.shape
    return score.as_strided((rows, length, count), (length * columns, columns + 1, 1))
