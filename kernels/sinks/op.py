"""Sink attention: a causal sliding window over an episode, and the episode's first steps for ever.

StreamingLLM (Xiao et al. 2023, arXiv 2309.17453), and optionally a learned sink logit per head: one more column
of the softmax, whose value is zero. One op for a step over a ring buffer and for a segment with resets inside,
because all is said by step numbers. Key n is visible to query t if

    max(0, episode_start[t]) <= key_step[n] <= query_step[t]  and
    (key_step[n] < episode_start[t] + num_sinks  or  key_step[n] > query_step[t] - window).

So a reset clears nothing, since older steps are before the episode's start, and the order of keys is free.

Letters: B batch, T queries, N key slots, H query heads, G key heads, D width of keys, V width of values, R = H / G
query heads a key head, S sinks; in blocks of queries, K blocks, L queries and C columns a block. Query head h
reads key head `h * G // H`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.dispatch import (
    any_dual,
    is_compiled,
    is_traced,
    resolve,
    unsupported_dtype,
    without_autocast,
)

Implementation = Literal["auto", "reference", "torch", "dense", "banded", "triton"]

# Longer blocks of queries waste more on hidden columns than they save in copied keys.
_LONGEST_BLOCK = 64
_WIDEST_TRITON_HEAD = 256


@without_autocast
def sink_attention(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B N G D"],
    values: Float[Tensor, "B N G V"],
    query_step: Int[Tensor, "B T"],
    key_step: Int[Tensor, "B N"],
    episode_start: Int[Tensor, "B T"],
    *,
    window: int,
    num_sinks: int = 0,
    sink_logit: Float[Tensor, " H"] | None = None,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> Float[Tensor, "B T H V"]:
    """Return what each query reads of its episode's first `num_sinks` and last `window` steps, its own included.

    `query_step` and `key_step` are indices of steps in a row's stream, negative for an empty key slot, and
    `episode_start` is the index of the first step of the query's episode. No two slots may hold the same step.
    `sink_logit` is finite. `scale` defaults to D**-0.5. A query that sees nothing reads zeros; slots that no
    query sees may hold anything, NaN included. Scores are taken in at least float32.

    "torch" is "banded", linear in T, where the last T key slots are the queries' own steps in order and it pays,
    else "dense". Finding that out waits for a GPU; naming one of the two does not, and then the layout is only
    checked on the CPU.

    Raises ValueError on mismatched shapes, `window` < 1 or `num_sinks` < 0, TypeError on a wrong dtype.
    """
    _check(query, keys, values, query_step, key_step, episode_start, window, num_sinks, sink_logit)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    path = resolve(
        implementation,
        query,
        keys,
        values,
        sink_logit,
        paths=("dense", "banded"),
        unsupported=_unsupported_by_triton(query, keys, values),
    )
    steps = (query_step, key_step, episode_start)
    if path == "reference":
        return _reference(query, keys, values, sink_logit, *steps, window, num_sinks, scale)
    if path == "triton" or is_compiled():
        return _op(query, keys, values, sink_logit, *steps, window, num_sinks, scale, path)[0]
    return _eager(query, keys, values, sink_logit, *steps, window, num_sinks, scale, path)


def sink_slot(step_in_episode: Int[Tensor, "*batch"], num_sinks: int, window: int) -> Int[Tensor, "*batch"]:
    """Return the slot, of a cache of `num_sinks + window`, to which a step is written.

    Written so, the cache always holds all that `sink_attention` of the same sizes may read of the episode.
    """
    ring = num_sinks + (step_in_episode - num_sinks) % window
    return torch.where(step_in_episode < num_sinks, step_in_episode, ring)


def _visible(
    query_step: Int[Tensor, "*batch T"],
    key_step: Int[Tensor, "*batch N"],
    episode_start: Int[Tensor, "*batch T"],
    window: int,
    num_sinks: int,
) -> Bool[Tensor, "*batch T N"]:
    query, key, start = query_step[..., None], key_step[..., None, :], episode_start[..., None]
    in_episode = (key >= start.clamp(min=0)) & (key <= query)
    return in_episode & ((key < start + num_sinks) | (key > query - window))


def _reference(
    query, keys, values, sink_logit, query_step, key_step, episode_start, window, num_sinks, scale
) -> Tensor:
    """Compute the definition, one query and head at a time."""
    batch, time, heads, _ = query.shape
    groups = keys.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    rows = []
    for b in range(batch):
        for t in range(time):
            step, start = int(query_step[b, t]), int(episode_start[b, t])
            seen = [
                n
                for n, key in enumerate(key_step[b].tolist())
                if max(0, start) <= key <= step and (key < start + num_sinks or key > step - window)
            ]
            for h in range(heads):
                g = h * groups // heads
                scores = keys[b, seen, g].to(dtype) @ query[b, t, h].to(dtype) * scale
                if sink_logit is not None:
                    scores = torch.cat([scores, sink_logit[h : h + 1].to(dtype)])
                attention = torch.softmax(scores, dim=0)[: len(seen)]
                rows.append(attention @ values[b, seen, g].to(dtype))
    out = torch.stack(rows) if rows else query.new_zeros(0)
    return out.view(batch, time, heads, values.shape[-1]).to(query.dtype)


def _eager(query, keys, values, sink_logit, *options) -> Tensor:
    """Run the torch path, fused unless a derivative may be taken that the fused way lacks or is no faster at."""
    inputs = (query, keys, values, sink_logit)
    transformed = is_traced() or torch._C._are_functorch_transforms_active() or any_dual(*inputs)
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if not query.is_cpu or transformed or (learns and sink_logit is not None):
        return _torch(*inputs, *options, fused=False)
    if learns:
        return _FusedOnce.apply(query, keys, values, *options)
    return _torch(*inputs, *options, fused=True)


class _FusedOnce(torch.autograd.Function):
    """The torch path without sink_logit: its first derivative is fused, all others are those of the explicit way."""

    @staticmethod
    def forward(ctx, query, keys, values, *options):
        ctx.save_for_backward(query, keys, values)
        ctx.options = options
        ctx.leaves = [x.detach().requires_grad_(x.requires_grad) for x in (query, keys, values)]
        with torch.enable_grad():
            ctx.out = _torch(*ctx.leaves, None, *options, fused=True)
        return ctx.out.detach()

    @staticmethod
    def backward(ctx, grad):
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or any_dual(grad):
            grads = _pull_back(grad, *inputs, None, *ctx.options, fused=False)
        else:
            # The caller may come again: whether this graph is still wanted is not known here.
            leaves = [x for x in ctx.leaves if x.requires_grad]
            found = iter(torch.autograd.grad(ctx.out, leaves, grad, retain_graph=True))
            grads = [next(found) if x.requires_grad else None for x in ctx.leaves]
        return *grads, *[None] * len(ctx.options)


def _torch(query, keys, values, sink_logit, *options, fused) -> Tensor:
    """Run "dense" or "banded"; `fused` is faster on a CPU, but has a first derivative only, in reverse mode."""
    query_step, key_step, episode_start, window, num_sinks, scale, path = options
    steps = (query_step, key_step, episode_start)
    attend = _attend_fused if fused and query.is_cpu else _attend
    tracing = is_traced()
    if path == "torch":
        pays = not tracing and _band_pays(query.shape[1], keys.shape[1], window, num_sinks)
        path = "banded" if pays and _is_segment(*steps) else "dense"
    elif path == "banded" and not tracing and not query.is_cuda and not _is_segment(*steps):
        raise ValueError(
            "implementation='banded' needs consecutive query_step, the same in the last T of key_step, and an "
            "episode_start that changes only to later steps; use 'dense' or 'torch'"
        )
    run = _banded if path == "banded" else _dense
    return run(query, keys, values, sink_logit, *steps, window, num_sinks, scale, attend)


def _dense(
    query, keys, values, sink_logit, query_step, key_step, episode_start, window, num_sinks, scale, attend
) -> Tensor:
    """Score all pairs of a query and a slot."""
    visible = _visible(query_step, key_step, episode_start, window, num_sinks)
    return attend(query[:, None], keys[:, None], values[:, None], visible[:, None], sink_logit, scale)[:, 0]


def _banded(
    query, keys, values, sink_logit, query_step, key_step, episode_start, window, num_sinks, scale, attend
) -> Tensor:
    """Score each block of queries with the steps its window can reach and the sinks before those.

    A sink before a block's band is one of the episode that ran at the block's first query: every later start in
    the block is inside the band.
    """
    batch, time = query_step.shape
    slots = keys.shape[1]
    cached = slots - time
    block = _block_length(time, window)
    count = -(-time // block)
    padding = count * block - time
    behind = _reach(time, cached, window)
    device = query.device

    first = query_step[:, :1]
    recent = _slots_of(key_step[:, :cached], first - behind, behind, empty=slots)
    own = torch.arange(cached, slots, device=device).expand(batch, time)
    context = functional.pad(torch.cat([recent, own], dim=1), (0, padding), value=slots)
    columns = context.unfold(1, block + behind, block)
    if num_sinks:
        band_start = torch.arange(count, device=device)[:, None] * block - behind
        offset = episode_start[:, ::block, None] - first[..., None] + torch.arange(num_sinks, device=device)
        cached_sinks = _slots_of(key_step[:, :cached], episode_start[:, :1], num_sinks, empty=slots)
        sinks = torch.where(offset < 0, cached_sinks[:, None], cached + offset)
        columns = torch.cat([columns, sinks.masked_fill(offset >= band_start, slots)], dim=-1)

    steps = functional.pad(key_step, (0, 1), value=-1)
    steps = steps.gather(1, columns.flatten(1)).view_as(columns)
    block_query_step = functional.pad(query_step, (0, padding), value=-1).unflatten(1, (count, block))
    block_start = functional.pad(episode_start, (0, padding)).unflatten(1, (count, block))
    visible = _visible(block_query_step, steps, block_start, window, num_sinks)
    query = functional.pad(query, (0, 0, 0, 0, 0, padding)).unflatten(1, (count, block))
    out = attend(query, _fetch(keys, columns), _fetch(values, columns), visible, sink_logit, scale)
    return out.flatten(1, 2)[:, :time]


def _attend(
    query: Float[Tensor, "B K L H D"],
    keys: Float[Tensor, "B K C G D"],
    values: Float[Tensor, "B K C G V"],
    visible: Bool[Tensor, "B K L C"],
    sink_logit: Float[Tensor, " H"] | None,
    scale: float,
) -> Float[Tensor, "B K L H V"]:
    batch, count, length, heads, _ = query.shape
    groups = keys.shape[3]
    shared = heads // groups
    dtype = torch.promote_types(query.dtype, torch.float32)
    keys = _blank(keys, visible).transpose(2, 3).to(dtype).contiguous()
    values = _blank(values, visible).transpose(2, 3).to(dtype)
    left = (query.to(dtype) * scale).unflatten(3, (groups, shared)).permute(0, 1, 3, 4, 2, 5)
    scores = (left.flatten(3, 4) @ keys.mT).unflatten(3, (shared, length))
    hidden, reads = _hidden(visible, sink_logit, dtype)
    scores = scores + hidden[:, :, None, None]
    if sink_logit is None:
        attention = torch.softmax(scores, dim=-1)
    else:
        column = sink_logit.to(dtype).view(groups, shared, 1, 1).expand(batch, count, -1, -1, length, 1)
        attention = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    out = (attention.flatten(3, 4) @ values).unflatten(3, (shared, length))
    out = out.permute(0, 1, 4, 2, 3, 5).flatten(3, 4)
    return out.masked_fill(~reads[..., None], 0).to(query.dtype)


def _attend_fused(
    query: Float[Tensor, "B K L H D"],
    keys: Float[Tensor, "B K C G D"],
    values: Float[Tensor, "B K C G V"],
    visible: Bool[Tensor, "B K L C"],
    sink_logit: Float[Tensor, " H"] | None,
    scale: float,
) -> Float[Tensor, "B K L H V"]:
    """Do as `_attend`, in torch's fused attention."""
    batch, count, length, heads, _ = query.shape
    groups = keys.shape[3]
    shared = heads // groups
    # Half precision would round the attention to it, and be no faster.
    dtype = torch.promote_types(query.dtype, torch.float32)
    keys = _blank(keys, visible).to(dtype).flatten(0, 1).transpose(1, 2)
    values = _blank(values, visible).to(dtype).flatten(0, 1).transpose(1, 2)
    # The query heads of a key head are so many more queries: a step then reads its keys once.
    left = query.to(dtype).flatten(0, 1).unflatten(2, (groups, shared)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    hidden, reads = _hidden(visible, sink_logit, dtype)
    mask = hidden.flatten(0, 1)[:, None, None].expand(-1, -1, shared, -1, -1)
    if sink_logit is not None:
        keys, values = (torch.cat([x, x.new_zeros(()).expand_as(x[:, :, :1])], dim=2) for x in (keys, values))
        column = sink_logit.to(dtype).view(groups, shared, 1, 1).expand(batch * count, -1, -1, length, 1)
        mask = torch.cat([mask.expand(-1, groups, -1, -1, -1), column], dim=-1)
    mask = mask.flatten(2, 3)
    out = functional.scaled_dot_product_attention(left, keys, values, attn_mask=mask, scale=scale)
    out = out.unflatten(2, (shared, length)).permute(0, 3, 1, 2, 4).flatten(2, 3).unflatten(0, (batch, count))
    return out.masked_fill(~reads[..., None], 0).to(query.dtype)


def _hidden(
    visible: Bool[Tensor, "B K L C"], sink_logit: Tensor | None, dtype: torch.dtype
) -> tuple[Float[Tensor, "B K L C"], Bool[Tensor, "..."]]:
    """Return what to add to the scores, and which queries read anything."""
    # A row of nothing but -inf has no softmax: queries that see nothing score all alike, to read zeros after it.
    reads = visible.any(dim=-1, keepdim=True) if sink_logit is None else visible.new_ones(1, 1, 1, 1)
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible & reads, -math.inf), reads


def _blank(table: Float[Tensor, "B K C G D"], visible: Bool[Tensor, "B K L C"]) -> Float[Tensor, "B K C G D"]:
    """Zero the slots no query sees: their NaN would survive a multiplication by weight zero."""
    # Finding out that all is finite is ten times cheaper than zeroing, but on a GPU it would be a wait.
    if not is_traced() and not table.is_cuda and table.detach().sum().isfinite():
        return table
    return table.masked_fill(~visible.any(dim=2)[..., None, None], 0)


def _slots_of(
    key_step: Int[Tensor, "B N"], first: Int[Tensor, "B 1"], count: int, empty: int
) -> Int[Tensor, "B count"]:
    """Return which slots hold the steps `first, first + 1, ..`, `empty` where none does."""
    batch, slots = key_step.shape
    place = key_step - first
    place = place.masked_fill((key_step < 0) | (place < 0) | (place > count), count).long()
    held = torch.full((batch, count + 1), empty, device=key_step.device)
    slot = torch.arange(slots, device=key_step.device).expand(batch, slots)
    return held.scatter(1, place, slot)[:, :count]


def _fetch(table: Float[Tensor, "B N G D"], columns: Int[Tensor, "B K C"]) -> Float[Tensor, "B K C G D"]:
    """Return the slots of every block; past the last slot it may be any, for none sees it."""
    batch, slots = table.shape[:2]
    row = torch.arange(batch, device=table.device)[:, None, None] * slots + columns.clamp(max=slots - 1)
    return table.flatten(0, 1).index_select(0, row.flatten()).view(*columns.shape, *table.shape[2:])


def _is_segment(query_step: Tensor, key_step: Tensor, episode_start: Tensor) -> bool:
    """Return whether the last keys are the queries' own steps, in order, of episodes that follow each other."""
    time = query_step.shape[1]
    if time == 0 or key_step.shape[1] < time:
        return False
    own = key_step[:, -time:] == query_step
    before, start = query_step[:, :-1], episode_start
    follows = (query_step[:, 1:] == before + 1) & ((start[:, 1:] == start[:, :-1]) | (start[:, 1:] > before))
    return bool(own.all() & follows.all())


def _band_pays(time: int, slots: int, window: int, num_sinks: int) -> bool:
    if time < 2 or slots < time:
        return False
    columns = _block_length(time, window) + _reach(time, slots - time, window) + num_sinks
    # Fetching keys block by block costs about half as much as scoring them.
    return 5 * columns <= 3 * slots


def _block_length(time: int, window: int) -> int:
    """Return how many queries a block has: no more than needed to cover the segment evenly."""
    longest = min(max(window, 16), _LONGEST_BLOCK)
    return -(-time // -(-time // longest))


def _reach(time: int, cached: int, window: int) -> int:
    return window - 1 if cached else min(window, time) - 1


@torch.library.custom_op("scrubjay::sink_attention", mutates_args=())
def _op(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sink_logit: Tensor | None,
    query_step: Tensor,
    key_step: Tensor,
    episode_start: Tensor,
    window: int,
    num_sinks: int,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Return the read-out and, of Triton alone, the logarithm of each softmax's sum, `[B, T, H]`."""
    steps = (query_step, key_step, episode_start)
    if implementation == "triton":
        from scrubjay.kernels.sinks import gpu

        return gpu.forward(query, keys, values, sink_logit, *steps, window, num_sinks, scale)
    out = _torch(
        query, keys, values, sink_logit, *steps, window, num_sinks, scale, implementation, fused=True
    )
    return out.contiguous(), query.new_empty(0, dtype=torch.float32)


@_op.register_fake
def _op_fake(query, keys, values, *others):
    batch, time, heads, _ = query.shape
    shape = (batch, time, heads) if others[-1] == "triton" else (0,)
    return query.new_empty(batch, time, heads, values.shape[-1]), query.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("scrubjay::sink_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sink_logit: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    query_step: Tensor,
    key_step: Tensor,
    episode_start: Tensor,
    window: int,
    num_sinks: int,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients to query, keys, values and sink_logit, the last empty where there is none."""
    options = (query_step, key_step, episode_start, window, num_sinks, scale)
    if implementation == "triton":
        from scrubjay.kernels.sinks import gpu

        return gpu.backward(grad, query, keys, values, sink_logit, out, log_sum, *options)
    grads = _pull_back(
        grad, query, keys, values, sink_logit, *options, implementation, fused=sink_logit is None
    )
    grads = [gradient.contiguous() for gradient in grads]
    return grads[0], grads[1], grads[2], grads[3] if sink_logit is not None else query.new_empty(0)


@_backward_op.register_fake
def _backward_op_fake(grad, query, keys, values, sink_logit, *others):
    inputs = (query, keys, values, query.new_empty(0) if sink_logit is None else sink_logit)
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs)


def _pull_back(grad, query, keys, values, sink_logit, *options, fused) -> tuple[Tensor, ...]:
    """Return the gradients of the torch path; without sink_logit there are three."""
    inputs = (query, keys, values, sink_logit)[: 3 if sink_logit is None else 4]

    def run(query, keys, values, sink_logit=None):
        return _torch(query, keys, values, sink_logit, *options, fused=fused)

    # Works inside an op too, where autograd itself is switched off.
    return torch.func.vjp(run, *inputs)[1](grad)


def _save(ctx, inputs, output):
    ctx.options = inputs[7:]
    ctx.save_for_backward(*inputs[:7], *(output if inputs[-1] == "triton" else (None, None)))


def _backward(ctx, grad, _):
    query, keys, values, sink_logit, query_step, key_step, episode_start, out, log_sum = ctx.saved_tensors
    if out is None:
        out = log_sum = query.new_empty(0)
    inputs = (query, keys, values, sink_logit, out, log_sum, query_step, key_step, episode_start)
    *grads, sink_grad = _backward_op(grad, *inputs, *ctx.options)
    return *grads, None if sink_logit is None else sink_grad, *[None] * 7


def _save_for_second(ctx, inputs, output):
    ctx.options = inputs[10:]
    ctx.save_for_backward(*inputs[:5], *inputs[7:10])


def _second_backward(ctx, *grads):
    if ctx.options[-1] == "triton":
        raise NotImplementedError(
            "sink_attention with implementation='triton' is differentiable once; use 'torch' for second derivatives"
        )
    grad, query, keys, values, sink_logit, *steps = ctx.saved_tensors
    inputs = (grad, query, keys, values, sink_logit)[: 4 if sink_logit is None else 5]

    def run(grad, query, keys, values, sink_logit=None):
        return _pull_back(grad, query, keys, values, sink_logit, *steps, *ctx.options, fused=False)

    pulled = torch.func.vjp(run, *inputs)[1](grads[: len(inputs) - 1])
    return *pulled, *[None] * (14 - len(pulled))


_op.register_autograd(_backward, setup_context=_save)
_backward_op.register_autograd(_second_backward, setup_context=_save_for_second)


def _unsupported_by_triton(query: Tensor, keys: Tensor, values: Tensor) -> str | None:
    if reason := unsupported_dtype(query):
        return reason
    if keys.dtype != query.dtype or values.dtype != query.dtype:
        return f"no kernel for a mixture of {query.dtype}, {keys.dtype} and {values.dtype}"
    width = max(query.shape[-1], values.shape[-1])
    if width > _WIDEST_TRITON_HEAD:
        return f"no kernel for heads of width {width}, above {_WIDEST_TRITON_HEAD}"
    return None


def _check(query, keys, values, query_step, key_step, episode_start, window, num_sinks, sink_logit) -> None:
    if window < 1:
        raise ValueError(f"window={window}: it counts the query's own step, so it must be at least 1")
    if num_sinks < 0:
        raise ValueError(f"num_sinks={num_sinks}: it must be 0 or more")
    for name, tensor in (("query", query), ("keys", keys), ("values", values)):
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected 4 dimensions")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected a floating-point one")
    batch, time, heads, width = query.shape
    slots, groups = keys.shape[1:3]
    if keys.shape[0] != batch or keys.shape[3] != width:
        raise ValueError(f"keys has shape {tuple(keys.shape)}; expected [{batch}, N, G, {width}]")
    if values.shape[:3] != keys.shape[:3]:
        raise ValueError(f"values has shape {tuple(values.shape)}; expected {tuple(keys.shape[:3])} + (V,)")
    if groups < 1 or heads % groups:
        raise ValueError(f"{groups} key heads do not divide {heads} query heads evenly")
    for name, tensor, shape in (
        ("query_step", query_step, (batch, time)),
        ("key_step", key_step, (batch, slots)),
        ("episode_start", episode_start, (batch, time)),
    ):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected int64 or int32")
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")
    if sink_logit is not None and sink_logit.shape != (heads,):
        raise ValueError(f"sink_logit has shape {tuple(sink_logit.shape)}; expected ({heads},)")
