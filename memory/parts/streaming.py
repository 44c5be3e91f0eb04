"""A layer of `Sink` over a segment, with its gradient by hand.

What follows from steps alone is found once for all layers (`Moment`). A layer is then some forty operations
forward and as many back, instead of a graph of two hundred: queries, keys and values of all heads in one
place, and a softmax to the base 2. A second derivative, and all that is not plain numbers on a CPU, goes the
layer's plain way.

Letters: B batch, T steps, H heads, E width of a head, D = H * E, R = B * H, S sinks, N = S + P + T columns:
the S sinks of the episode that the segment began in, the P steps before it, and its own. P is window - 1, or
up to three more, which nobody sees.
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

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.heap import keep_freed

_NORM_EPS = 1e-5
_EVEN = 4
"""What the number of columns is a multiple of: products of odd ones take a quarter longer."""


class Sizes(NamedTuple):
    """Of a layer's attention."""

    num_sinks: int
    window: int
    heads: int
    width: int
    """Of a head."""
    rotated: int
    """How much of a head is turned by time."""


class Moment(NamedTuple):
    """What all layers need to know of a segment's steps."""

    sizes: Sizes
    hidden: Float[Tensor, "B 1 T N"]
    """What is added to scores: 0 or -inf."""
    cached: Int[Tensor, " B*(S+P)"]
    """Where the columns before the segment lie, of the slots of the first layer's rows."""
    early: tuple[Int[Tensor, " few"], Int[Tensor, " few"]] | None
    """The segment's own sinks: which they are of the steps of all rows, and their places."""
    swap: Int[Tensor, " 2*D"]
    cos: Float[Tensor, "B*T 2*D"]
    sin: Float[Tensor, "B*T 2*D"]
    """Queries and keys, each turned by this much: their product with `cos` and, pairs swapped, with `sin`."""


def moment(sizes: Sizes, layers: int, clock: Clock, cos: Tensor, sin: Tensor) -> Moment:
    """Return what follows from the steps of a segment; `cos` and `sin` are those of a head, `[B, T, E]`."""
    num_sinks, window, heads, _, rotated = sizes
    plan = _plan(sizes, clock.length)
    age = clock.age[:, None]
    # Steps are counted from the segment's first.
    birth = clock.birth - age
    ring = num_sinks + (age + plan.before) % window
    slot = torch.cat([plan.place.expand(len(ring), -1), ring], dim=1)
    slot += torch.arange(len(slot))[:, None] * (layers * (num_sinks + window))
    early = (clock.step < num_sinks).flatten().nonzero()[:, 0]
    sin = torch.cat([-sin[..., : rotated // 2], sin[..., rotated // 2 :]], dim=-1)
    return Moment(
        sizes,
        torch.where(_seen(birth, plan, num_sinks), 0.0, -math.inf)[:, None],
        slot.flatten(),
        (early, clock.step.flatten()[early]) if len(early) else None,
        plan.swap,
        *(x.flatten(0, 1).repeat(1, 2 * heads) for x in (cos, sin)),
    )


class _Plan(NamedTuple):
    """What follows from sizes alone."""

    step: Int[Tensor, " P+T"]
    """Of columns behind the sinks, counted from the segment's first."""
    causal: Bool[Tensor, "T P+T"]
    near: Bool[Tensor, "T P+T"]
    before: Int[Tensor, " P"]
    """The steps before the segment, counted from the last sink."""
    place: Int[Tensor, " S"]
    swap: Int[Tensor, " 2*D"]


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _plan(sizes: Sizes, time: int) -> _Plan:
    num_sinks, window, heads, width, rotated = sizes
    before = window - 1
    before += -(num_sinks + before + time) % _EVEN
    query, step = torch.arange(time)[:, None], torch.arange(-before, time, dtype=torch.int32)
    pair = torch.arange(width)
    pair = torch.cat([pair[rotated // 2 : rotated], pair[: rotated // 2], pair[rotated:]])
    return _Plan(
        step,
        step <= query,
        step > query - window,
        step[:before].long() - num_sinks,
        torch.arange(num_sinks),
        (torch.arange(2 * heads)[:, None] * width + pair).flatten(),
    )


def _seen(birth: Int[Tensor, "B T"], plan: _Plan, num_sinks: int) -> Bool[Tensor, "B T N"]:
    """Return which columns each step sees, of episodes that began at the steps `birth`."""
    sinks = birth[..., None] + plan.place < 0
    # What the ring holds of the present episode is behind its sinks, which have columns of their own.
    first = torch.where(birth <= 0, (birth + num_sinks).clamp_(max=0), birth)[..., None].int()
    seen = (plan.step >= first).logical_and_(plan.causal)
    behind = (birth + num_sinks)[..., None].int()
    seen &= (plan.step < behind).logical_or_(plan.near) if num_sinks else plan.near
    return torch.cat([sinks, seen], dim=-1)


class Weights(NamedTuple):
    """A layer's parameters, in the order that `run_layer` takes them in."""

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


class _Kept(NamedTuple):
    """What a layer's way back needs of its way forward."""

    x: Float[Tensor, "B*T D"]
    mean: Tensor
    deviation: Tensor
    normed: Float[Tensor, "B*T D"]
    query: Float[Tensor, "R T E"]
    keys: Float[Tensor, "R N E"]
    values: Float[Tensor, "R N E"]
    scores: Float[Tensor, "R T N"]
    """Powers of 2."""
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
    at: Moment,
    layer: int,
    x: Float[Tensor, "B T D"],
    keys: Float[Tensor, "B layers slots D"],
    values: Float[Tensor, "B layers slots D"],
    *weights: Tensor,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"], Float[Tensor, "B T D"]]:
    """Return what a layer makes of a segment: outputs, and its keys and values, as a state holds them.

    Args:
        plain: The same of `x`, `keys`, `values` and weights, of plain operations.
        at: What follows from steps.
        layer: The layer's number.
        x: Inputs.
        keys: The state's.
        values: The state's.
        weights: Those of `Weights`.
    """
    return _Segment.apply(plain, at, layer, x, keys, values, *weights)


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plain, at, layer, x, keys, values, *weights):
        keep_freed()
        y, own_keys, own_values, kept = _forward(at, layer, x, keys, values, Weights(*weights))
        ctx.plain, ctx.at, ctx.layer = plain, at, layer
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, keys, values, *weights, *kept)
        return y, own_keys, own_values

    @staticmethod
    @without_autocast
    def backward(ctx, *grads):
        count = 3 + len(Weights._fields)
        given, kept = ctx.saved_tensors[:count], _Kept(*ctx.saved_tensors[count:])
        if all(grad is None for grad in grads):
            return (None,) * (3 + count)
        if is_wanted_again(*grads):
            return None, None, None, *by_graph(ctx.plain, given, *grads)
        cached = given[1:3] if any(ctx.needs_input_grad[4:6]) else None
        return None, None, None, *_backward(ctx.at, ctx.layer, grads, Weights(*given[3:]), kept, cached)


def _forward(
    at: Moment, layer: int, x: Tensor, keys: Tensor, values: Tensor, w: Weights
) -> tuple[Tensor, Tensor, Tensor, _Kept]:
    batch, time, dim = x.shape
    heads, width = at.sizes.heads, at.sizes.width
    rows = x.reshape(batch * time, dim)
    normed, mean, deviation = torch.native_layer_norm(rows, [dim], w.norm, w.norm_bias, _NORM_EPS)
    # exp2(x * log2(e)) takes a third of the time of exp(x).
    both = torch.mm(normed, torch.cat([w.query * (width**-0.5 * math.log2(math.e)), w.key]).T)
    swapped = both.index_select(1, at.swap)
    both.mul_(at.cos).addcmul_(swapped, at.sin)
    own = both[:, dim:], torch.mm(normed, w.value.T)
    query = _by_head(both[:, :dim], batch, heads).reshape(batch * heads, time, width)
    columns = [_columns(at, layer, *pair) for pair in zip((keys, values), own, strict=True)]
    _mark_sinks(at, columns[0], w.sink_positions)
    columns = [c.flatten(0, 1) for c in columns]
    scores = torch.bmm(query, columns[0].transpose(1, 2))
    scores.view(batch, heads, *scores.shape[1:]).add_(at.hidden)
    scores.sub_(scores.amax(dim=-1, keepdim=True)).exp2_()
    total = scores.sum(dim=-1, keepdim=True)
    read = torch.bmm(scores, columns[1]).div_(total)
    flat = read.view(batch, heads, time, width).transpose(1, 2).reshape(batch * time, dim)
    between = torch.addmm(rows, flat, w.out.T)
    normed_between, mean_between, deviation_between = torch.native_layer_norm(
        between, [dim], w.norm_before, w.norm_before_bias, _NORM_EPS
    )
    hidden = torch.addmm(w.inward_bias, normed_between, w.inward.T)
    active = functional.gelu(hidden)
    y = torch.addmm(between, active, w.outward.T).add_(w.outward_bias)
    kept = _Kept(
        rows,
        mean,
        deviation,
        normed,
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
    return y.view(x.shape), own[0].view(x.shape), own[1].view(x.shape), kept


def _by_head(x: Float[Tensor, "steps D"], batch: int, heads: int) -> Float[Tensor, "B H T E"]:
    return x.view(batch, len(x) // max(batch, 1), heads, x.shape[1] // heads).transpose(1, 2)


def _columns(
    at: Moment, layer: int, cache: Float[Tensor, "B layers slots D"], own: Float[Tensor, "steps D"]
) -> Float[Tensor, "B H N E"]:
    """Lay what is cached and what is the segment's own side by side."""
    batch, _, slots, dim = cache.shape
    heads, _, time, count = at.sizes.heads, *at.hidden.shape[1:]
    cached = cache.reshape(-1, dim).index_select(0, at.cached + layer * slots)
    columns = own.new_empty(batch, heads, count, at.sizes.width)
    columns[:, :, : count - time] = _by_head(cached, batch, heads)
    columns[:, :, count - time :] = _by_head(own, batch, heads)
    return columns


def _mark_sinks(at: Moment, keys: Float[Tensor, "B H N E"], positions: Tensor) -> None:
    """Take from the sinks their turned half, and give them their slots' vectors."""
    sinks, rotated = keys[:, :, : at.sizes.num_sinks], at.sizes.rotated
    sinks[..., :rotated] = 0
    sinks[..., rotated:] += positions.transpose(0, 1)
    if at.early is not None:
        step, place = at.early
        time = at.hidden.shape[2]
        own = keys[:, :, -time:].transpose(1, 2)
        row, step = step // time, step % time
        marked = own[row, step]
        marked[..., :rotated] = 0
        marked[..., rotated:] += positions[place]
        own[row, step] = marked


def _backward(
    at: Moment,
    layer: int,
    grads: Sequence[Tensor | None],
    w: Weights,
    kept: _Kept,
    cached: Sequence[Tensor] | None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `x`, of the state's keys and values if these are given, and of all weights."""
    of_y, of_key, of_value = (None if grad is None else grad.reshape(kept.x.shape) for grad in grads)
    of_y = torch.zeros_like(kept.x) if of_y is None else of_y
    heads, dim, scale = at.sizes.heads, kept.x.shape[1], at.sizes.width**-0.5
    batch = len(kept.query) // heads
    of_hidden = torch.ops.aten.gelu_backward(of_y @ w.outward, kept.hidden)
    of_between, *of_norm_before = torch.ops.aten.native_layer_norm_backward(
        of_hidden @ w.inward,
        kept.between,
        [dim],
        kept.mean_between,
        kept.deviation_between,
        w.norm_before,
        w.norm_before_bias,
        [True, True, True],
    )
    of_between += of_y
    of_attention = _attention_backward(at, of_between @ w.out, kept, cached is not None)
    of_query, of_keys, of_values, of_positions = of_attention
    of_cache: list[Tensor | None] = [None, None]
    if cached is not None:
        found = zip((of_keys, of_values), cached, strict=True)
        of_cache = [_to_cache(at, layer, grad, cache) for grad, cache in found]
    time = of_query.shape[2]
    of_both = of_query.new_empty(len(kept.x), 2 * dim)
    _by_head(of_both[:, :dim], batch, heads).copy_(of_query)
    _by_head(of_both[:, dim:], batch, heads).copy_(of_keys[:, :, -time:])
    of_values = of_values[:, :, -time:].transpose(1, 2).reshape(kept.x.shape)
    if at.early is not None:
        step, place = at.early
        marked = of_both.index_select(0, step)
        by_head = marked[:, dim:].unflatten(1, (heads, -1))
        of_positions = of_positions.index_add(0, place, by_head[..., at.sizes.rotated :])
        by_head[..., : at.sizes.rotated] = 0
        of_both.index_copy_(0, step, marked)
    if of_key is not None:
        of_both[:, dim:] += of_key
    if of_value is not None:
        of_values = of_values + of_value
    swapped = of_both.index_select(1, at.swap)
    of_both.mul_(at.cos).addcmul_(swapped, at.sin, value=-1)
    of_normed = torch.addmm(of_values @ w.value, of_both, torch.cat([w.query * scale, w.key]))
    of_x, *of_norm = torch.ops.aten.native_layer_norm_backward(
        of_normed, kept.x, [dim], kept.mean, kept.deviation, w.norm, w.norm_bias, [True, True, True]
    )
    of_x += of_between
    of_weights = of_both.T @ kept.normed
    return (
        of_x.view(batch, -1, dim),
        *of_cache,
        *of_norm,
        of_weights[:dim] * scale,
        of_weights[dim:],
        of_values.T @ kept.normed,
        of_between.T @ kept.flat,
        of_positions,
        *of_norm_before,
        of_hidden.T @ kept.normed_between,
        of_hidden.sum(dim=0),
        of_y.T @ kept.active,
        of_y.sum(dim=0),
    )


def _attention_backward(
    at: Moment, of_flat: Float[Tensor, "steps D"], kept: _Kept, cached: bool
) -> tuple[Float[Tensor, "B H T E"], Float[Tensor, "B H n E"], Float[Tensor, "B H n E"], Tensor]:
    """Return the gradients of queries, unscaled, of keys and values, and of the cached sinks' vectors.

    Keys and values are the segment's own, its sinks marked, or all columns if `cached`.
    """
    heads, time = at.sizes.heads, kept.query.shape[1]
    batch = len(kept.query) // heads
    of_read = _by_head(of_flat, batch, heads).reshape(kept.query.shape) / kept.total
    of_scores = torch.bmm(of_read, kept.values.transpose(1, 2))
    of_scores.sub_((of_read * kept.read).sum(dim=-1, keepdim=True)).mul_(kept.scores)
    of_query = torch.bmm(of_scores, kept.keys)
    first = 0 if cached else kept.keys.shape[1] - time
    of_values = torch.bmm(kept.scores[..., first:].transpose(1, 2), of_read)
    query = kept.query * math.log(2)
    of_keys = torch.bmm(of_scores[..., first:].transpose(1, 2), query)
    of_sinks = of_keys if cached else torch.bmm(of_scores[..., : at.sizes.num_sinks].transpose(1, 2), query)
    of_query, of_keys, of_sinks, of_values = (
        grad.unflatten(0, (batch, heads)) for grad in (of_query, of_keys, of_sinks, of_values)
    )
    of_sinks, rotated = of_sinks[:, :, : at.sizes.num_sinks], at.sizes.rotated
    of_positions = of_sinks[..., rotated:].sum(dim=0).transpose(0, 1)
    of_sinks[..., :rotated] = 0
    return of_query, of_keys, of_values, of_positions.contiguous()


def _to_cache(at: Moment, layer: int, grad: Float[Tensor, "B H N E"], cache: Tensor) -> Tensor:
    """Return the gradient of the state's entry of that of the columns."""
    slots, dim = cache.shape[2:]
    rows = grad[:, :, : at.hidden.shape[3] - at.hidden.shape[2]].transpose(1, 2).reshape(-1, dim)
    found = cache.new_zeros(cache.shape)
    found.view(-1, dim).index_add_(0, at.cached + layer * slots, rows)
    return found
