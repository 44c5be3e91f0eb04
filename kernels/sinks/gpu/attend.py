# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false
"""Forward kernel of sink attention. A program computes one tile of rows.

Letters in shape comments: R rows of a tile, K keys, D and V the widths of keys and values; all padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scrubjay.kernels.sinks.gpu.tiles import (
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
def attend_kernel(
    query_ptr, keys_ptr, values_ptr, sink_logit_ptr, query_step_ptr, key_step_ptr, episode_start_ptr,
    out_ptr, log_sum_ptr,
    query_b, query_t, query_h, keys_b, keys_n, keys_g, values_b, values_n, values_g, query_step_b,
    query_step_t, key_step_b, key_step_n, episode_start_b, episode_start_t,
    queries, slots, groups, window, num_sinks, scale,
    SHARED: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK_VALUE: tl.constexpr,
):  # fmt: skip
    """Write the outputs of one tile of rows, and the log-sum-exp of their scores."""
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

    # Run an online softmax over the tiles of keys, initialized with the sink logit.
    # [R, D]
    q = load_tile(query_ptr, batch * query_b + time * query_t + head * query_h, inside, WIDTH, BLOCK_WIDTH)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    highest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    if sink_logit_ptr is not None:
        # [R]
        highest = tl.load(sink_logit_ptr + head, mask=inside, other=0.0).to(tl.float32) * LOG2_E
        total += 1.0
    read = tl.zeros([BLOCK_ROWS, BLOCK_VALUE], tl.float32)
    for start in range(0, slots, BLOCK_KEYS):
        slot = start + tl.arange(0, BLOCK_KEYS).to(tl.int64)
        # [K]
        key = load_keys(key_step_ptr, key_step_n, slot, slots, base)
        if is_any_visible(key, limits):
            visible = visible_by_row(key, limits)
            # Load zero for slots that no row sees: a weight of zero would not cancel their NaN.
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
            # Add the tile; rescale the previous sum where the maximum has risen.
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
            score = tl.where(visible, score, float("-inf"))
            higher = tl.maximum(highest, tl.max(score, axis=1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            weight = tl.exp2(score - safe[:, None])
            decay = tl.exp2(highest - safe)
            total = total * decay + tl.sum(weight, axis=1)
            read = read * decay[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
            highest = higher
    # Normalize, and store the output and the log-sum-exp.
    read = read / tl.where(total == 0, 1.0, total)[:, None]
    flat = (batch * queries + time) * (groups * SHARED) + head
    store_tile(out_ptr, flat * VALUE_WIDTH, inside, read, VALUE_WIDTH, BLOCK_VALUE)
    log = tl.where(total == 0, float("-inf"), highest / LOG2_E + tl.log(tl.where(total == 0, 1.0, total)))
    tl.store(log_sum_ptr + flat, log, mask=inside)
