"""Sink attention in vectorised torch: all pairs of a query and a slot, or a band of them, fused or not.

Letters as in `sink_attention`.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.dispatch import is_traced

# Longer blocks of queries waste more on hidden columns than they save in copied keys.
_LONGEST_BLOCK = 64

# Blocks of queries of one segment all of whose pairs are scored: what is after a block is left out.
_CAUSAL_BLOCK = 64


Read = tuple[Tensor, Tensor | None]
"""What is read and, if asked for, the logarithm of its softmax's sum."""


def read_out(query, keys, values, sink_logit, *options, fused) -> Tensor:
    """Run "dense" or "banded"; `fused` is faster on a CPU, but has one derivative only, in reverse mode."""
    attend = _attend_fused if fused and query.is_cpu else _attend
    return _run(query, keys, values, sink_logit, *options, attend)[0]


def read_out_with_lse(*inputs) -> Read:
    """Run "dense" or "banded", the logarithm of each softmax's sum beside the read-out."""
    return _run(*inputs, functools.partial(_attend, return_lse=True))


def _run(query, keys, values, sink_logit, *options) -> Read:
    query_step, key_step, episode_start, window, num_sinks, scale, path, attend = options
    steps = (query_step, key_step, episode_start)
    tracing = is_traced()
    if path == "torch":
        pays = not tracing and _band_pays(query.shape[1], keys.shape[1], window, num_sinks)
        path = "banded" if pays and _is_segment(*steps) else "dense"
    elif path == "banded" and not tracing and not query.is_cuda and not _is_segment(*steps):
        raise ValueError(
            "implementation='banded' needs consecutive query_step, the same in the last T of key_step, and "
            "an "
            "episode_start that changes only to later steps; use 'dense' or 'torch'"
        )
    run = _banded if path == "banded" else _dense
    return run(query, keys, values, sink_logit, *steps, window, num_sinks, scale, attend)


def visible_slots(
    query_step: Int[Tensor, "*batch T"],
    key_step: Int[Tensor, "*batch N"],
    episode_start: Int[Tensor, "*batch T"],
    window: int,
    num_sinks: int,
) -> Bool[Tensor, "*batch T N"]:
    """Return which keys each query sees."""
    query, key, start = query_step.unsqueeze(-1), key_step.unsqueeze(-2), episode_start.unsqueeze(-1)
    in_episode = (key >= start.clamp(min=0)) & (key <= query)
    return in_episode & ((key < start + num_sinks) | (key > query - window))


def _dense(
    query, keys, values, sink_logit, query_step, key_step, episode_start, window, num_sinks, scale, attend
) -> Read:
    """Score all pairs of a query and a slot, but for slots after all of a block's in a segment."""
    steps = query_step, key_step, episode_start
    in_blocks = _one_by_one(attend, query, keys, values) and query.shape[1] >= 2 * _CAUSAL_BLOCK
    if not in_blocks or not _is_segment(*steps):
        return attend(query, keys, values, visible_slots(*steps, window, num_sinks), sink_logit, scale)
    parts = []
    for queries, slots in _runs(query.shape[1], keys.shape[1]):
        asked, held, start = query_step[:, queries], key_step[:, slots], episode_start[:, queries]
        visible = visible_slots(asked, held, start, window, num_sinks)
        parts.append(attend(query[:, queries], keys[:, slots], values[:, slots], visible, sink_logit, scale))
    return torch.cat([out for out, _ in parts], dim=1), None


def _one_by_one(attend, *inputs: Tensor) -> bool:
    """Return whether blocks of queries may be read one by one.

    On the way back the gradients of the slots of several would have to be added.
    """
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return attend is _attend_fused and not learns and not is_traced()


def _runs(time: int, slots: int) -> list[tuple[slice, slice]]:
    """Return blocks of a segment's queries, each with the slots that it may see."""
    count = time // _CAUSAL_BLOCK
    bounds = [time * index // count for index in range(count + 1)]
    return [(slice(a, b), slice(slots - time + b)) for a, b in itertools.pairwise(bounds)]


def _banded(
    query, keys, values, sink_logit, query_step, key_step, episode_start, window, num_sinks, scale, attend
) -> Read:
    """Score each block of queries with the steps its window can reach and the sinks before those.

    A sink before a block's band is one of the episode that ran at the block's first query: every later start
    in the block is inside the band.
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
    visible = visible_slots(block_query_step, steps, block_start, window, num_sinks)
    # A padding by nothing would copy all the same.
    query = functional.pad(query, (0, 0, 0, 0, 0, padding)) if padding else query
    query = query.unflatten(1, (count, block))
    if _one_by_one(attend, query, keys, values):
        # What is fetched for one block is in the cache still when it is read.
        parts = []
        for index in range(count):
            held = (_fetch(x, columns[:, index : index + 1])[:, 0] for x in (keys, values))
            parts.append(attend(query[:, index], *held, visible[:, index], sink_logit, scale)[0])
        return torch.cat(parts, dim=1)[:, :time], None
    given = (x.flatten(0, 1) for x in (query, _fetch(keys, columns), _fetch(values, columns), visible))
    read = (None if x is None else x.unflatten(0, (batch, count)) for x in attend(*given, sink_logit, scale))
    out, lse = (None if x is None else x.flatten(1, 2)[:, :time] for x in read)
    assert out is not None
    return out, lse


def _attend(
    query: Float[Tensor, "B L H D"],
    keys: Float[Tensor, "B C G D"],
    values: Float[Tensor, "B C G V"],
    visible: Bool[Tensor, "B L C"],
    sink_logit: Float[Tensor, " H"] | None,
    scale: float,
    return_lse: bool = False,
) -> Read:
    batch, length, heads, _ = query.shape
    groups = keys.shape[2]
    shared = heads // groups
    dtype = torch.promote_types(query.dtype, torch.float32)
    keys, values = (x.transpose(1, 2).to(dtype) for x in _blank(keys, values, visible))
    keys = keys.contiguous()
    left = (query.to(dtype) * scale).unflatten(2, (groups, shared)).permute(0, 2, 3, 1, 4)
    scores = (left.flatten(2, 3) @ keys.mT).unflatten(2, (shared, length))
    hidden, reads = _hidden(visible, sink_logit, dtype)
    scores = scores + hidden[:, None, None]
    if sink_logit is not None:
        column = sink_logit.to(dtype).view(groups, shared, 1, 1).expand(batch, -1, -1, length, 1)
        scores = torch.cat([scores, column], dim=-1)
    attention = torch.softmax(scores, dim=-1)[..., : visible.shape[-1]]
    out = (attention.flatten(2, 3) @ values).unflatten(2, (shared, length))
    out = out.permute(0, 3, 1, 2, 4).flatten(2, 3)
    if reads is not None:
        out = out.masked_fill(~reads[..., None], 0)
    out = out.to(query.dtype)
    if not return_lse:
        return out, None
    if scores.shape[-1] == 0:
        return out, out.new_full(out.shape[:-1], -math.inf, dtype=dtype)
    lse = torch.logsumexp(scores, dim=-1).permute(0, 3, 1, 2).flatten(2, 3)
    return out, lse if reads is None else lse.masked_fill(~reads, -math.inf)


def _attend_fused(
    query: Float[Tensor, "B L H D"],
    keys: Float[Tensor, "B C G D"],
    values: Float[Tensor, "B C G V"],
    visible: Bool[Tensor, "B L C"],
    sink_logit: Float[Tensor, " H"] | None,
    scale: float,
) -> Read:
    """Do as `_attend`, in torch's fused attention."""
    if not is_traced():
        # NaN in a slot that nobody sees shows in what is read, and that is cheaper to look at than slots.
        out = _fused(query, keys, values, visible, sink_logit, scale)
        if math.isfinite(out.detach().sum().item()):
            return out, None
    keys, values = _blank(keys, values, visible)
    mask, reads = _seen(visible) if sink_logit is None else (visible, None)
    out = _fused(query, keys, values, mask, sink_logit, scale)
    return out if reads is None else out.masked_fill(~reads[..., None], 0), None


def _fused(
    query: Float[Tensor, "B L H D"],
    keys: Float[Tensor, "B C G D"],
    values: Float[Tensor, "B C G V"],
    mask: Bool[Tensor, "B L C"],
    sink_logit: Float[Tensor, " H"] | None,
    scale: float,
) -> Float[Tensor, "B L H V"]:
    batch, length, heads, _ = query.shape
    groups = keys.shape[2]
    shared = heads // groups
    # Half precision would round the attention to it, and be no faster.
    dtype = torch.promote_types(query.dtype, torch.float32)
    # The query heads of a key head are so many more queries: a step then reads its keys once.
    left, keys, values = (x.to(dtype).transpose(1, 2) for x in (query, keys, values))
    mask = mask[:, None]
    if shared > 1:
        left = left.unflatten(1, (groups, shared)).flatten(2, 3)
        mask = mask[:, :, None].expand(-1, -1, shared, -1, -1).flatten(2, 3)
    if sink_logit is not None:
        keys, values = (torch.cat([x, x.new_zeros(()).expand_as(x[:, :, :1])], dim=2) for x in (keys, values))
        nothing, never = (torch.tensor(value, dtype=dtype, device=mask.device) for value in (0, -math.inf))
        mask = torch.where(mask, nothing, never).expand(-1, groups, -1, -1)
        column = sink_logit.to(dtype).repeat_interleave(length).view(1, groups, shared * length, 1)
        mask = torch.cat([mask, column.expand(batch, -1, -1, -1)], dim=-1)
    out = functional.scaled_dot_product_attention(left, keys, values, attn_mask=mask, scale=scale)
    if shared > 1:
        out = out.unflatten(2, (shared, length)).flatten(1, 2)
    return out.transpose(1, 2).to(query.dtype)


def _seen(
    visible: Bool[Tensor, "B L C"],
) -> tuple[Bool[Tensor, "B L C"], Bool[Tensor, "B L 1"] | None]:
    """Return which slots are to be scored, and which queries read anything, None if all do.

    A row of nothing but -inf has no softmax: queries that see nothing score all alike, to read zeros after
    it.
    """
    reads = visible.any(dim=-1, keepdim=True)
    # On a GPU finding out that all read would be a wait.
    if is_traced() or visible.is_cuda or not reads.all():
        return visible | ~reads, reads
    return visible, None


def _hidden(
    visible: Bool[Tensor, "B L C"], sink_logit: Tensor | None, dtype: torch.dtype
) -> tuple[Float[Tensor, "B L C"], Bool[Tensor, "B L 1"] | None]:
    """Return what to add to the scores, and which queries read anything, None if all do."""
    nothing, never = (torch.tensor(value, dtype=dtype, device=visible.device) for value in (0, -math.inf))
    reads = None
    if sink_logit is None:
        visible, reads = _seen(visible)
    return torch.where(visible, nothing, never), reads


def _blank(
    keys: Float[Tensor, "B C G D"], values: Float[Tensor, "B C G V"], visible: Bool[Tensor, "B L C"]
) -> tuple[Float[Tensor, "B C G D"], Float[Tensor, "B C G V"]]:
    """Zero the slots no query sees: their NaN would survive a multiplication by weight zero."""
    seen = visible.any(dim=1)
    # Finding out that all is seen, or finite, is far cheaper than zeroing, but on a GPU it would be a wait.
    if not is_traced() and not keys.is_cuda:
        finite = seen.all() or (keys.detach().sum() + values.detach().sum()).isfinite()
        if finite:
            return keys, values
    unseen = ~seen[..., None, None]
    return keys.masked_fill(unseen, 0), values.masked_fill(unseen, 0)


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
    """Return whether the last keys are the queries' own steps, in order, of successive episodes."""
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
