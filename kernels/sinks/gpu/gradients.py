# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
"""Backward kernels of sink attention.

One kernel computes the query gradient; each of its programs handles a tile of rows, where a row is a query of
one head. The other kernel computes the gradients of keys and values; each of its programs handles a tile of
keys.

Letters in shape comments: R rows of a tile, K keys, D and V the widths of keys and values; all padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scrubjay.kernels.sinks.gpu.tiles import (
    FAR,
    LOG2_E,
    is_any_visible,
    load_keys,
    load_limits,
    load_tile,
    locate_program,
    locate_rows,
    store_tile,
    visible_by_key,
    visible_by_row,
)


@triton.jit
def query_gradient_kernel(
    grad_ptr, query_ptr, keys_ptr, values_ptr, query_step_ptr, key_step_ptr, episode_start_ptr, out_ptr,
    log_sum_ptr, log_sum_grad_ptr, delta_ptr, query_grad_ptr,
    grad_b, grad_t, grad_h, query_b, query_t, query_h, keys_b, keys_n, keys_g, values_b, values_n, values_g,
    query_step_b, query_step_t, key_step_b, key_step_n, episode_start_b, episode_start_t,
    queries, slots, groups, window, num_sinks, scale,
    SHARED: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one tile of queries, and `delta`, which the other kernel needs."""
    tile, group, batch = locate_program(tl.cdiv(queries * SHARED, BLOCK_ROWS), groups)
    time, head, inside = locate_rows(tile, group, queries, SHARED, BLOCK_ROWS)
    # Load the visibility limits of each row.
    query_step_ptr += batch * query_step_b
    key_step_ptr += batch * key_step_b
    episode_start_ptr += batch * episode_start_b
    base = tl.load(query_step_ptr).to(tl.int64)
    limits = load_limits(
        query_step_ptr,
        episode_start_ptr,
        query_step_t,
        episode_start_t,
        time,
        inside,
        base,
        window,
        num_sinks,
    )

    flat = (batch * queries + time) * (groups * SHARED) + head
    # [R, D]
    q = load_tile(query_ptr, batch * query_b + time * query_t + head * query_h, inside, WIDTH, BLOCK_WIDTH)
    # [R, V]
    do = load_tile(grad_ptr, batch * grad_b + time * grad_t + head * grad_h, inside, VALUE_WIDTH, BLOCK_VALUE)
    read = load_tile(out_ptr, flat * VALUE_WIDTH, inside, VALUE_WIDTH, BLOCK_VALUE)
    # Compute and store delta, which both gradients subtract from the gradient of the weights.
    mean = tl.sum(do.to(tl.float32) * read.to(tl.float32), axis=1)
    if log_sum_grad_ptr is not None:
        # The derivative of the log-sum-exp by a score is its weight.
        mean -= tl.load(log_sum_grad_ptr + flat, mask=inside, other=0.0)
    tl.store(delta_ptr + flat, mean, mask=inside)
    # [R]
    log = tl.load(log_sum_ptr + flat, mask=inside, other=0.0)
    log = tl.where(log == float("-inf"), 0.0, log) * LOG2_E
    # Recompute the softmax from its log-sum-exp and accumulate the query gradient.
    dq = tl.zeros([BLOCK_ROWS, BLOCK_WIDTH], tl.float32)
    for start in range(0, slots, BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS).to(tl.int64)
        # [K]
        key = load_keys(key_step_ptr, key_step_n, slot, slots, base)
        if is_any_visible(key, limits):
            visible = visible_by_row(key, limits)
            key_used = tl.max(visible_by_key(key, limits).to(tl.int32), axis=1) > 0
            # [K, D]
            k = load_tile(
                keys_ptr, batch * keys_b + slot * keys_n + group * keys_g, key_used, WIDTH, BLOCK_WIDTH
            )
            # [K, V]
            v = load_tile(
                values_ptr,
                batch * values_b + slot * values_n + group * values_g,
                key_used,
                VALUE_WIDTH,
                BLOCK_VALUE,
            )
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
            weight = tl.where(visible, tl.exp2(score - log[:, None]), 0.0)
            weight_grad = tl.dot(do, tl.trans(v), input_precision="ieee")
            score_grad = weight * (weight_grad - mean[:, None])
            dq += tl.dot(score_grad.to(k.dtype), k, input_precision="ieee")
    store_tile(query_grad_ptr, flat * WIDTH, inside, dq * scale, WIDTH, BLOCK_WIDTH)


@triton.jit
def key_gradient_kernel(
    grad_ptr, query_ptr, keys_ptr, values_ptr, query_step_ptr, key_step_ptr, episode_start_ptr, log_sum_ptr,
    delta_ptr, keys_grad_ptr, values_grad_ptr,
    grad_b, grad_t, grad_h, query_b, query_t, query_h, keys_b, keys_n, keys_g, values_b, values_n, values_g,
    query_step_b, query_step_t, key_step_b, key_step_n, episode_start_b, episode_start_t,
    queries, slots, groups, window, num_sinks, scale,
    SHARED: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one tile of keys and of their values."""
    tile, group, batch = locate_program(tl.cdiv(slots, BLOCK_KEYS), groups)
    slot = tile * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    inside_slots = slot < slots
    # Load the keys' steps and find the earliest and the latest of the tile.
    query_step_ptr += batch * query_step_b
    key_step_ptr += batch * key_step_b
    episode_start_ptr += batch * episode_start_b
    base = tl.load(query_step_ptr, mask=queries > 0, other=0).to(tl.int64)
    # [K]
    key = load_keys(key_step_ptr, key_step_n, slot, slots, base)
    earliest = tl.min(tl.where(key < -FAR, FAR, key))
    latest = tl.max(key)

    # [K, D]
    k = load_tile(keys_ptr, batch * keys_b + slot * keys_n + group * keys_g, inside_slots, WIDTH, BLOCK_WIDTH)
    # [K, V]
    v = load_tile(
        values_ptr,
        batch * values_b + slot * values_n + group * values_g,
        inside_slots,
        VALUE_WIDTH,
        BLOCK_VALUE,
    )
    # Loop over the tiles of rows and skip those that see none of these keys.
    dk = tl.zeros([BLOCK_KEYS, BLOCK_WIDTH], tl.float32)
    dv = tl.zeros([BLOCK_KEYS, BLOCK_VALUE], tl.float32)
    for start in range(0, queries * SHARED, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        inside = row < queries * SHARED
        time, head = row // SHARED, group * SHARED + row % SHARED
        limits = load_limits(
            query_step_ptr,
            episode_start_ptr,
            query_step_t,
            episode_start_t,
            time,
            inside,
            base,
            window,
            num_sinks,
        )
        first, last, sink_end, before_window = limits
        near = (first <= latest) & (last >= earliest) & ((sink_end > earliest) | (before_window < latest))
        if tl.max(near.to(tl.int32)) > 0:
            flat = (batch * queries + time) * (groups * SHARED) + head
            # [R, D]
            q = load_tile(
                query_ptr, batch * query_b + time * query_t + head * query_h, inside, WIDTH, BLOCK_WIDTH
            )
            # [R, V]
            do = load_tile(
                grad_ptr, batch * grad_b + time * grad_t + head * grad_h, inside, VALUE_WIDTH, BLOCK_VALUE
            )
            # [R]
            log = tl.load(log_sum_ptr + flat, mask=inside, other=0.0)
            log = tl.where(log == float("-inf"), 0.0, log) * LOG2_E
            # [R]
            mean = tl.load(delta_ptr + flat, mask=inside, other=0.0)
            # Tiles here are [K, R]. NaN of an invisible slot stays in its own row, which `visible` masks.
            visible = visible_by_key(key, limits)
            score = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * LOG2_E)
            weight = tl.where(visible, tl.exp2(score - log[None, :]), 0.0)
            dv += tl.dot(weight.to(do.dtype), do, input_precision="ieee")
            weight_grad = tl.dot(v, tl.trans(do), input_precision="ieee")
            score_grad = tl.where(visible, weight * (weight_grad - mean[None, :]), 0.0)
            dk += tl.dot(score_grad.to(q.dtype), q, input_precision="ieee")
    flat = (batch * slots + slot) * groups + group
    store_tile(keys_grad_ptr, flat * WIDTH, inside_slots, dk * scale, WIDTH, BLOCK_WIDTH)
    store_tile(values_grad_ptr, flat * VALUE_WIDTH, inside_slots, dv, VALUE_WIDTH, BLOCK_VALUE)
