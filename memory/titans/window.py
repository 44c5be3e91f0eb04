"""Segments of `WindowAttention` with a custom backward pass.

One matrix product scores the queries of all steps against all visible keys. The two coordinates of a rotary
pair are adjacent, so that one complex product rotates all pairs. For this order, weights and caches are
permuted before the computation, and results are permuted back. The softmax uses base 2.

Letters: B batch, T steps, H heads, E width of a head, D = H * E, P persistent tokens, W window, N columns of
scores. N is P + W - 1 + T, plus up to three masked columns of padding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from scrubjay.kernels.derivatives import run_custom
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.attention import LOG2_E, differentiate_read, read_values
from scrubjay.memory.parts.rotary import build_complex_rotations, interleave_pairs, rotate_pairs

_COLUMN_MULTIPLE = 4
"""The number of columns is padded to a multiple of this; products with odd sizes take a quarter longer."""


class Weights(NamedTuple):
    """Parameters of `WindowAttention`, in the order of the arguments of `read_segment`."""

    query: Float[Tensor, "D D"]
    key: Float[Tensor, "D D"]
    value: Float[Tensor, "D D"]
    out: Float[Tensor, "D D"]
    persistent_keys: Float[Tensor, "P H still"]
    persistent_values: Float[Tensor, "P H E"]


class WindowSchedule(NamedTuple):
    """Mask and rotations of a segment, which depend on its sizes and episode starts but not on its inputs."""

    hidden: Float[Tensor, "B 1 T N"]
    """Additive mask of the attention scores: 0 for visible columns, -inf for hidden columns."""
    rotation: Complex[Tensor, "B T 1 E//2"]
    pairs: Int[Tensor, " D"]
    """Order of query and key coordinates in which the two coordinates of a rotary pair are adjacent."""
    inverse_pairs: Int[Tensor, " D"]
    """Inverse permutation of `pairs`."""
    heads: int
    persistent: int
    before: int
    """Number of cached steps before the segment."""
    retained_steps: int
    """Number of steps, counted from the end of the segment, that stay in the cache."""


class _Activations(NamedTuple):
    """Activations that the forward pass saves for the backward pass."""

    query: Float[Tensor, "B*H T E"]
    keys: Float[Tensor, "B*H N E"]
    values: Float[Tensor, "B*H N E"]
    scores: Float[Tensor, "B*H T N"]
    total: Float[Tensor, "B*H T 1"]
    read: Float[Tensor, "B*H T E"]
    flat: Float[Tensor, "B*T D"]


def build_schedule(
    clock: Clock, window: int, heads: int, persistent: int, cos: Tensor, sin: Tensor
) -> WindowSchedule:
    """Return the schedule of a segment.

    Args:
        clock: Clock of the segment.
        window: Number of steps that are visible to a step, including the step itself.
        heads: Number of attention heads.
        persistent: Number of persistent tokens.
        cos: Cosines `[B, T, E]` of the rotary angles, for every step and coordinate of a head.
        sin: Sines of these angles, with the same shape.
    """
    batch, time, width = cos.shape
    pairs, inverse_pairs = interleave_pairs(heads, width, width // 4 * 2)
    step = torch.arange(time)[:, None]
    # Steps are counted from the first one of the segment.
    column = torch.arange(1 - window, time)
    first = torch.maximum(clock.episode_start - clock.age[:, None], step[:, 0] - window + 1)
    visible = (column >= first[..., None]) & (column <= step)
    extra = -(persistent + window - 1 + time) % _COLUMN_MULTIPLE
    hidden = torch.full((batch, 1, time, persistent + extra + len(column)), -math.inf, dtype=cos.dtype)
    hidden[..., :persistent] = 0
    hidden[:, 0, :, persistent + extra :].masked_fill_(visible, 0)
    rotation = build_complex_rotations(pairs, cos, sin)[:, :, None]
    return WindowSchedule(
        hidden, rotation, pairs, inverse_pairs, heads, persistent, window - 1, min(time, window - 1)
    )


def read_segment(
    plain: Callable[..., Sequence[Tensor]],
    schedule: WindowSchedule,
    x: Float[Tensor, "B T D"],
    keys: Float[Tensor, "B before D"],
    values: Float[Tensor, "B before D"],
    *weights: Tensor,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B kept D"], Float[Tensor, "B kept D"]]:
    """Return the attention outputs of a segment, and the keys and values of its last steps for the cache.

    Args:
        plain: Function that computes the same results from `x`, `keys`, `values` and weights with torch's
            autograd.
        schedule: Schedule of the segment.
        x: Inputs.
        keys: Keys of the cached steps.
        values: Values of the cached steps.
        weights: Fields of `Weights`.
    """
    forward, backward = functools.partial(_forward, schedule), functools.partial(_backward, schedule)
    y, last_keys, last_values = run_custom(plain, forward, backward, x, keys, values, *weights)
    return y, last_keys, last_values


def _forward(
    schedule: WindowSchedule, x: Tensor, keys: Tensor, values: Tensor, *weights: Tensor
) -> tuple[list[Tensor], _Activations]:
    w = Weights(*weights)
    batch, time, dim = x.shape
    heads, width, persistent = schedule.heads, dim // schedule.heads, schedule.persistent
    projections = torch.mm(x.reshape(-1, dim), _projections(schedule, w, width**-0.5 * LOG2_E).T)
    projections = projections.view(batch, time, 3, heads, width)
    query = x.new_empty(batch, heads, time, width)
    columns = x.new_zeros(2, batch, heads, schedule.hidden.shape[3], width)
    rotate_pairs(projections[:, :, 0], schedule.rotation, query.transpose(1, 2))
    behind = columns[..., -time:, :].transpose(2, 3)
    rotate_pairs(projections[:, :, 1], schedule.rotation, behind[0])
    behind[1].copy_(projections[:, :, 2])
    before = columns[..., -time - schedule.before : -time, :].transpose(2, 3)
    before[0] = keys.index_select(2, schedule.pairs).unflatten(2, (heads, width))
    before[1] = values.unflatten(2, (heads, width))
    columns[0, :, :, :persistent, width - w.persistent_keys.shape[2] :] = w.persistent_keys.transpose(0, 1)
    columns[1, :, :, :persistent] = w.persistent_values.transpose(0, 1)
    all_keys, all_values = columns.flatten(1, 2)
    query = query.flatten(0, 1)
    scores = torch.bmm(query, all_keys.mT)
    scores.view(batch, heads, *scores.shape[1:]).add_(schedule.hidden)
    total, read = read_values(scores, all_values)
    flat = read.view(batch, heads, time, width).transpose(1, 2).reshape(-1, dim)
    last = behind[:, :, time - schedule.retained_steps :].flatten(3)
    y = torch.mm(flat, w.out.T).view(x.shape)
    activations = _Activations(query, all_keys, all_values, scores, total, read, flat)
    return [y, last[0].index_select(2, schedule.inverse_pairs), last[1].clone()], activations


def _backward(
    schedule: WindowSchedule,
    inputs: Sequence[Tensor],
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `x`, of the caches if they need them, and of all weights."""
    x, w, activations = inputs[0], Weights(*inputs[3:]), _Activations(*tensors)
    needs_cache_grad = any(needs[1:3])
    batch, time, dim = x.shape
    heads, width, persistent = schedule.heads, dim // schedule.heads, schedule.persistent
    grad_y = x.new_zeros(len(activations.flat), dim) if grads[0] is None else grads[0].reshape(-1, dim)
    grad_flat = torch.mm(grad_y, w.out).view(batch, time, heads, width).transpose(1, 2)
    grad_read, grad_scores = differentiate_read(grad_flat.reshape(activations.read.shape), *activations[2:6])
    grad_query = torch.bmm(grad_scores, activations.keys)
    whole = slice(None)
    parts = (whole,) if needs_cache_grad else (slice(persistent), slice(-time, None))
    grad_keys, grad_values = (
        [torch.bmm(a[..., part].mT, b).unflatten(0, (batch, heads)) for part in parts]
        for a, b in ((grad_scores, activations.query * math.log(2)), (activations.scores, grad_read))
    )
    own = [part[-1][..., -time:, :].transpose(1, 2) for part in (grad_keys, grad_values)]
    if grads[1] is not None:
        own[0][:, time - schedule.retained_steps :] += (
            grads[1].index_select(2, schedule.pairs).unflatten(2, (heads, width))
        )
    if grads[2] is not None:
        own[1][:, time - schedule.retained_steps :] += grads[2].unflatten(2, (heads, width))
    grad_own = x.new_empty(batch, time, 3, heads, width)
    inverse_rotation = schedule.rotation.conj().resolve_conj()
    rotate_pairs(
        grad_query.view(batch, heads, time, width).transpose(1, 2), inverse_rotation, grad_own[:, :, 0]
    )
    rotate_pairs(own[0], inverse_rotation, grad_own[:, :, 1])
    grad_own[:, :, 2] = own[1]
    rows, scale = grad_own.view(-1, 3 * dim), width**-0.5
    grad_weights = (rows.T @ x.reshape(-1, dim)).split(dim)
    grad_cache: list[Tensor | None] = [None, None]
    if needs_cache_grad:
        before = slice(-time - schedule.before, -time)
        behind = [part[0][..., before, :].transpose(1, 2).flatten(2) for part in (grad_keys, grad_values)]
        grad_cache = [behind[0].index_select(2, schedule.inverse_pairs), behind[1]]
    return (
        (rows @ _projections(schedule, w, scale)).view(x.shape),
        *grad_cache,
        grad_weights[0].index_select(0, schedule.inverse_pairs) * scale,
        grad_weights[1].index_select(0, schedule.inverse_pairs),
        grad_weights[2],
        grad_y.T @ activations.flat,
        grad_keys[0][:, :, :persistent, width - w.persistent_keys.shape[2] :].sum(0).transpose(0, 1),
        grad_values[0][:, :, :persistent].sum(0).transpose(0, 1),
    )


def _projections(schedule: WindowSchedule, w: Weights, scale: float) -> Float[Tensor, "three_dims D"]:
    """Return the weights of scaled queries, keys and values, stacked.

    The weights of queries and keys are ordered by rotary pairs.
    """
    query, key = (weight.index_select(0, schedule.pairs) for weight in (w.query, w.key))
    return torch.cat([query * scale, key, w.value])
