"""Sink attention on a GPU: forward and backward kernels and their launches.

A row is a query with one of the R query heads that share a key head, `row = t * R + r`: a tile of rows reads the
keys of its group once, and at a decode step the R heads are the tile. Pairs of tiles that cannot see each other
are skipped. Steps are relative to the first query's and int32, which is exact for episodes of up to 2**30 steps.
No kernel uses atomics, so gradients are the same in every run.

Letters: B batch, T queries, N key slots, H query heads, G key heads, D width of keys, V width of values,
R = H / G query heads a key head.
"""
# Triton's stubs know neither jitted functions nor the arithmetic of its tensors.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch, with_dense_rows

_FAR = tl.constexpr(2**30)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _relative(step, base):
    near = tl.minimum(tl.maximum(step - base, -_FAR), _FAR).to(tl.int32)
    return tl.where(step < 0, -_FAR - 1, near)


@triton.jit
def _place(tiles, groups):
    """The tile, the key head and the batch row of this program."""
    program = tl.program_id(0).to(tl.int64)
    return program % tiles, program // tiles % groups, program // tiles // groups


@triton.jit
def _load_limits(
    query_step, episode_start, query_step_t, episode_start_t, time, inside, base, window, num_sinks
):
    """What rows may see: from `first` to `last` the steps before `sink_end` and those after `passed`."""
    step = tl.load(query_step + time * query_step_t, mask=inside, other=-1).to(tl.int64)
    start = tl.load(episode_start + time * episode_start_t, mask=inside, other=0).to(tl.int64)
    first = _relative(tl.maximum(start, 0), base)
    before_stream = tl.maximum(tl.minimum(start, 0), -_FAR).to(tl.int32)
    last = _relative(step, base)
    return first, last, tl.maximum(first + before_stream, -_FAR) + num_sinks, last - window


@triton.jit
def _load_keys(key_step, key_step_n, slot, slots, base):
    step = tl.load(key_step + slot * key_step_n, mask=slot < slots, other=-1).to(tl.int64)
    return _relative(step, base)


@triton.jit
def _visible(key, first, last, sink_end, passed):
    return (key >= first) & (key <= last) & ((key < sink_end) | (key > passed))


@triton.jit
def _widest_limits(first, last, sink_end, passed):
    """Limits that hide only what is hidden from all rows."""
    reads = last >= -_FAR
    first = tl.min(tl.where(reads, first, _FAR))
    passed = tl.min(tl.where(reads, passed, _FAR))
    return first, tl.max(last), tl.max(tl.where(reads, sink_end, -_FAR)), passed


@triton.jit
def _load_tile(pointer, rows, inside, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Load a tile whose row i begins at `rows[i]`."""
    column = tl.arange(0, BLOCK)
    mask = inside[:, None]
    if WIDTH < BLOCK:
        mask = mask & (column < WIDTH)[None, :]
    return tl.load(pointer + rows[:, None] + column[None, :], mask=mask, other=0.0)


@triton.jit
def _store_tile(pointer, rows, inside, tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    mask = inside[:, None]
    if WIDTH < BLOCK:
        mask = mask & (column < WIDTH)[None, :]
    tl.store(pointer + rows[:, None] + column[None, :], tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _forward_kernel(
    query,
    keys,
    values,
    sink_logit,
    query_step,
    key_step,
    episode_start,
    out,
    log_sum,
    query_b,
    query_t,
    query_h,
    keys_b,
    keys_n,
    keys_g,
    values_b,
    values_n,
    values_g,
    query_step_b,
    query_step_t,
    key_step_b,
    key_step_n,
    episode_start_b,
    episode_start_t,
    queries,
    slots,
    groups,
    window,
    num_sinks,
    scale,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    tile, group, batch = _place(tl.cdiv(queries * SHARED, BLOCK_ROWS), groups)
    row = (tile * BLOCK_ROWS).to(tl.int32) + tl.arange(0, BLOCK_ROWS)
    inside = row < queries * SHARED
    time, head = (row // SHARED).to(tl.int64), group * SHARED + row % SHARED
    query_step += batch * query_step_b
    key_step += batch * key_step_b
    episode_start += batch * episode_start_b
    base = tl.load(query_step).to(tl.int64)
    first, last, sink_end, passed = _load_limits(
        query_step, episode_start, query_step_t, episode_start_t, time, inside, base, window, num_sinks
    )
    first_of_all, last_of_all, sink_end_of_all, passed_by_all = _widest_limits(first, last, sink_end, passed)

    q = _load_tile(query, batch * query_b + time * query_t + head * query_h, inside, WIDTH, BLOCK_WIDTH)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    highest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    if sink_logit is not None:
        highest = tl.load(sink_logit + head, mask=inside, other=0.0).to(tl.float32) * _LOG2_E
        total += 1.0
    read = tl.zeros([BLOCK_ROWS, BLOCK_VALUE], tl.float32)
    for start in range(0, slots, BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS).to(tl.int64)
        key = _load_keys(key_step, key_step_n, slot, slots, base)
        near = _visible(key, first_of_all, last_of_all, sink_end_of_all, passed_by_all)
        if tl.max(near.to(tl.int32)) > 0:
            visible = _visible(
                key[None, :], first[:, None], last[:, None], sink_end[:, None], passed[:, None]
            )
            # A slot that no row sees may hold NaN, which even weight zero would let through.
            seen = _visible(key[:, None], first[None, :], last[None, :], sink_end[None, :], passed[None, :])
            seen = tl.max(seen.to(tl.int32), axis=1) > 0
            k = _load_tile(keys, batch * keys_b + slot * keys_n + group * keys_g, seen, WIDTH, BLOCK_WIDTH)
            v = _load_tile(
                values, batch * values_b + slot * values_n + group * values_g, seen, VALUE_WIDTH, BLOCK_VALUE
            )
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * _LOG2_E)
            score = tl.where(visible, score, float("-inf"))
            higher = tl.maximum(highest, tl.max(score, axis=1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp2(score - safe[:, None])
            decay = tl.exp2(highest - safe)
            total = total * decay + tl.sum(weight, axis=1)
            read = read * decay[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
            highest = higher
    read = read / tl.where(total == 0, 1.0, total)[:, None]
    flat = (batch * queries + time) * (groups * SHARED) + head
    _store_tile(out, flat * VALUE_WIDTH, inside, read, VALUE_WIDTH, BLOCK_VALUE)
    log = tl.where(total == 0, float("-inf"), highest / _LOG2_E + tl.log(tl.where(total == 0, 1.0, total)))
    tl.store(log_sum + flat, log, mask=inside)


@triton.jit
def _query_gradient_kernel(
    grad,
    query,
    keys,
    values,
    query_step,
    key_step,
    episode_start,
    out,
    log_sum,
    delta,
    query_grad,
    grad_b,
    grad_t,
    grad_h,
    query_b,
    query_t,
    query_h,
    keys_b,
    keys_n,
    keys_g,
    values_b,
    values_n,
    values_g,
    query_step_b,
    query_step_t,
    key_step_b,
    key_step_n,
    episode_start_b,
    episode_start_t,
    queries,
    slots,
    groups,
    window,
    num_sinks,
    scale,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    tile, group, batch = _place(tl.cdiv(queries * SHARED, BLOCK_ROWS), groups)
    row = (tile * BLOCK_ROWS).to(tl.int32) + tl.arange(0, BLOCK_ROWS)
    inside = row < queries * SHARED
    time, head = (row // SHARED).to(tl.int64), group * SHARED + row % SHARED
    query_step += batch * query_step_b
    key_step += batch * key_step_b
    episode_start += batch * episode_start_b
    base = tl.load(query_step).to(tl.int64)
    first, last, sink_end, passed = _load_limits(
        query_step, episode_start, query_step_t, episode_start_t, time, inside, base, window, num_sinks
    )
    first_of_all, last_of_all, sink_end_of_all, passed_by_all = _widest_limits(first, last, sink_end, passed)

    flat = (batch * queries + time) * (groups * SHARED) + head
    q = _load_tile(query, batch * query_b + time * query_t + head * query_h, inside, WIDTH, BLOCK_WIDTH)
    do = _load_tile(grad, batch * grad_b + time * grad_t + head * grad_h, inside, VALUE_WIDTH, BLOCK_VALUE)
    read = _load_tile(out, flat * VALUE_WIDTH, inside, VALUE_WIDTH, BLOCK_VALUE)
    mean = tl.sum(do.to(tl.float32) * read.to(tl.float32), axis=1)
    tl.store(delta + flat, mean, mask=inside)
    log = tl.load(log_sum + flat, mask=inside, other=0.0)
    log = tl.where(log == float("-inf"), 0.0, log) * _LOG2_E
    dq = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
    for start in range(0, slots, BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS).to(tl.int64)
        key = _load_keys(key_step, key_step_n, slot, slots, base)
        near = _visible(key, first_of_all, last_of_all, sink_end_of_all, passed_by_all)
        if tl.max(near.to(tl.int32)) > 0:
            visible = _visible(
                key[None, :], first[:, None], last[:, None], sink_end[:, None], passed[:, None]
            )
            seen = _visible(key[:, None], first[None, :], last[None, :], sink_end[None, :], passed[None, :])
            seen = tl.max(seen.to(tl.int32), axis=1) > 0
            k = _load_tile(keys, batch * keys_b + slot * keys_n + group * keys_g, seen, WIDTH, BLOCK_WIDTH)
            v = _load_tile(
                values, batch * values_b + slot * values_n + group * values_g, seen, VALUE_WIDTH, BLOCK_VALUE
            )
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * _LOG2_E)
            weight = tl.where(visible, tl.exp2(score - log[:, None]), 0.0)
            weight_grad = tl.dot(do, tl.trans(v), input_precision="ieee")
            score_grad = weight * (weight_grad - mean[:, None])
            dq += tl.dot(score_grad.to(k.dtype), k, input_precision="ieee")
    _store_tile(query_grad, flat * WIDTH, inside, dq * scale, WIDTH, BLOCK_WIDTH)


@triton.jit
def _key_gradient_kernel(
    grad,
    query,
    keys,
    values,
    query_step,
    key_step,
    episode_start,
    log_sum,
    delta,
    keys_grad,
    values_grad,
    grad_b,
    grad_t,
    grad_h,
    query_b,
    query_t,
    query_h,
    keys_b,
    keys_n,
    keys_g,
    values_b,
    values_n,
    values_g,
    query_step_b,
    query_step_t,
    key_step_b,
    key_step_n,
    episode_start_b,
    episode_start_t,
    queries,
    slots,
    groups,
    window,
    num_sinks,
    scale,
    SHARED: tl.constexpr,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    tile, group, batch = _place(tl.cdiv(slots, BLOCK_KEYS), groups)
    slot = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    held = slot < slots
    query_step += batch * query_step_b
    key_step += batch * key_step_b
    episode_start += batch * episode_start_b
    base = tl.load(query_step, mask=queries > 0, other=0).to(tl.int64)
    key = _load_keys(key_step, key_step_n, slot, slots, base)
    earliest = tl.min(tl.where(key < -_FAR, _FAR, key))
    latest = tl.max(key)

    k = _load_tile(keys, batch * keys_b + slot * keys_n + group * keys_g, held, WIDTH, BLOCK_WIDTH)
    v = _load_tile(
        values, batch * values_b + slot * values_n + group * values_g, held, VALUE_WIDTH, BLOCK_VALUE
    )
    dk = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_KEYS, BLOCK_VALUE], tl.float32)
    for start in range(0, queries * SHARED, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        inside = row < queries * SHARED
        time, head = row // SHARED, group * SHARED + row % SHARED
        first, last, sink_end, passed = _load_limits(
            query_step, episode_start, query_step_t, episode_start_t, time, inside, base, window, num_sinks
        )
        near = (first <= latest) & (last >= earliest) & ((sink_end > earliest) | (passed < latest))
        if tl.max(near.to(tl.int32)) > 0:
            flat = (batch * queries + time) * (groups * SHARED) + head
            q = _load_tile(
                query, batch * query_b + time * query_t + head * query_h, inside, WIDTH, BLOCK_WIDTH
            )
            do = _load_tile(
                grad, batch * grad_b + time * grad_t + head * grad_h, inside, VALUE_WIDTH, BLOCK_VALUE
            )
            log = tl.load(log_sum + flat, mask=inside, other=0.0)
            log = tl.where(log == float("-inf"), 0.0, log) * _LOG2_E
            mean = tl.load(delta + flat, mask=inside, other=0.0)
            # Tiles lie with the keys down. NaN of slots nobody sees stays in its row, which is replaced.
            visible = _visible(
                key[:, None], first[None, :], last[None, :], sink_end[None, :], passed[None, :]
            )
            score = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * _LOG2_E)
            weight = tl.where(visible, tl.exp2(score - log[None, :]), 0.0)
            dv += tl.dot(weight.to(do.dtype), do, input_precision="ieee")
            weight_grad = tl.dot(v, tl.trans(do), input_precision="ieee")
            score_grad = tl.where(visible, weight * (weight_grad - mean[None, :]), 0.0)
            dk += tl.dot(score_grad.to(q.dtype), q, input_precision="ieee")
    flat = (batch * slots + slot) * groups + group
    _store_tile(keys_grad, flat * WIDTH, held, dk * scale, WIDTH, BLOCK_WIDTH)
    _store_tile(values_grad, flat * VALUE_WIDTH, held, dv, VALUE_WIDTH, BLOCK_VALUE)


def forward(
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
) -> tuple[Tensor, Tensor]:
    """Return the read-out `[B, T, H, V]` and the logarithm of each softmax's sum, `[B, T, H]` float32."""
    query, keys, values = map(with_dense_rows, (query, keys, values))
    sink_logit = None if sink_logit is None else sink_logit.contiguous()
    out = query.new_empty(*query.shape[:3], values.shape[-1])
    log_sum = query.new_empty(query.shape[:3], dtype=torch.float32)
    steps = (query_step, key_step, episode_start)
    _forward_launch(query, keys, values, sink_logit, *steps, out, log_sum, window, num_sinks, scale).run()
    return out, log_sum


def backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients to query, keys, values and sink_logit, the last empty where there is none."""
    grad, query, keys, values = map(with_dense_rows, (grad, query, keys, values))
    out, log_sum = out.contiguous(), log_sum.contiguous()
    query_grad, keys_grad, values_grad = (tensor.new_empty(tensor.shape) for tensor in (query, keys, values))
    delta = torch.empty_like(log_sum)
    inputs = (grad, query, keys, values, query_step, key_step, episode_start)
    sizes = (window, num_sinks, scale)
    _query_gradient_launch(*inputs, out, log_sum, delta, query_grad, *sizes).run()
    _key_gradient_launch(*inputs, log_sum, delta, keys_grad, values_grad, *sizes).run()
    if sink_logit is None:
        return query_grad, keys_grad, values_grad, query.new_empty(0)
    sink_grad = -(torch.exp(sink_logit.float() - log_sum) * delta).sum(dim=(0, 1))
    return query_grad, keys_grad, values_grad, sink_grad.to(sink_logit.dtype)


def configurations() -> dict[str, Launch]:
    """Return the launches of the main sizes on tensors without data, to be compiled in checks."""
    launches = {}
    for dtype, width in ((torch.float16, 64), (torch.bfloat16, 128), (torch.float32, 64)):
        name = f"{str(dtype).removeprefix('torch.')}, D={width}"
        launches[f"decode: {name}"] = _meta_launches(dtype, width, queries=1)["forward"]
        for kernel, launch in _meta_launches(dtype, width, queries=1024).items():
            launches[f"{kernel}: {name}"] = launch
    return launches


def _meta_launches(dtype: torch.dtype, width: int, queries: int) -> dict[str, Launch]:
    def tensor(*shape, dtype=dtype):
        return torch.empty(*shape, dtype=dtype, device="meta")

    batch, heads, groups, slots = 8, 8, 2, queries + 132
    query = grad = out = query_grad = tensor(batch, queries, heads, width)
    keys = values = keys_grad = values_grad = tensor(batch, slots, groups, width)
    log_sum = delta = tensor(batch, queries, heads, dtype=torch.float32)
    query_step = episode_start = tensor(batch, queries, dtype=torch.int64)
    steps = (query_step, tensor(batch, slots, dtype=torch.int64), episode_start)
    sizes = (128, 4, width**-0.5)
    sink_logit = tensor(heads, dtype=torch.float32)
    inputs = (grad, query, keys, values, *steps)
    return {
        "forward": _forward_launch(query, keys, values, sink_logit, *steps, out, log_sum, *sizes),
        "query gradient": _query_gradient_launch(*inputs, out, log_sum, delta, query_grad, *sizes),
        "key gradient": _key_gradient_launch(*inputs, log_sum, delta, keys_grad, values_grad, *sizes),
    }


def _forward_launch(
    query,
    keys,
    values,
    sink_logit,
    query_step,
    key_step,
    episode_start,
    out,
    log_sum,
    window,
    num_sinks,
    scale,
) -> Launch:
    tensors = {"query": query, "keys": keys, "values": values}
    steps = {"query_step": query_step, "key_step": key_step, "episode_start": episode_start}
    extra = {"sink_logit": sink_logit, "out": out, "log_sum": log_sum}
    return _launch(_forward_kernel, tensors, steps, extra, window, num_sinks, scale)


def _query_gradient_launch(
    grad,
    query,
    keys,
    values,
    query_step,
    key_step,
    episode_start,
    out,
    log_sum,
    delta,
    query_grad,
    window,
    num_sinks,
    scale,
) -> Launch:
    tensors = {"query": query, "keys": keys, "values": values, "grad": grad}
    steps = {"query_step": query_step, "key_step": key_step, "episode_start": episode_start}
    extra = {"out": out, "log_sum": log_sum, "delta": delta, "query_grad": query_grad}
    return _launch(_query_gradient_kernel, tensors, steps, extra, window, num_sinks, scale)


def _key_gradient_launch(
    grad,
    query,
    keys,
    values,
    query_step,
    key_step,
    episode_start,
    log_sum,
    delta,
    keys_grad,
    values_grad,
    window,
    num_sinks,
    scale,
) -> Launch:
    tensors = {"query": query, "keys": keys, "values": values, "grad": grad}
    steps = {"query_step": query_step, "key_step": key_step, "episode_start": episode_start}
    extra = {"log_sum": log_sum, "delta": delta, "keys_grad": keys_grad, "values_grad": values_grad}
    return _launch(_key_gradient_kernel, tensors, steps, extra, window, num_sinks, scale)


def _launch(
    kernel: Any,
    tensors: dict[str, Tensor],
    steps: dict[str, Tensor],
    extra: dict[str, Tensor | None],
    window: int,
    num_sinks: int,
    scale: float,
) -> Launch:
    batch, queries, heads, width = tensors["query"].shape
    slots, groups, value_width = tensors["values"].shape[1:]
    rows = queries * (heads // groups)
    by_keys = kernel is _key_gradient_kernel
    constants, num_warps = _choose_blocks(rows, width, value_width, tensors["query"].dtype, kernel)
    tiles = (
        triton.cdiv(slots, constants["BLOCK_KEYS"]) if by_keys else triton.cdiv(rows, constants["BLOCK_ROWS"])
    )
    strides = {
        f"{name}_{letter}": stride
        for name, tensor in tensors.items()
        for letter, stride in zip(
            "bng" if name in ("keys", "values") else "bth", tensor.stride(), strict=False
        )
    }
    strides |= {
        f"{name}_{letter}": stride
        for name, tensor in steps.items()
        for letter, stride in zip("bn" if name == "key_step" else "bt", tensor.stride(), strict=True)
    }
    # Beyond this all is in reach, and int32 arithmetic stays exact.
    far = _FAR.value - 1
    sizes = {"queries": queries, "slots": slots, "groups": groups, "scale": scale}
    limits = {"window": min(window, far), "num_sinks": min(num_sinks, far)}
    constants |= {"SHARED": heads // groups, "WIDTH": width, "VALUE_WIDTH": value_width}
    arguments = tensors | steps | extra | strides | sizes | limits
    return Launch(kernel, (tiles * groups * batch,), arguments, constants, num_warps)


def _choose_blocks(
    rows: int, width: int, value_width: int, dtype: torch.dtype, kernel: Any
) -> tuple[dict[str, int], int]:
    """Return the tile sizes and the number of warps: none spills at widths to 128, or 64 in float32."""
    block_width = max(16, triton.next_power_of_2(width))
    block_value = max(16, triton.next_power_of_2(value_width))
    widest = max(block_width, block_value)
    if dtype == torch.float32:
        outer, inner = (32, 32) if widest <= 64 else (32, 16) if widest <= 128 else (16, 16)
        num_warps = 8
    elif widest <= 128:
        outer, inner, num_warps = 64, 32, 4 if kernel is _forward_kernel or widest <= 64 else 8
    else:
        outer, inner, num_warps = 32, 32, 8
    block_rows, block_keys = (inner, outer) if kernel is _key_gradient_kernel else (outer, inner)
    # A decode step has only the heads of a group: its tiles are low, so they may be long.
    fewest = max(16, triton.next_power_of_2(rows))
    if fewest <= 16 and kernel is _forward_kernel and dtype != torch.float32:
        block_keys, num_warps = 64, 4
    blocks = {
        "BLOCK_ROWS": min(block_rows, fewest),
        "BLOCK_KEYS": block_keys,
        "BLOCK_WIDTH": block_width,
        "BLOCK_VALUE": block_value,
    }
    return blocks, num_warps
