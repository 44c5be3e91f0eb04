"""A segment of `WindowAttention`, with its gradient by hand.

All steps' queries score all that the segment sees in one product. Pairs of coordinates that turn together lie
side by side, so that one complex product turns them; weights and what is cached are laid out so on the way
in, and back on the way out. The softmax is one to the base 2.

Letters: B batch, T steps, H heads, E width of a head, D = H * E, P persistent tokens, W window, N
columns: P + W - 1 + T or up to three more, which nobody sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.heap import keep_freed
from scrubjay.memory.parts.rotary import complex_turns, in_pairs, turn_pairs

_EVEN = 4
"""What the number of columns is a multiple of: products of odd ones take a quarter longer."""


class Weights(NamedTuple):
    """The parameters of `WindowAttention`, in the order that `read_segment` takes them in."""

    query: Float[Tensor, "D D"]
    key: Float[Tensor, "D D"]
    value: Float[Tensor, "D D"]
    out: Float[Tensor, "D D"]
    persistent_keys: Float[Tensor, "P H still"]
    persistent_values: Float[Tensor, "P H E"]


class Moment(NamedTuple):
    """What follows from steps and sizes."""

    hidden: Float[Tensor, "B 1 T N"]
    """What is added to scores: 0 or -inf."""
    turn: Complex[Tensor, "B T 1 E//2"]
    pairs: Int[Tensor, " D"]
    """Where coordinates come from that lie in pairs..."""
    apart: Int[Tensor, " D"]
    """...and the way back."""
    heads: int
    persistent: int
    before: int
    """Steps before the segment."""
    kept: int
    """Steps at the segment's end that outlast it."""


class _Kept(NamedTuple):
    """What the way back needs of the way forward."""

    query: Float[Tensor, "B*H T E"]
    keys: Float[Tensor, "B*H N E"]
    values: Float[Tensor, "B*H N E"]
    scores: Float[Tensor, "B*H T N"]
    total: Float[Tensor, "B*H T 1"]
    read: Float[Tensor, "B*H T E"]
    flat: Float[Tensor, "B*T D"]


def moment(clock: Clock, window: int, heads: int, persistent: int, cos: Tensor, sin: Tensor) -> Moment:
    """Return what a segment's steps see, and how they are turned.

    Args:
        clock: Where the steps are.
        window: Steps that one sees.
        heads: Of attention.
        persistent: Tokens that all see.
        cos: `[B, T, E]`, of every step and place of a head.
        sin: The same.
    """
    batch, time, width = cos.shape
    pairs, apart = in_pairs(heads, width, width // 4 * 2)
    step = torch.arange(time)[:, None]
    # Steps are counted from the segment's first.
    column = torch.arange(1 - window, time)
    first = torch.maximum(clock.birth - clock.age[:, None], step[:, 0] - window + 1)
    seen = (column >= first[..., None]) & (column <= step)
    extra = -(persistent + window - 1 + time) % _EVEN
    hidden = torch.full((batch, 1, time, persistent + extra + len(column)), -math.inf, dtype=cos.dtype)
    hidden[..., :persistent] = 0
    hidden[:, 0, :, persistent + extra :].masked_fill_(seen, 0)
    turn = complex_turns(pairs, cos, sin)[:, :, None]
    return Moment(hidden, turn, pairs, apart, heads, persistent, window - 1, min(time, window - 1))


def read_segment(
    plain: Callable[..., Sequence[Tensor]],
    at: Moment,
    x: Float[Tensor, "B T D"],
    keys: Float[Tensor, "B before D"],
    values: Float[Tensor, "B before D"],
    *weights: Tensor,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B kept D"], Float[Tensor, "B kept D"]]:
    """Return what every step reads, and keys and values of the last steps.

    Args:
        plain: The same of `x`, `keys`, `values` and weights, of plain operations.
        at: What follows from steps.
        x: Inputs.
        keys: Of the steps before.
        values: Of the steps before.
        weights: Those of `Weights`.
    """
    return _Segment.apply(plain, at, x, keys, values, *weights)


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plain, at, x, keys, values, *weights):
        keep_freed()
        *outputs, kept = _forward(at, x, keys, values, Weights(*weights))
        ctx.plain, ctx.at = plain, at
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, keys, values, *weights, *kept)
        return tuple(outputs)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads):
        count = 3 + len(Weights._fields)
        given, kept = ctx.saved_tensors[:count], _Kept(*ctx.saved_tensors[count:])
        if all(grad is None for grad in grads):
            return (None,) * (2 + count)
        if is_wanted_again(*grads):
            return None, None, *by_graph(ctx.plain, given, *grads)
        cached = any(ctx.needs_input_grad[3:5])
        return None, None, *_backward(ctx.at, grads, given[0], Weights(*given[3:]), kept, cached)


def _forward(at: Moment, x: Tensor, keys: Tensor, values: Tensor, w: Weights) -> tuple[Any, ...]:
    batch, time, dim = x.shape
    heads, width, still = at.heads, dim // at.heads, at.persistent
    # exp2(x * log2(e)) takes a third of the time of exp(x).
    own = torch.mm(x.reshape(-1, dim), _projections(at, w, width**-0.5 * math.log2(math.e)).T)
    own = own.view(batch, time, 3, heads, width)
    query = x.new_empty(batch, heads, time, width)
    columns = x.new_zeros(2, batch, heads, at.hidden.shape[3], width)
    turn_pairs(own[:, :, 0], at.turn, query.transpose(1, 2))
    behind = columns[..., -time:, :].transpose(2, 3)
    turn_pairs(own[:, :, 1], at.turn, behind[0])
    behind[1].copy_(own[:, :, 2])
    before = columns[..., -time - at.before : -time, :].transpose(2, 3)
    before[0] = keys.index_select(2, at.pairs).unflatten(2, (heads, width))
    before[1] = values.unflatten(2, (heads, width))
    columns[0, :, :, :still, width - w.persistent_keys.shape[2] :] = w.persistent_keys.transpose(0, 1)
    columns[1, :, :, :still] = w.persistent_values.transpose(0, 1)
    all_keys, all_values = columns.flatten(1, 2)
    query = query.flatten(0, 1)
    scores = torch.bmm(query, all_keys.mT)
    scores.view(batch, heads, *scores.shape[1:]).add_(at.hidden)
    scores.sub_(scores.amax(dim=-1, keepdim=True)).exp2_()
    total = scores.sum(dim=-1, keepdim=True)
    read = torch.bmm(scores, all_values).div_(total)
    flat = read.view(batch, heads, time, width).transpose(1, 2).reshape(-1, dim)
    last = behind[:, :, time - at.kept :].flatten(3)
    y = torch.mm(flat, w.out.T).view(x.shape)
    kept = _Kept(query, all_keys, all_values, scores, total, read, flat)
    return y, last[0].index_select(2, at.apart), last[1].clone(), kept


def _backward(
    at: Moment, grads: Sequence[Tensor | None], x: Tensor, w: Weights, kept: _Kept, cached: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `x`, of what was cached if that is asked for, and of all weights."""
    batch, time, dim = x.shape
    heads, width, still = at.heads, dim // at.heads, at.persistent
    of_y = x.new_zeros(len(kept.flat), dim) if grads[0] is None else grads[0].reshape(-1, dim)
    of_flat = torch.mm(of_y, w.out).view(batch, time, heads, width).transpose(1, 2)
    of_read = of_flat.reshape(kept.read.shape) / kept.total
    of_scores = torch.bmm(of_read, kept.values.mT)
    of_scores.sub_((of_read * kept.read).sum(dim=-1, keepdim=True)).mul_(kept.scores)
    of_query = torch.bmm(of_scores, kept.keys)
    whole = slice(None)
    parts = (whole,) if cached else (slice(still), slice(-time, None))
    of_keys, of_values = (
        [torch.bmm(a[..., part].mT, b).unflatten(0, (batch, heads)) for part in parts]
        for a, b in ((of_scores, kept.query * math.log(2)), (kept.scores, of_read))
    )
    own = [part[-1][..., -time:, :].transpose(1, 2) for part in (of_keys, of_values)]
    if grads[1] is not None:
        own[0][:, time - at.kept :] += grads[1].index_select(2, at.pairs).unflatten(2, (heads, width))
    if grads[2] is not None:
        own[1][:, time - at.kept :] += grads[2].unflatten(2, (heads, width))
    of_own = x.new_empty(batch, time, 3, heads, width)
    back = at.turn.conj().resolve_conj()
    turn_pairs(of_query.view(batch, heads, time, width).transpose(1, 2), back, of_own[:, :, 0])
    turn_pairs(own[0], back, of_own[:, :, 1])
    of_own[:, :, 2] = own[1]
    rows, scale = of_own.view(-1, 3 * dim), width**-0.5
    of_weights = (rows.T @ x.reshape(-1, dim)).split(dim)
    of_cache: list[Tensor | None] = [None, None]
    if cached:
        before = slice(-time - at.before, -time)
        behind = [part[0][..., before, :].transpose(1, 2).flatten(2) for part in (of_keys, of_values)]
        of_cache = [behind[0].index_select(2, at.apart), behind[1]]
    return (
        (rows @ _projections(at, w, scale)).view(x.shape),
        *of_cache,
        of_weights[0].index_select(0, at.apart) * scale,
        of_weights[1].index_select(0, at.apart),
        of_weights[2],
        of_y.T @ kept.flat,
        of_keys[0][:, :, :still, width - w.persistent_keys.shape[2] :].sum(0).transpose(0, 1),
        of_values[0][:, :, :still].sum(0).transpose(0, 1),
    )


def _projections(at: Moment, w: Weights, scale: float) -> Float[Tensor, "three_dims D"]:
    """Return the weights of queries, `scale` times, keys and values, the first two in pairs."""
    query, key = (weight.index_select(0, at.pairs) for weight in (w.query, w.key))
    return torch.cat([query * scale, key, w.value])
