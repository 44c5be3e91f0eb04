"""Sliding-window attention with relative positions over a segment, with a custom backward pass.

Queries are processed in blocks, each with one contiguous range of keys. Scores by distance are added along
the diagonals of a block's scores. The softmax is to the base 2.

Axes: B batch, T steps, W window, H heads, E width of a head, D = H * E, R = H * B, L queries of a block,
C = W + L keys of a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.kernels.derivatives import run_custom, supports_custom_backward
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.window import SMALLEST_BLOCK, WindowWeights

_MAX_BLOCKS = 8
"""Largest number of blocks of a segment with a custom backward pass."""


class QueryBlock(NamedTuple):
    """Block of queries with one contiguous range of keys."""

    queries: slice
    keys: slice
    mask: Float[Tensor, "B L C"]
    """Additive mask of the scores: 0 or -inf."""


class _SavedTensors(NamedTuple):
    """Tensors that the forward pass saves for the backward pass."""

    context: Float[Tensor, "B*(W+T) D"]
    content: Float[Tensor, "R T E"]
    position: Float[Tensor, "R T E"]
    keys: Float[Tensor, "R W+T E"]
    values: Float[Tensor, "R W+T E"]
    total: Float[Tensor, "R T 1"]
    read: Float[Tensor, "R T E"]
    flat: Float[Tensor, "B*T D"]


class SegmentReader:
    """Attention of `WindowAttention` over a segment, with a custom backward pass.

    Args:
        window: Number of earlier steps to which a step attends.
        offset: Number to add to a score before the sigmoid; None uses a softmax.
    """

    def __init__(self, window: int, offset: float | None) -> None:
        self.window, self.offset = window, offset

    @staticmethod
    def supports(*tensors: Tensor) -> bool:
        """Return True if the custom backward pass supports these inputs and weights."""
        return len(tensors[0]) > 0 and supports_custom_backward(*tensors)

    def build_blocks(self, clock: Clock) -> list[QueryBlock] | None:
        """Return the query blocks of a segment; None if its length rules out the custom backward pass.

        Masks hide keys of other episodes and keys outside the window.
        """
        time, window = clock.length, self.window
        if not 1 < time <= _MAX_BLOCKS * max(window, SMALLEST_BLOCK):
            return None
        length = -(-time // -(-time // max(window, SMALLEST_BLOCK)))
        blocks = []
        for begin in range(0, time, length):
            end = min(begin + length, time)
            behind = torch.arange(end - begin)[:, None] - torch.arange(-window, end - begin)
            visible = behind.int() <= clock.step[:, begin:end].clamp(max=window).int()[..., None]
            mask = torch.where(visible & (behind >= 0), 0.0, -math.inf)
            blocks.append(QueryBlock(slice(begin, end), slice(begin, end + window), mask))
        return blocks

    def read(
        self,
        plain: Callable[..., Tensor],
        blocks: list[QueryBlock],
        x: Float[Tensor, "B T D"],
        recent: Float[Tensor, "B W D"],
        weights: WindowWeights,
    ) -> Float[Tensor, "B T D"]:
        """Return the attention output of every step of a segment.

        `plain` is a differentiable torch function that computes the same output from `x`, `recent` and the
        weights.
        """
        forward = functools.partial(_forward, blocks, self.offset)
        backward = functools.partial(_backward, blocks, self.offset)
        return run_custom(plain, forward, backward, x, recent, *weights)[0]


def _forward(
    blocks: list[QueryBlock], offset: float | None, x: Tensor, recent: Tensor, *weights: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    w = WindowWeights(*weights)
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
    by_distance = torch.bmm(position.view(heads, -1, width), w.distance_keys).view(heads * batch, time, -1)
    total, read, scores = content.new_empty(len(content), time, 1), torch.empty_like(content), []
    for queries, columns, mask in blocks:
        score = torch.bmm(content[:, queries], keys[:, columns].transpose(1, 2))
        _diagonals(score, by_distance.shape[2]).add_(by_distance[:, queries])
        score.view(heads, *mask.shape).add_(mask)
        if offset is None:
            score.sub_(score.amax(dim=-1, keepdim=True)).exp2_()
            torch.sum(score, dim=-1, keepdim=True, out=total[:, queries])
            torch.div(torch.bmm(score, values[:, columns]), total[:, queries], out=read[:, queries])
        else:
            read[:, queries] = torch.bmm(score.add_(offset).sigmoid_(), values[:, columns])
        scores.append(score)
    flat = _by_step(read, batch)
    tensors = _SavedTensors(context, content, position, keys, values, total, read, flat)
    return [torch.mm(flat, w.output.T).view(x.shape)], [*tensors, *scores]


def _backward(
    blocks: list[QueryBlock],
    offset: float | None,
    inputs: Sequence[Tensor],
    saved_tensors: Sequence[Tensor],
    grads: Sequence[Tensor],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `x`, of `recent` if it needs one, and of all weights."""
    x, w, count = inputs[0], WindowWeights(*inputs[2:]), len(_SavedTensors._fields)
    tensors, scores = _SavedTensors(*saved_tensors[:count]), saved_tensors[count:]
    batch, time, dim = x.shape
    heads, width = w.content_bias.shape
    scale, window, unit = width**-0.5, w.distance_keys.shape[2] - 1, _unit(offset)
    grad = grads[0].reshape(-1, dim)
    grad_read = _by_head(grad @ w.output, batch, heads)
    grad_read = grad_read.div_(tensors.total) if offset is None else grad_read
    row_dot = (grad_read * tensors.read).sum(dim=-1, keepdim=True) if offset is None else None
    grad_content = torch.empty_like(tensors.content)
    grad_distance = grad_content.new_empty(*grad_content.shape[:2], window + 1)
    grad_keys, grad_values = torch.zeros_like(tensors.keys), torch.zeros_like(tensors.values)
    for (queries, columns, _), score in zip(blocks, scores, strict=True):
        grad_score = torch.bmm(grad_read[:, queries], tensors.values[:, columns].transpose(1, 2))
        if row_dot is None:
            grad_score.mul_(score - score.square())
        else:
            grad_score.sub_(row_dot[:, queries]).mul_(score)
        grad_content[:, queries] = torch.bmm(grad_score, tensors.keys[:, columns])
        grad_distance[:, queries] = _diagonals(grad_score, window + 1)
        grad_keys[:, columns] += torch.bmm(grad_score.transpose(1, 2), tensors.content[:, queries])
        grad_values[:, columns] += torch.bmm(score.transpose(1, 2), grad_read[:, queries])
    grad_distance = grad_distance.view(heads, batch * time, window + 1)
    grad_position = torch.bmm(grad_distance, w.distance_keys.transpose(1, 2))
    grad_distance_keys = torch.bmm(tensors.position.view(heads, -1, width).transpose(1, 2), grad_distance)
    biases = (part.view(heads, -1, width).sum(dim=1) * scale for part in (grad_content, grad_position))
    grad_query = _by_step(
        grad_content.view(grad_position.shape).add(grad_position).view(grad_content.shape), batch
    )
    grad_both = grad.new_empty(len(tensors.context), 2 * dim)
    by_step = grad_both.view(batch, -1, 2, heads, width).unbind(2)
    grad_keys, grad_values = (
        part.unflatten(0, (heads, batch)).permute(1, 2, 0, 3) for part in (grad_keys, grad_values)
    )
    torch.mul(grad_keys, unit, out=by_step[0])
    by_step[1].copy_(grad_values)
    to_context = torch.cat([w.key, w.value])
    own = grad_both.view(batch, -1, 2 * dim)[:, window:].reshape(-1, 2 * dim)
    grad_x = torch.mm(own, to_context).addmm_(grad_query, w.query * scale)
    grad_weights = grad_both.T @ tensors.context
    return (
        grad_x.view(x.shape),
        grad_both.view(batch, -1, 2 * dim)[:, :window] @ to_context if needs[1] else None,
        (grad_query.T @ x.reshape(-1, dim)) * scale,
        grad_weights[:dim],
        grad_weights[dim:],
        grad_distance_keys.mul_(unit),
        grad.T @ tensors.flat,
        *biases,
    )


def _unit(offset: float | None) -> float:
    """Return the divisor of scores: log 2 for a softmax, which is computed to the base 2; 1 for a sigmoid."""
    return math.log(2) if offset is None else 1.0


def _by_head(x: Float[Tensor, "steps D"], batch: int, heads: int) -> Float[Tensor, "R T E"]:
    steps = x.unflatten(0, (batch, -1)).unflatten(2, (heads, -1))
    return steps.permute(2, 0, 1, 3).reshape(heads * batch, steps.shape[1], -1)


def _by_step(x: Float[Tensor, "R T E"], batch: int) -> Float[Tensor, "steps D"]:
    return x.view(-1, batch, *x.shape[1:]).permute(1, 2, 0, 3).reshape(batch * x.shape[1], -1)


def _diagonals(score: Float[Tensor, "R L C"], count: int) -> Float[Tensor, "R L count"]:
    """Return a view of the diagonals of a block's scores: in row j, `count` columns from column j on."""
    rows, length, columns = score.shape
    return score.as_strided((rows, length, count), (length * columns, columns + 1, 1))
