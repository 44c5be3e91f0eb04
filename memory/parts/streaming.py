"""A layer of the memory `Sink` over a segment, with a custom backward pass.

Values that depend on the steps alone are computed once for all layers (`SegmentPlan`). A layer then takes
about forty operations forward and backward; a graph of torch's autograd has two hundred. Queries, keys and
values of all heads are in one tensor, and the softmax is to the base 2. The custom backward pass supports
float32 and float64 inputs on a CPU. All other inputs use torch's autograd, and so do second derivatives.

Axes: B batch, T steps of the segment, H heads, E width of a head, D = H * E, R = B * H, S sinks,
N = S + P + T columns, one per key. The columns are the S sinks of the episode in which the segment begins,
the P steps before the segment, and the T steps of the segment. P is window - 1 plus up to three masked
columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.derivatives import run_custom
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.attention import LOG2_E, by_head, differentiate_read, join_columns, read_values

_NORM_EPS = 1e-5
_EVEN = 4
"""The number of columns is a multiple of this: matrix products with odd sizes take a quarter longer."""


class StreamingSizes(NamedTuple):
    """Sizes of a layer's attention."""

    num_sinks: int
    window: int
    heads: int
    width: int
    """Width of a head."""
    rotary_dim: int
    """Number of coordinates of a head that rotary positions rotate."""


class SegmentPlan(NamedTuple):
    """Index and mask tensors of a segment, shared by all layers."""

    sizes: StreamingSizes
    mask: Float[Tensor, "B 1 T N"]
    """Additive mask of the scores: 0 or -inf."""
    cache_index: Int[Tensor, " B*(S+P)"]
    """Indices of the first layer's keys in the flattened cache `[B * layers * slots, D]`. Each row has the
    keys of the S sinks, then those of the P steps before the segment."""
    early: tuple[Int[Tensor, " few"], Int[Tensor, " few"]] | None
    """Sink tokens inside the segment: their flat step indices, and the sink slots that they fill."""
    swap_index: Int[Tensor, " 2*D"]
    cos: Float[Tensor, "B*T 2*D"]
    sin: Float[Tensor, "B*T 2*D"]
    """Rotary factors: x is rotated to x * cos + y * sin, where y is x with columns in the order
    `swap_index`."""


def plan_segment(sizes: StreamingSizes, layers: int, clock: Clock, cos: Tensor, sin: Tensor) -> SegmentPlan:
    """Return the plan of a segment; `cos` and `sin` `[B, T, E]` are the rotary factors of one head."""
    num_sinks, window, heads, _, rotary_dim = sizes
    layout = _plan_sizes(sizes, clock.length)
    age = clock.age[:, None]
    # Steps are counted from the segment's first.
    episode_start = clock.episode_start - age
    ring = num_sinks + (age + layout.before) % window
    slot = torch.cat([layout.place.expand(len(ring), -1), ring], dim=1)
    slot += torch.arange(len(slot))[:, None] * (layers * (num_sinks + window))
    early = (clock.step < num_sinks).flatten().nonzero()[:, 0]
    sin = torch.cat([-sin[..., : rotary_dim // 2], sin[..., rotary_dim // 2 :]], dim=-1)
    return SegmentPlan(
        sizes,
        torch.where(_find_visible(episode_start, layout, num_sinks), 0.0, -math.inf)[:, None],
        slot.flatten(),
        (early, clock.step.flatten()[early]) if len(early) else None,
        layout.swap_index,
        *(x.flatten(0, 1).repeat(1, 2 * heads) for x in (cos, sin)),
    )


class _SizePlan(NamedTuple):
    """Index and mask tensors that depend on the sizes alone."""

    step: Int[Tensor, " P+T"]
    """Step of each key after the sinks, counted from the first step of the segment (negative before it)."""
    causal: Bool[Tensor, "T P+T"]
    near: Bool[Tensor, "T P+T"]
    before: Int[Tensor, " P"]
    """For each key of the window before the segment: its entry in `step` minus the number of sinks."""
    place: Int[Tensor, " S"]
    swap_index: Int[Tensor, " 2*D"]


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _plan_sizes(sizes: StreamingSizes, time: int) -> _SizePlan:
    num_sinks, window, heads, width, rotary_dim = sizes
    before = window - 1
    before += -(num_sinks + before + time) % _EVEN
    query, step = torch.arange(time)[:, None], torch.arange(-before, time, dtype=torch.int32)
    pair = torch.arange(width)
    pair = torch.cat([pair[rotary_dim // 2 : rotary_dim], pair[: rotary_dim // 2], pair[rotary_dim:]])
    return _SizePlan(
        step,
        step <= query,
        step > query - window,
        step[:before].long() - num_sinks,
        torch.arange(num_sinks),
        (torch.arange(2 * heads)[:, None] * width + pair).flatten(),
    )


def _find_visible(
    episode_start: Int[Tensor, "B T"], layout: _SizePlan, num_sinks: int
) -> Bool[Tensor, "B T N"]:
    """Return a mask of the columns that each step may read.

    For each step, `episode_start` is the first step of its episode, counted from the start of the segment.
    """
    sinks = episode_start[..., None] + layout.place < 0
    # Sinks have their own columns, so the ring holds only later steps of the current episode.
    first = torch.where(episode_start <= 0, (episode_start + num_sinks).clamp_(max=0), episode_start)[
        ..., None
    ].int()
    visible = (layout.step >= first).logical_and_(layout.causal)
    behind = (episode_start + num_sinks)[..., None].int()
    visible &= (layout.step < behind).logical_or_(layout.near) if num_sinks else layout.near
    return torch.cat([sinks, visible], dim=-1)


class StreamingWeights(NamedTuple):
    """Parameters of a layer, in the order of `run_layer`'s arguments."""

    norm: Tensor
    norm_bias: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    sink_positions: Float[Tensor, "S H still"]
    norm_before: Tensor
    norm_before_bias: Tensor
    inward: Tensor
    inward_bias: Tensor
    outward: Tensor
    outward_bias: Tensor


class _SavedTensors(NamedTuple):
    """Tensors that the forward pass of a layer saves for its backward pass."""

    x: Float[Tensor, "B*T D"]
    mean: Tensor
    deviation: Tensor
    normalized: Float[Tensor, "B*T D"]
    query: Float[Tensor, "R T E"]
    keys: Float[Tensor, "R N E"]
    values: Float[Tensor, "R N E"]
    scores: Float[Tensor, "R T N"]
    """2 ** (score - largest score of the query) for each attention score."""
    total: Float[Tensor, "R T 1"]
    read: Float[Tensor, "R T E"]
    flat: Float[Tensor, "B*T D"]
    between: Float[Tensor, "B*T D"]
    mean_between: Tensor
    deviation_between: Tensor
    normed_between: Float[Tensor, "B*T D"]
    hidden: Float[Tensor, "B*T hidden"]
    active: Float[Tensor, "B*T hidden"]


def run_layer(
    plain: Callable[..., Sequence[Tensor]],
    plan: SegmentPlan,
    layer: int,
    x: Float[Tensor, "B T D"],
    keys: Float[Tensor, "B layers slots D"],
    values: Float[Tensor, "B layers slots D"],
    *weights: Tensor,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"], Float[Tensor, "B T D"]]:
    """Return the outputs of a layer for a segment, and the keys and values that the state stores.

    Args:
        plain: Differentiable torch function that computes the same outputs from `x`, `keys`, `values` and
            the weights.
        plan: Plan of the segment.
        layer: Index of the layer.
        x: Inputs of the layer.
        keys: Keys in the state.
        values: Values in the state.
        weights: Fields of `StreamingWeights`.
    """
    forward, backward = functools.partial(_forward, plan, layer), functools.partial(_backward, plan, layer)
    y, own_keys, own_values = run_custom(plain, forward, backward, x, keys, values, *weights)
    return y, own_keys, own_values


def _forward(
    plan: SegmentPlan, layer: int, x: Tensor, keys: Tensor, values: Tensor, *weights: Tensor
) -> tuple[list[Tensor], _SavedTensors]:
    w = StreamingWeights(*weights)
    batch, time, dim = x.shape
    heads, width = plan.sizes.heads, plan.sizes.width
    rows = x.reshape(batch * time, dim)
    normalized, mean, deviation = torch.native_layer_norm(rows, [dim], w.norm, w.norm_bias, _NORM_EPS)
    both = torch.mm(normalized, torch.cat([w.query * (width**-0.5 * LOG2_E), w.key]).T)
    pair_swap = both.index_select(1, plan.swap_index)
    both.mul_(plan.cos).addcmul_(pair_swap, plan.sin)
    own = both[:, dim:], torch.mm(normalized, w.value.T)
    own = [part.unflatten(0, (batch, time)) for part in own]
    query = by_head(both[:, :dim].unflatten(0, (batch, time)), heads).reshape(batch * heads, time, width)
    columns = []
    for cache, part in zip((keys, values), own, strict=True):
        earlier = cache.reshape(-1, dim).index_select(0, plan.cache_index + layer * cache.shape[2])
        columns.append(join_columns(earlier.unflatten(0, (batch, -1)), part, heads))
    _mark_sinks(plan, columns[0], w.sink_positions)
    columns = [c.flatten(0, 1) for c in columns]
    scores = torch.bmm(query, columns[0].transpose(1, 2))
    scores.view(batch, heads, *scores.shape[1:]).add_(plan.mask)
    total, read = read_values(scores, columns[1])
    flat = read.view(batch, heads, time, width).transpose(1, 2).reshape(batch * time, dim)
    between = torch.addmm(rows, flat, w.out.T)
    normed_between, mean_between, deviation_between = torch.native_layer_norm(
        between, [dim], w.norm_before, w.norm_before_bias, _NORM_EPS
    )
    hidden = torch.addmm(w.inward_bias, normed_between, w.inward.T)
    active = functional.gelu(hidden)
    y = torch.addmm(between, active, w.outward.T).add_(w.outward_bias)
    tensors = _SavedTensors(
        rows,
        mean,
        deviation,
        normalized,
        query,
        columns[0],
        columns[1],
        scores,
        total,
        read,
        flat,
        between,
        mean_between,
        deviation_between,
        normed_between,
        hidden,
        active,
    )
    return [y.view(x.shape), *own], tensors


def _mark_sinks(plan: SegmentPlan, keys: Float[Tensor, "B H N E"], positions: Tensor) -> None:
    """Set the rotary coordinates of the sinks' keys to zero; add the position vectors of their slots."""
    sinks, rotary_dim = keys[:, :, : plan.sizes.num_sinks], plan.sizes.rotary_dim
    sinks[..., :rotary_dim] = 0
    sinks[..., rotary_dim:] += positions.transpose(0, 1)
    if plan.early is not None:
        step, place = plan.early
        time = plan.mask.shape[2]
        own = keys[:, :, -time:].transpose(1, 2)
        row, step = step // time, step % time
        sink_rows = own[row, step]
        sink_rows[..., :rotary_dim] = 0
        sink_rows[..., rotary_dim:] += positions[place]
        own[row, step] = sink_rows


def _backward(
    plan: SegmentPlan,
    layer: int,
    inputs: Sequence[Tensor],
    saved_tensors: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `x`, of the state's keys and values if they need them, and of weights."""
    w, tensors = StreamingWeights(*inputs[3:]), _SavedTensors(*saved_tensors)
    needs_cache_grad = any(needs[1:3])
    grad_y, grad_key, grad_value = (None if grad is None else grad.reshape(tensors.x.shape) for grad in grads)
    grad_y = torch.zeros_like(tensors.x) if grad_y is None else grad_y
    heads, dim, scale = plan.sizes.heads, tensors.x.shape[1], plan.sizes.width**-0.5
    batch = len(tensors.query) // heads
    grad_hidden = torch.ops.aten.gelu_backward(grad_y @ w.outward, tensors.hidden)
    grad_between, *grad_norm_before = torch.ops.aten.native_layer_norm_backward(
        grad_hidden @ w.inward,
        tensors.between,
        [dim],
        tensors.mean_between,
        tensors.deviation_between,
        w.norm_before,
        w.norm_before_bias,
        [True, True, True],
    )
    grad_between += grad_y
    grad_attention = _attention_backward(plan, grad_between @ w.out, tensors, needs_cache_grad)
    grad_query, grad_keys, grad_values, grad_positions = grad_attention
    grad_cache: list[Tensor | None] = [None, None]
    if needs_cache_grad:
        pairs = zip((grad_keys, grad_values), inputs[1:3], strict=True)
        grad_cache = [_to_cache(plan, layer, grad, cache) for grad, cache in pairs]
    time = grad_query.shape[2]
    grad_both = grad_query.new_empty(len(tensors.x), 2 * dim)
    both = grad_both.view(batch, time, 2, dim)
    by_head(both[:, :, 0], heads).copy_(grad_query)
    by_head(both[:, :, 1], heads).copy_(grad_keys[:, :, -time:])
    grad_values = grad_values[:, :, -time:].transpose(1, 2).reshape(tensors.x.shape)
    if plan.early is not None:
        step, place = plan.early
        sink_rows = grad_both.index_select(0, step)
        sink_keys = sink_rows[:, dim:].unflatten(1, (heads, -1))
        grad_positions = grad_positions.index_add(0, place, sink_keys[..., plan.sizes.rotary_dim :])
        sink_keys[..., : plan.sizes.rotary_dim] = 0
        grad_both.index_copy_(0, step, sink_rows)
    if grad_key is not None:
        grad_both[:, dim:] += grad_key
    if grad_value is not None:
        grad_values = grad_values + grad_value
    pair_swap = grad_both.index_select(1, plan.swap_index)
    grad_both.mul_(plan.cos).addcmul_(pair_swap, plan.sin, value=-1)
    grad_normed = torch.addmm(grad_values @ w.value, grad_both, torch.cat([w.query * scale, w.key]))
    grad_x, *grad_norm = torch.ops.aten.native_layer_norm_backward(
        grad_normed,
        tensors.x,
        [dim],
        tensors.mean,
        tensors.deviation,
        w.norm,
        w.norm_bias,
        [True, True, True],
    )
    grad_x += grad_between
    grad_weights = grad_both.T @ tensors.normalized
    return (
        grad_x.view(batch, -1, dim),
        *grad_cache,
        *grad_norm,
        grad_weights[:dim] * scale,
        grad_weights[dim:],
        grad_values.T @ tensors.normalized,
        grad_between.T @ tensors.flat,
        grad_positions,
        *grad_norm_before,
        grad_hidden.T @ tensors.normed_between,
        grad_hidden.sum(dim=0),
        grad_y.T @ tensors.active,
        grad_y.sum(dim=0),
    )


def _attention_backward(
    plan: SegmentPlan, grad_flat: Float[Tensor, "steps D"], tensors: _SavedTensors, all_columns: bool
) -> tuple[Float[Tensor, "B H T E"], Float[Tensor, "B H n E"], Float[Tensor, "B H n E"], Tensor]:
    """Return the gradients of unscaled queries, keys, values, and the cached sinks' position vectors.

    The gradients of keys and values cover the segment, or all columns if `all_columns` is True. Keys are the
    output of `_mark_sinks`.
    """
    heads, time = plan.sizes.heads, tensors.query.shape[1]
    batch = len(tensors.query) // heads
    grad = by_head(grad_flat.view(batch, time, -1), heads).reshape(tensors.query.shape)
    grad_read, grad_scores = differentiate_read(
        grad, tensors.values, tensors.scores, tensors.total, tensors.read
    )
    grad_query = torch.bmm(grad_scores, tensors.keys)
    first = 0 if all_columns else tensors.keys.shape[1] - time
    grad_values = torch.bmm(tensors.scores[..., first:].transpose(1, 2), grad_read)
    query, grad_columns = tensors.query * math.log(2), grad_scores.transpose(1, 2)
    grad_keys = torch.bmm(grad_columns[:, first:], query)
    grad_sinks = grad_keys if all_columns else torch.bmm(grad_columns[:, : plan.sizes.num_sinks], query)
    grad_query, grad_keys, grad_sinks, grad_values = (
        grad.unflatten(0, (batch, heads)) for grad in (grad_query, grad_keys, grad_sinks, grad_values)
    )
    grad_sinks, rotary_dim = grad_sinks[:, :, : plan.sizes.num_sinks], plan.sizes.rotary_dim
    grad_positions = grad_sinks[..., rotary_dim:].sum(dim=0).transpose(0, 1)
    grad_sinks[..., :rotary_dim] = 0
    return grad_query, grad_keys, grad_values, grad_positions.contiguous()


def _to_cache(plan: SegmentPlan, layer: int, grad: Float[Tensor, "B H N E"], cache: Tensor) -> Tensor:
    """Return the gradient of the keys or values in the state; it is zero for all layers except `layer`.

    `grad` is the gradient of the keys or values of the sinks, the steps before the segment, and its steps.
    """
    slots, dim = cache.shape[2:]
    rows = grad[:, :, : plan.mask.shape[3] - plan.mask.shape[2]].transpose(1, 2).reshape(-1, dim)
    grad_cache = cache.new_zeros(cache.shape)
    grad_cache.view(-1, dim).index_add_(0, plan.cache_index + layer * slots, rows)
    return grad_cache
