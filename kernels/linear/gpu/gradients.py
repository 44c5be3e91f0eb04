# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Backward kernels: the reverse loop over chunks and the gradients of tokens; formulas as in `gradient`.

Letters in shape comments: C tokens of a chunk, K and V the widths of a head's keys and values, all padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.linear.gpu.layout import (
    LinearKernelGrads,
    LinearKernelInputs,
    LinearKernelTrace,
    build_launch,
)
from scrubjay.kernels.linear.gpu.tiles import (
    dot,
    get,
    get_row,
    load_chunk_decay,
    load_decays,
    pair_gradient,
    put,
    put_log_gradient,
)


@triton.jit
def _backward_states_kernel(
    grad_ptr, query_ptr, key_ptr, step_ptr, from_start_ptr, to_end_ptr, read_scores_ptr, inverse_keys_ptr,
    grad_errors_ptr, grad_states_after_ptr, grad_state_ptr,
    N, R,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr,
    DELTA: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, TILE_V: tl.constexpr,
):  # fmt: skip
    """Loop over the chunks in reverse, for a tile of value channels.

    Write the gradients of the errors, of the state after each chunk, and of the initial state.
    """
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    e = tile * TILE_V + tl.arange(0, TILE_V)
    # Gradient of the state after the last chunk.
    # [K, V]
    grad_state = get(grad_state_ptr, row, d, e, K, V)
    for back in range(N):
        chunk = (N - 1 - back) * R + row
        put(grad_states_after_ptr, chunk, grad_state, d, e, K, V)
        # Gradient of the errors, from reads and from the state after the chunk.
        # [C, V]
        grad = get(grad_ptr, chunk, c, e, C, V)
        # [C, C]
        grad_errors = dot(tl.trans(get(read_scores_ptr, chunk, c, c, C, C)), grad, PRECISION)
        # [C]
        step = get_row(step_ptr, chunk, c, C)
        # [C, K]
        decayed_key = get(key_ptr, chunk, c, d, C, K) * step[:, None]
        decayed_key = decayed_key * load_decays(to_end_ptr, chunk, c, d, C, F)
        grad_errors += dot(decayed_key, grad_state, PRECISION)
        put(grad_errors_ptr, chunk, grad_errors, c, e, C, V)
        # Gradient of the state before the chunk.
        # [C, K]
        decayed_query = get(query_ptr, chunk, c, d, C, K)
        decayed_query = decayed_query * load_decays(from_start_ptr, chunk, c, d, C, F)
        grad_state = load_chunk_decay(from_start_ptr, chunk, d, C, F) * grad_state
        grad_state += dot(tl.trans(decayed_query), grad, PRECISION)
        if DELTA:
            # [C, K]
            inverse_keys = get(inverse_keys_ptr, chunk, c, d, C, K)
            grad_state -= dot(tl.trans(inverse_keys), grad_errors, PRECISION)
    put(grad_state_ptr, row, grad_state, d, e, K, V)


@triton.jit
def _value_gradient_kernel(
    inverse_ptr, grad_errors_ptr, grad_value_ptr,
    C: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one chunk's values; for the delta rule only."""
    chunk = tl.program_id(0).to(tl.int64)
    c, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_V)
    # [C, C], [C, V]
    inverse = tl.trans(get(inverse_ptr, chunk, c, c, C, C))
    grad_errors = get(grad_errors_ptr, chunk, c, e, C, V)
    put(grad_value_ptr, chunk, dot(inverse, grad_errors, PRECISION), c, e, C, V)


@triton.jit
def _left_gradient_kernel(
    output_grad_ptr, left_ptr, key_ptr, step_ptr, levels_ptr, from_start_ptr, errors_ptr, states_ptr,
    grad_left_ptr, grad_log_sums_ptr,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr,
    FROM_KEYS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one chunk's queries or, with FROM_KEYS, of its erase keys.

    FROM_KEYS is for the delta rule. There each erase key is a query on the earlier tokens, and the result is
    subtracted from the value of its token. The kernel also writes the gradient of the cumulative log
    decays; with FROM_KEYS, the kernel adds to that gradient.
    """
    chunk = tl.program_id(0).to(tl.int64)
    c, d, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    # [C, V]
    output_grad = get(output_grad_ptr, chunk, c, e, C, V)
    if FROM_KEYS:
        output_grad = -output_grad
    # From the state at the chunk's start.
    # [K, V], [C, K]
    grad_left = dot(output_grad, tl.trans(get(states_ptr, chunk, d, e, K, V)), PRECISION)
    grad_left = grad_left * load_decays(from_start_ptr, chunk, c, d, C, F)
    # From the products inside the chunk.
    # [C, V]
    grad_products = dot(output_grad, tl.trans(get(errors_ptr, chunk, c, e, C, V)), PRECISION)
    if FROM_KEYS:
        grad_products = tl.where(c[:, None] > c[None, :], grad_products, 0.0)
    # [C]
    step = get_row(step_ptr, chunk, c, C)
    scaled_key = get(key_ptr, chunk, c, d, C, K) * step[:, None]
    p_levels = levels_ptr + chunk * (LEVELS * C * F)
    grad_left += pair_gradient(grad_products, scaled_key, p_levels, c, d, C, F, LEVELS, False, PRECISION)
    put(grad_left_ptr, chunk, grad_left, c, d, C, K)
    # Gradient of the log sums.
    # [C, K]
    grad_log_sums = get(left_ptr, chunk, c, d, C, K) * grad_left
    put_log_gradient(grad_log_sums_ptr, chunk, grad_log_sums, c, d, C, F, FROM_KEYS)


@triton.jit
def _right_gradient_kernel(
    output_grad_ptr, left_ptr, levels_ptr, errors_ptr, grad_right_ptr,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr,
    FROM_KEYS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one chunk's scaled keys, which are the keys multiplied by the step sizes.

    The gradient comes from the products with queries. With FROM_KEYS, it comes from the products with later
    erase keys instead, and the kernel adds it to the gradient in memory.
    """
    chunk = tl.program_id(0).to(tl.int64)
    c, d, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    # [C, V]
    output_grad = get(output_grad_ptr, chunk, c, e, C, V)
    grad_products = dot(output_grad, tl.trans(get(errors_ptr, chunk, c, e, C, V)), PRECISION)
    if FROM_KEYS:
        grad_products = tl.where(c[:, None] > c[None, :], -grad_products, 0.0)
    # [C, K]
    left = get(left_ptr, chunk, c, d, C, K)
    p_levels = levels_ptr + chunk * (LEVELS * C * F)
    grad_right = pair_gradient(grad_products, left, p_levels, c, d, C, F, LEVELS, True, PRECISION)
    if FROM_KEYS:
        grad_right += get(grad_right_ptr, chunk, c, d, C, K)
    put(grad_right_ptr, chunk, grad_right, c, d, C, K)


@triton.jit
def _write_gradient_kernel(
    key_ptr, step_ptr, from_start_ptr, to_end_ptr, errors_ptr, states_ptr, grad_states_after_ptr,
    grad_right_ptr, grad_key_ptr, grad_step_ptr, grad_log_sums_ptr,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr,
    DELTA: tl.constexpr, ERASE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Complete the gradients of one chunk's keys, step sizes and cumulative log decays.

    The kernel adds the part of these gradients that comes from the state after the chunk. Without ERASE, the
    keys are also the erase keys, whose gradient is already in memory.
    """
    chunk = tl.program_id(0).to(tl.int64)
    c, d, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    # Gradient of the decayed keys at the chunk's end.
    # [C, V], [K, V]
    errors = get(errors_ptr, chunk, c, e, C, V)
    grad_state_after = get(grad_states_after_ptr, chunk, d, e, K, V)
    # [C, K]
    grad_key = dot(errors, tl.trans(grad_state_after), PRECISION) * load_decays(to_end_ptr, chunk, c, d, C, F)
    key = get(key_ptr, chunk, c, d, C, K)
    # [C]
    step = get_row(step_ptr, chunk, c, C)
    # Gradient of the log sum at the chunk's end: from the decayed initial state and from the decayed keys.
    grad_chunk_decay = tl.sum(get(states_ptr, chunk, d, e, K, V) * grad_state_after, axis=1)[:, None]
    grad_chunk_decay = tl.sum(load_chunk_decay(from_start_ptr, chunk, d, C, F) * grad_chunk_decay, axis=1)
    grad_chunk_decay += tl.sum(key * step[:, None] * grad_key, axis=0)
    # Total gradient of the scaled keys, and from it those of steps, keys and log sums.
    # [C, K]
    grad_key += get(grad_right_ptr, chunk, c, d, C, K)
    tl.store(grad_step_ptr + chunk * C + c, tl.sum(key * grad_key, axis=1), mask=c < C)
    grad_key = grad_key * step[:, None]
    grad_log_sums = tl.where(c[:, None] == C - 1, grad_chunk_decay[None, :], 0.0) - key * grad_key
    if DELTA and not ERASE:
        grad_key += get(grad_key_ptr, chunk, c, d, C, K)
    put(grad_key_ptr, chunk, grad_key, c, d, C, K)
    put_log_gradient(grad_log_sums_ptr, chunk, grad_log_sums, c, d, C, F, True)


def backward_launches(
    inputs: LinearKernelInputs, trace: LinearKernelTrace, grads: LinearKernelGrads
) -> list[Launch]:
    """Return the kernel launches, not yet run, that fill the fields of `grads`.

    The field `grad` is an input, the gradient of the outputs. The field `grad_state` must hold the gradient
    of the final state. The launches overwrite it with the gradient of the initial state.
    """
    count, rows = inputs.query.shape[:2]
    tiles = -(-grads.grad.shape[-1] // inputs.tile)
    tensors = inputs.tensors() | trace._asdict() | grads._asdict()
    chunks = (count * rows,)
    query_tensors = tensors | {"output_grad": grads.grad, "left": inputs.query, "grad_left": grads.grad_query}
    key_tensors = tensors | {
        "output_grad": grads.grad_value,
        "left": tensors["erase_key"],
        "grad_left": grads.grad_erase_key,
    }
    sides = (_left_gradient_kernel, _right_gradient_kernel)
    launches = [build_launch(_backward_states_kernel, (rows, tiles), inputs, tensors)]
    if inputs.delta:
        launches.append(build_launch(_value_gradient_kernel, chunks, inputs, tensors))
    launches += [build_launch(kernel, chunks, inputs, query_tensors, FROM_KEYS=False) for kernel in sides]
    if inputs.delta:
        launches += [build_launch(kernel, chunks, inputs, key_tensors, FROM_KEYS=True) for kernel in sides]
    return [*launches, build_launch(_write_gradient_kernel, chunks, inputs, tensors)]
