"""Attention of a segment to stored keys and to its own steps, with score biases and a custom backward pass.

The forward and the backward pass take twenty operations each; a graph of torch's autograd has sixty. The
softmax is to the base 2, because exp2(x * log2(e)) takes a third of the time of exp(x). Other custom passes
of attention share its functions `read_values` and `differentiate_read`. Gradients of the stored keys and
values are computed only if they are needed. The custom backward pass supports float32 and float64 inputs on a
CPU. All other inputs use torch's autograd, and so do second derivatives.

Axes: B batch, T steps of the segment, S stored items, N = S + T keys, M last keys that get a bias (M <= N),
H heads, E width of a head, D = H * E, R = B * H.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.derivatives import run_custom, supports_custom_backward

LOG2_E = math.log2(math.e)


class AttentionInputs(NamedTuple):
    """Inputs of the attention of a segment."""

    query: Float[Tensor, "B T D"]
    keys: Float[Tensor, "B T D"]
    values: Float[Tensor, "B T D"]
    stored_keys: Float[Tensor, "B S D"]
    stored_values: Float[Tensor, "B S D"]
    mask: Float[Tensor, "B T N"]
    """Additive mask of the scores, first for stored items, then for the segment's steps; -inf hides a key.
    Each step needs at least one visible key. A mask that requires a gradient disables the custom backward
    pass."""
    bias: Float[Tensor, "B T M"]
    """Bias by batch row, step and key, added to the scores of the last M keys. It is equal in all heads."""
    head_bias: Float[Tensor, "H T M"]
    """Bias by head, step and key, added to the scores of the last M keys. It is equal in all batch rows."""


def attend(inputs: AttentionInputs) -> Float[Tensor, "B T D"]:
    """Return the attention output of a segment."""
    # Only autograd computes a gradient of the mask.
    if inputs.mask.requires_grad or not supports_custom_backward(*inputs):
        return _run_torch(*inputs)
    return run_custom(_run_torch, _forward, _backward, *inputs)[0]


def weigh(inputs: AttentionInputs) -> Float[Tensor, "B H T N"]:
    """Return the attention weights of each step: over stored items, then over the segment's steps."""
    heads, last = len(inputs.head_bias), inputs.head_bias.shape[2]
    query, keys = (
        by_head(inputs.query, heads),
        by_head(torch.cat([inputs.stored_keys, inputs.keys], dim=1), heads),
    )
    bias = functional.pad(inputs.bias[:, None] + inputs.head_bias, (keys.shape[2] - last, 0))
    bias = bias + inputs.mask[:, None]
    return torch.softmax((query * query.shape[-1] ** -0.5) @ keys.mT + bias.to(query.dtype), dim=-1)


def by_head(x: Float[Tensor, "B steps D"], heads: int) -> Float[Tensor, "B H steps E"]:
    """Return a view with the width split into heads."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def join_columns(
    earlier: Float[Tensor, "B S D"], own: Float[Tensor, "B T D"], heads: int
) -> Float[Tensor, "B H N E"]:
    """Concatenate the keys, or the values, of earlier steps and of the segment, and split them by head."""
    batch, count, dim = earlier.shape
    columns = own.new_empty(batch, heads, count + own.shape[1], dim // heads)
    columns[:, :, :count] = by_head(earlier, heads)
    columns[:, :, count:] = by_head(own, heads)
    return columns


def read_values(
    scores: Float[Tensor, "R T N"],
    values: Float[Tensor, "R N E"],
    total: Tensor | None = None,
    read: Tensor | None = None,
) -> tuple[Float[Tensor, "R T 1"], Float[Tensor, "R T E"]]:
    """Return the sum of the weights of each query and the weighted means of the values.

    The function overwrites the scores, to the base 2, with unnormalized weights. The results are written to
    `total` and `read` if these are tensors.
    """
    scores.sub_(scores.amax(dim=-1, keepdim=True)).exp2_()
    total = torch.sum(scores, dim=-1, keepdim=True, out=total)
    return total, torch.bmm(scores, values, out=read).div_(total)


def differentiate_read(
    grad: Float[Tensor, "R T E"], values: Tensor, weights: Float[Tensor, "R T N"], total: Tensor, read: Tensor
) -> tuple[Float[Tensor, "R T E"], Float[Tensor, "R T N"]]:
    """Return the gradients of the weighted sums of values before the division, and of natural scores.

    Args:
        grad: Gradient of `read`.
        values: As passed to `read_values`.
        weights: Unnormalized weights, as written by `read_values`.
        total: Result of `read_values`.
        read: Result of `read_values`.
    """
    grad = grad / total
    grad_scores = torch.bmm(grad, values.mT)
    return grad, grad_scores.sub_((grad * read).sum(dim=-1, keepdim=True)).mul_(weights)


def _run_torch(*tensors: Tensor) -> Tensor:
    inputs = AttentionInputs(*tensors)
    values = by_head(torch.cat([inputs.stored_values, inputs.values], dim=1), len(inputs.head_bias))
    return (weigh(inputs) @ values).transpose(1, 2).flatten(2)


def _forward(query, keys, values, stored_keys, stored_values, mask, bias, head_bias):
    heads, last = len(head_bias), head_bias.shape[2]
    batch, time, dim = query.shape
    scaled_query = by_head(query, heads) * ((dim // heads) ** -0.5 * LOG2_E)
    scaled_query = scaled_query.reshape(batch * heads, time, dim // heads)
    pairs = (stored_keys, keys), (stored_values, values)
    columns = [join_columns(*pair, heads).flatten(0, 1) for pair in pairs]
    scores = torch.bmm(scaled_query, columns[0].mT)
    by_heads = scores.unflatten(0, (batch, heads))
    first = by_heads.shape[3] - last
    by_heads[..., :first].add_(mask[:, None, :, :first], alpha=LOG2_E)
    by_heads[..., first:].add_((mask[..., first:] + bias)[:, None], alpha=LOG2_E)
    by_heads[..., first:].add_(head_bias, alpha=LOG2_E)
    total, read = read_values(scores, columns[1])
    y = read.unflatten(0, (batch, heads)).transpose(1, 2).reshape(query.shape)
    return [y], [scaled_query, *columns, scores, total, read]


def _backward(inputs, tensors, grads, needs):
    scaled_query, keys, values, scores, total, read = tensors
    batch, time, dim = grads[0].shape
    heads, last = len(inputs[-1]), inputs[-1].shape[2]
    total_columns, head_shape = scores.shape[2], (batch, heads)
    grad = by_head(grads[0], heads).reshape(read.shape)
    grad_read, grad_scores = differentiate_read(grad, values, scores, total, read)
    grad_query = torch.bmm(grad_scores, keys).mul_((dim // heads) ** -0.5)
    # Gradients of the stored columns are computed only if they are needed.
    first = 0 if any(needs[3:5]) else total_columns - time
    grad_keys = torch.bmm(grad_scores[..., first:].mT, scaled_query).mul_(1 / LOG2_E)
    grad_values = torch.bmm(scores[..., first:].mT, grad_read)
    grad_query, grad_keys, grad_values = (
        gradient.unflatten(0, head_shape).transpose(1, 2).flatten(2)
        for gradient in (grad_query, grad_keys, grad_values)
    )
    num_stored = total_columns - time - first
    grad_by_head = grad_scores.unflatten(0, head_shape)[..., total_columns - last :]
    return (
        grad_query,
        grad_keys[:, num_stored:],
        grad_values[:, num_stored:],
        grad_keys[:, :num_stored] if needs[3] else None,
        grad_values[:, :num_stored] if needs[4] else None,
        None,
        grad_by_head.sum(dim=1) if needs[6] else None,
        grad_by_head.sum(dim=0) if needs[7] else None,
    )
