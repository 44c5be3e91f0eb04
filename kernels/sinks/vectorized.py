"""Vectorized torch implementations of sink attention: dense or banded, explicit or with fused attention.

Dimension letters as in `sink_attention`.
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

# Longest block of queries of the banded path. Longer blocks
# spend more on masked columns than they save in copied keys.
_LONGEST_BLOCK = 64

# Block of queries of the dense path on a segment. Slots of steps after a block are skipped.
_CAUSAL_BLOCK = 64


Readout = tuple[Tensor, Tensor | None]
"""Attention output and, on request, the log-sum-exp of its scores."""


def read_out(query, keys, values, sink_logit, *options, use_fused) -> Tensor:
    """Run the "dense" or the "banded" path and return the output.

    Fused attention is faster on a CPU, but supports first-order reverse-mode gradients only.
    """
    attend = _attend_fused if use_fused and query.is_cpu else _attend
    return _dispatch(query, keys, values, sink_logit, *options, attend)[0]


def read_out_with_lse(*inputs) -> Readout:
    """Run the "dense" or the "banded" path. Return the output and the log-sum-exp of its scores."""
    return _dispatch(*inputs, functools.partial(_attend, return_lse=True))


def _dispatch(query, keys, values, sink_logit, *options) -> Readout:
    query_step, key_step, episode_start, window, num_sinks, scale, path, attend = options
    steps = (query_step, key_step, episode_start)
    tracing = is_traced()
    if path == "torch":
        band_pays = not tracing and _band_pays(query.shape[1], keys.shape[1], window, num_sinks)
        path = "banded" if band_pays and _is_segment(*steps) else "dense"
    elif path == "banded" and not tracing and not query.is_cuda and not _is_segment(*steps):
        raise ValueError(
            "implementation='banded' requires that query_step is consecutive and that key_step ends with the "
            "same values. Each episode_start must equal the previous one or be greater than the previous "
            "query_step. For other inputs use 'dense' or 'torch'"
        )
    run = _run_banded if path == "banded" else _run_dense
    return run(query, keys, values, sink_logit, *steps, window, num_sinks, scale, attend)


def visible_slots(
    query_step: Int[Tensor, "*batch T"],
    key_step: Int[Tensor, "*batch N"],
    episode_start: Int[Tensor, "*batch T"],
    window: int,
    num_sinks: int,
) -> Bool[Tensor, "*batch T N"]:
    """Return a mask of the keys that are visible to each query."""
    query, key, start = query_step.unsqueeze(-1), key_step.unsqueeze(-2), episode_start.unsqueeze(-1)
    in_episode = (key >= start.clamp(min=0)) & (key <= query)
    return in_episode & ((key < start + num_sinks) | (key > query - window))


def _run_dense(
    query, keys, values, sink_logit, query_step, key_step, episode_start, window, num_sinks, scale, attend
) -> Readout:
    """Score all pairs of a query and a slot.

    If the last slots hold the steps of the queries (see `_is_segment`), the queries may be split into blocks.
    Each block then skips the slots of later steps.
    """
    steps = query_step, key_step, episode_start
    in_blocks = _can_loop_over_blocks(attend, query, keys, values) and query.shape[1] >= 2 * _CAUSAL_BLOCK
    if not in_blocks or not _is_segment(*steps):
        return attend(query, keys, values, visible_slots(*steps, window, num_sinks), sink_logit, scale)
    parts = []
    for queries, slots in _split_causal_blocks(query.shape[1], keys.shape[1]):
        block_steps = query_step[:, queries], key_step[:, slots], episode_start[:, queries]
        visible = visible_slots(*block_steps, window, num_sinks)
        parts.append(attend(query[:, queries], keys[:, slots], values[:, slots], visible, sink_logit, scale))
    return torch.cat([out for out, _ in parts], dim=1), None


def _can_loop_over_blocks(attend, *inputs: Tensor) -> bool:
    """Return True if blocks of queries can be computed one at a time.

    With gradients this would be slower: several blocks would add to the gradients of the same slots.
    """
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return attend is _attend_fused and not learns and not is_traced()


def _split_causal_blocks(time: int, slots: int) -> list[tuple[slice, slice]]:
    """Split a segment's queries into blocks, each with the slots up to the last step of the block."""
    count = time // _CAUSAL_BLOCK
    bounds = [time * index // count for index in range(count + 1)]
    return [(slice(a, b), slice(slots - time + b)) for a, b in itertools.pairwise(bounds)]


def _run_banded(
    query, keys, values, sink_logit, query_step, key_step, episode_start, window, num_sinks, scale, attend
) -> Readout:
    """Score each block of queries against its band, and against the sinks before the band.

    The band of a block is all steps within the windows of its queries. Only the episode of the first query
    can have sinks before the band. Episodes that start later in the block have their sinks inside the band.
    """
    batch, time = query_step.shape
    slots = keys.shape[1]
    cache_size = slots - time
    block = _block_length(time, window)
    count = -(-time // block)
    padding = count * block - time
    lookback = _count_earlier_steps(time, cache_size, window)
    device = query.device

    first = query_step[:, :1]
    recent = _find_slots(key_step[:, :cache_size], first - lookback, lookback, empty=slots)
    own_slots = torch.arange(cache_size, slots, device=device).expand(batch, time)
    context = functional.pad(torch.cat([recent, own_slots], dim=1), (0, padding), value=slots)
    columns = context.unfold(1, block + lookback, block)
    if num_sinks:
        band_start = torch.arange(count, device=device)[:, None] * block - lookback
        offset = episode_start[:, ::block, None] - first[..., None] + torch.arange(num_sinks, device=device)
        cached_sinks = _find_slots(key_step[:, :cache_size], episode_start[:, :1], num_sinks, empty=slots)
        sinks = torch.where(offset < 0, cached_sinks[:, None], cache_size + offset)
        columns = torch.cat([columns, sinks.masked_fill(offset >= band_start, slots)], dim=-1)

    steps = functional.pad(key_step, (0, 1), value=-1)
    steps = steps.gather(1, columns.flatten(1)).view_as(columns)
    block_query_step = functional.pad(query_step, (0, padding), value=-1).unflatten(1, (count, block))
    block_start = functional.pad(episode_start, (0, padding)).unflatten(1, (count, block))
    visible = visible_slots(block_query_step, steps, block_start, window, num_sinks)
    # Padding by zero would still copy the tensor.
    query = functional.pad(query, (0, 0, 0, 0, 0, padding)) if padding else query
    query = query.unflatten(1, (count, block))
    if _can_loop_over_blocks(attend, query, keys, values):
        # One block at a time, so that its gathered keys are still in the CPU cache when they are used.
        parts = []
        for index in range(count):
            block = (_fetch(x, columns[:, index : index + 1])[:, 0] for x in (keys, values))
            parts.append(attend(query[:, index], *block, visible[:, index], sink_logit, scale)[0])
        return torch.cat(parts, dim=1)[:, :time], None
    flat = (x.flatten(0, 1) for x in (query, _fetch(keys, columns), _fetch(values, columns), visible))
    read = (None if x is None else x.unflatten(0, (batch, count)) for x in attend(*flat, sink_logit, scale))
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
) -> Readout:
    batch, length, heads, _ = query.shape
    groups = keys.shape[2]
    shared = heads // groups
    dtype = torch.promote_types(query.dtype, torch.float32)
    keys, values = (x.transpose(1, 2).to(dtype) for x in _zero_invisible_slots(keys, values, visible))
    keys = keys.contiguous()
    left = (query.to(dtype) * scale).unflatten(2, (groups, shared)).permute(0, 2, 3, 1, 4)
    scores = (left.flatten(2, 3) @ keys.mT).unflatten(2, (shared, length))
    hidden, sees_any = _build_score_bias(visible, sink_logit, dtype)
    scores = scores + hidden[:, None, None]
    if sink_logit is not None:
        column = sink_logit.to(dtype).view(groups, shared, 1, 1).expand(batch, -1, -1, length, 1)
        scores = torch.cat([scores, column], dim=-1)
    attention = torch.softmax(scores, dim=-1)[..., : visible.shape[-1]]
    out = (attention.flatten(2, 3) @ values).unflatten(2, (shared, length))
    out = out.permute(0, 3, 1, 2, 4).flatten(2, 3)
    if sees_any is not None:
        out = out.masked_fill(~sees_any[..., None], 0)
    out = out.to(query.dtype)
    if not return_lse:
        return out, None
    if scores.shape[-1] == 0:
        return out, out.new_full(out.shape[:-1], -math.inf, dtype=dtype)
    lse = torch.logsumexp(scores, dim=-1).permute(0, 3, 1, 2).flatten(2, 3)
    return out, lse if sees_any is None else lse.masked_fill(~sees_any, -math.inf)


def _attend_fused(
    query: Float[Tensor, "B L H D"],
    keys: Float[Tensor, "B C G D"],
    values: Float[Tensor, "B C G V"],
    visible: Bool[Tensor, "B L C"],
    sink_logit: Float[Tensor, " H"] | None,
    scale: float,
) -> Readout:
    """Compute `_attend` with torch's `scaled_dot_product_attention`."""
    if not is_traced():
        # NaN in an invisible slot makes the output NaN, and the output is cheaper to check than the slots.
        out = _scaled_dot_product(query, keys, values, visible, sink_logit, scale)
        if math.isfinite(out.detach().sum().item()):
            return out, None
    keys, values = _zero_invisible_slots(keys, values, visible)
    mask, sees_any = _select_scored_slots(visible) if sink_logit is None else (visible, None)
    out = _scaled_dot_product(query, keys, values, mask, sink_logit, scale)
    return out if sees_any is None else out.masked_fill(~sees_any[..., None], 0), None


def _scaled_dot_product(
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
    # Half precision would round the attention weights and be no faster.
    dtype = torch.promote_types(query.dtype, torch.float32)
    # Treat the query heads of one key head as additional queries, so that a step reads its keys once.
    left, keys, values = (x.to(dtype).transpose(1, 2) for x in (query, keys, values))
    mask = mask[:, None]
    if shared > 1:
        left = left.unflatten(1, (groups, shared)).flatten(2, 3)
        mask = mask[:, :, None].expand(-1, -1, shared, -1, -1).flatten(2, 3)
    if sink_logit is not None:
        keys, values = (torch.cat([x, x.new_zeros(()).expand_as(x[:, :, :1])], dim=2) for x in (keys, values))
        zero, minus_infinity = (
            torch.tensor(value, dtype=dtype, device=mask.device) for value in (0, -math.inf)
        )
        mask = torch.where(mask, zero, minus_infinity).expand(-1, groups, -1, -1)
        column = sink_logit.to(dtype).repeat_interleave(length).view(1, groups, shared * length, 1)
        mask = torch.cat([mask, column.expand(batch, -1, -1, -1)], dim=-1)
    out = functional.scaled_dot_product_attention(left, keys, values, attn_mask=mask, scale=scale)
    if shared > 1:
        out = out.unflatten(2, (shared, length)).flatten(1, 2)
    return out.transpose(1, 2).to(query.dtype)


def _select_scored_slots(
    visible: Bool[Tensor, "B L C"],
) -> tuple[Bool[Tensor, "B L C"], Bool[Tensor, "B L 1"] | None]:
    """Return a mask of the slots to score, and a mask of the queries that see any slot.

    The second mask is None if all queries are known to see a slot. The softmax of a row of -inf is
    undefined. So a query without visible slots scores all slots, and its output is set to zero afterwards.
    """
    sees_any = visible.any(dim=-1, keepdim=True)
    # On a GPU this check would synchronize.
    if is_traced() or visible.is_cuda or not sees_any.all():
        return visible | ~sees_any, sees_any
    return visible, None


def _build_score_bias(
    visible: Bool[Tensor, "B L C"], sink_logit: Tensor | None, dtype: torch.dtype
) -> tuple[Float[Tensor, "B L C"], Bool[Tensor, "B L 1"] | None]:
    """Return the bias of the scores, and a mask of the queries that see any slot.

    The bias is 0 for each slot that is scored, and -inf for all other slots. The mask is None if `sink_logit`
    is given, or if all queries are known to see a slot.
    """
    zero, minus_infinity = (
        torch.tensor(value, dtype=dtype, device=visible.device) for value in (0, -math.inf)
    )
    sees_any = None
    if sink_logit is None:
        visible, sees_any = _select_scored_slots(visible)
    return torch.where(visible, zero, minus_infinity), sees_any


def _zero_invisible_slots(
    keys: Float[Tensor, "B C G D"], values: Float[Tensor, "B C G V"], visible: Bool[Tensor, "B L C"]
) -> tuple[Float[Tensor, "B C G D"], Float[Tensor, "B C G V"]]:
    """Zero the slots that no query sees.

    A NaN in such a slot would survive the multiplication by weight zero.
    """
    is_used = visible.any(dim=1)
    # Checking that all slots are used or finite is far cheaper than zeroing, but synchronizes a GPU.
    if not is_traced() and not keys.is_cuda:
        finite = is_used.all() or (keys.detach().sum() + values.detach().sum()).isfinite()
        if finite:
            return keys, values
    invisible = ~is_used[..., None, None]
    return keys.masked_fill(invisible, 0), values.masked_fill(invisible, 0)


def _find_slots(
    key_step: Int[Tensor, "B N"], first: Int[Tensor, "B 1"], count: int, empty: int
) -> Int[Tensor, "B count"]:
    """Return the slot of each step from `first` to `first + count - 1`.

    The result is `empty` for a step that is in no slot. `key_step` holds the step in each slot.
    """
    batch, slots = key_step.shape
    offset = key_step - first
    offset = offset.masked_fill((key_step < 0) | (offset < 0) | (offset > count), count).long()
    slot_table = torch.full((batch, count + 1), empty, device=key_step.device)
    slot = torch.arange(slots, device=key_step.device).expand(batch, slots)
    return slot_table.scatter(1, offset, slot)[:, :count]


def _fetch(table: Float[Tensor, "B N G D"], columns: Int[Tensor, "B K C"]) -> Float[Tensor, "B K C G D"]:
    """Gather the slots of each block. Indices past the last slot are clamped, because no query sees them."""
    batch, slots = table.shape[:2]
    row = torch.arange(batch, device=table.device)[:, None, None] * slots + columns.clamp(max=slots - 1)
    return table.flatten(0, 1).index_select(0, row.flatten()).view(*columns.shape, *table.shape[2:])


def _is_segment(query_step: Tensor, key_step: Tensor, episode_start: Tensor) -> bool:
    """Return True if the last T slots hold the steps of the T queries in order.

    The steps must be consecutive. Each query must be in the episode of the previous query, or in an episode
    that begins after the step of the previous query.
    """
    time = query_step.shape[1]
    if time == 0 or key_step.shape[1] < time:
        return False
    own_slots = key_step[:, -time:] == query_step
    before, start = query_step[:, :-1], episode_start
    follows = (query_step[:, 1:] == before + 1) & ((start[:, 1:] == start[:, :-1]) | (start[:, 1:] > before))
    return bool(own_slots.all() & follows.all())


def _band_pays(time: int, slots: int, window: int, num_sinks: int) -> bool:
    if time < 2 or slots < time:
        return False
    columns = _block_length(time, window) + _count_earlier_steps(time, slots - time, window) + num_sinks
    # Gathering keys block by block costs about half as much as scoring them.
    return 5 * columns <= 3 * slots


def _block_length(time: int, window: int) -> int:
    """Return the number of queries per block, such that blocks cover the segment evenly."""
    longest = min(max(window, 16), _LONGEST_BLOCK)
    return -(-time // -(-time // longest))


def _count_earlier_steps(time: int, cache_size: int, window: int) -> int:
    return window - 1 if cache_size else min(window, time) - 1
