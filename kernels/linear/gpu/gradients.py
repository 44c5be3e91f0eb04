# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""The way back from chunk to chunk, and the gradients of each chunk's tokens; the maths is `gradient`'s.

Shapes at loads: C tokens of a chunk, K and V the widths of a head, all padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.linear.gpu.layout import Grads, Inputs, Kept, launch_of
from scrubjay.kernels.linear.gpu.tiles import dot, factors, get, kept, of_left, of_right, put


@triton.jit
def _return_kernel(
    grad_ptr, query_ptr, key_ptr, step_ptr, since_ptr, until_ptr, read_ptr, reached_ptr,
    grad_errors_ptr, behind_ptr, grad_state_ptr,
    N, R,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr,
    DELTA: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, TILE_V: tl.constexpr,
):  # fmt: skip
    """Walk back: the gradients of the states behind chunks and of errors, for some channels of values."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    e = tile * TILE_V + tl.arange(0, TILE_V)
    # [K, V]
    owed = get(grad_state_ptr + row * (K * V), d, e, K, V)
    for back in range(N):
        chunk = (N - 1 - back) * R + row
        put(behind_ptr + chunk * (K * V), owed, d, e, K, V)
        # [C, V]
        grad = get(grad_ptr + chunk * (C * V), c, e, C, V)
        # [C, C]
        of_errors = dot(tl.trans(get(read_ptr + chunk * (C * C), c, c, C, C)), grad, PRECISION)
        # [C]
        step = tl.load(step_ptr + chunk * C + c, mask=c < C, other=0.0)
        # [C, K]
        written = get(key_ptr + chunk * (C * K), c, d, C, K) * step[:, None]
        written = written * factors(until_ptr + chunk * (C * F), c, d, C, F)
        of_errors += dot(written, owed, PRECISION)
        put(grad_errors_ptr + chunk * (C * V), of_errors, c, e, C, V)
        # [C, K]
        looked = get(query_ptr + chunk * (C * K), c, d, C, K)
        looked = looked * factors(since_ptr + chunk * (C * F), c, d, C, F)
        owed = kept(since_ptr + chunk * (C * F), d, C, F) * owed
        owed += dot(tl.trans(looked), grad, PRECISION)
        if DELTA:
            # [C, K]
            reached = get(reached_ptr + chunk * (C * K), c, d, C, K)
            owed -= dot(tl.trans(reached), of_errors, PRECISION)
    put(grad_state_ptr + row * (K * V), owed, d, e, K, V)


@triton.jit
def _value_gradient_kernel(
    inverse_ptr, grad_errors_ptr, grad_value_ptr,
    C: tl.constexpr, V: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one chunk's values by the delta rule."""
    chunk = tl.program_id(0).to(tl.int64)
    c, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_V)
    # [C, C], [C, V]
    inverse = tl.trans(get(inverse_ptr + chunk * (C * C), c, c, C, C))
    owed = get(grad_errors_ptr + chunk * (C * V), c, e, C, V)
    put(grad_value_ptr + chunk * (C * V), dot(inverse, owed, PRECISION), c, e, C, V)


@triton.jit
def _left_gradient_kernel(
    owed_ptr, left_ptr, key_ptr, step_ptr, levels_ptr, since_ptr, errors_ptr, states_ptr,
    grad_left_ptr, grad_since_ptr,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr,
    KNOWN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the gradient of what is asked of one chunk: its queries or, if `KNOWN`, its keys.

    What is known to a key is subtracted, and of its chunk only what is before it.
    """
    chunk = tl.program_id(0).to(tl.int64)
    c, d, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    # [C, V]
    owed = get(owed_ptr + chunk * (C * V), c, e, C, V)
    if KNOWN:
        owed = -owed
    # [K, V], [C, K]
    found = dot(owed, tl.trans(get(states_ptr + chunk * (K * V), d, e, K, V)), PRECISION)
    found = found * factors(since_ptr + chunk * (C * F), c, d, C, F)
    # [C, V]
    alike = dot(owed, tl.trans(get(errors_ptr + chunk * (C * V), c, e, C, V)), PRECISION)
    if KNOWN:
        alike = tl.where(c[:, None] > c[None, :], alike, 0.0)
    # [C]
    step = tl.load(step_ptr + chunk * C + c, mask=c < C, other=0.0)
    stepped = get(key_ptr + chunk * (C * K), c, d, C, K) * step[:, None]
    p_levels = levels_ptr + chunk * (LEVELS * C * F)
    found += of_left(alike, stepped, p_levels, c, c, d, C, F, LEVELS, PRECISION)
    put(grad_left_ptr + chunk * (C * K), found, c, d, C, K)
    # [C, K]
    of_since = get(left_ptr + chunk * (C * K), c, d, C, K) * found
    p_since = grad_since_ptr + chunk * (C * F)
    if F == 1:
        total = tl.sum(of_since, axis=1)
        if KNOWN:
            total += tl.load(p_since + c, mask=c < C, other=0.0)
        tl.store(p_since + c, total, mask=c < C)
    else:
        if KNOWN:
            of_since += get(p_since, c, d, C, F)
        put(p_since, of_since, c, d, C, F)


@triton.jit
def _right_gradient_kernel(
    owed_ptr, left_ptr, levels_ptr, errors_ptr, grad_right_ptr,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr,
    KNOWN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the gradient of what one chunk's keys write, as its queries see it, or `KNOWN` keys as well."""
    chunk = tl.program_id(0).to(tl.int64)
    c, d, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    # [C, V]
    owed = get(owed_ptr + chunk * (C * V), c, e, C, V)
    alike = dot(owed, tl.trans(get(errors_ptr + chunk * (C * V), c, e, C, V)), PRECISION)
    if KNOWN:
        alike = tl.where(c[:, None] > c[None, :], -alike, 0.0)
    # [C, K]
    left = get(left_ptr + chunk * (C * K), c, d, C, K)
    p_levels = levels_ptr + chunk * (LEVELS * C * F)
    found = of_right(alike, left, p_levels, c, c, d, C, F, LEVELS, PRECISION)
    if KNOWN:
        found += get(grad_right_ptr + chunk * (C * K), c, d, C, K)
    put(grad_right_ptr + chunk * (C * K), found, c, d, C, K)


@triton.jit
def _written_gradient_kernel(
    key_ptr, step_ptr, since_ptr, until_ptr, errors_ptr, states_ptr, behind_ptr,
    grad_right_ptr, grad_key_ptr, grad_step_ptr, grad_since_ptr,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr,
    DELTA: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Add what is left of one chunk's keys at its end, and share out what is theirs and their steps'."""
    chunk = tl.program_id(0).to(tl.int64)
    c, d, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    # [C, V], [K, V]
    errors = get(errors_ptr + chunk * (C * V), c, e, C, V)
    behind = get(behind_ptr + chunk * (K * V), d, e, K, V)
    # [C, K]
    found = dot(errors, tl.trans(behind), PRECISION) * factors(until_ptr + chunk * (C * F), c, d, C, F)
    key = get(key_ptr + chunk * (C * K), c, d, C, K)
    # [C]
    step = tl.load(step_ptr + chunk * C + c, mask=c < C, other=0.0)
    # Of the sum of logarithms at the chunk's end: what began it, and what its keys have left there.
    left = tl.sum(get(states_ptr + chunk * (K * V), d, e, K, V) * behind, axis=1)[:, None]
    left = tl.sum(kept(since_ptr + chunk * (C * F), d, C, F) * left, axis=1)
    left += tl.sum(key * step[:, None] * found, axis=0)
    # [C, K]
    found += get(grad_right_ptr + chunk * (C * K), c, d, C, K)
    tl.store(grad_step_ptr + chunk * C + c, tl.sum(key * found, axis=1), mask=c < C)
    found = found * step[:, None]
    of_since = tl.where(c[:, None] == C - 1, left[None, :], 0.0) - key * found
    if DELTA:
        found += get(grad_key_ptr + chunk * (C * K), c, d, C, K)
    put(grad_key_ptr + chunk * (C * K), found, c, d, C, K)
    p_since = grad_since_ptr + chunk * (C * F)
    if F == 1:
        total = tl.load(p_since + c, mask=c < C, other=0.0) + tl.sum(of_since, axis=1)
        tl.store(p_since + c, total, mask=c < C)
    else:
        put(p_since, get(p_since, c, d, C, F) + of_since, c, d, C, F)


def backward_launches(inputs: Inputs, trace: Kept, grads: Grads) -> list[Launch]:
    """Return the launches that fill `grads` but `grad`, and lead `grad_state` to that of the state before."""
    count, rows = inputs.query.shape[:2]
    tiles = -(-grads.grad.shape[-1] // inputs.tile)
    given = inputs.tensors() | trace._asdict() | grads._asdict()
    chunks = (count * rows,)
    of_queries = given | {"owed": grads.grad, "left": inputs.query, "grad_left": grads.grad_query}
    of_keys = given | {"owed": grads.grad_value, "left": inputs.key, "grad_left": grads.grad_key}
    sides = (_left_gradient_kernel, _right_gradient_kernel)
    launches = [launch_of(_return_kernel, (rows, tiles), inputs, given)]
    if inputs.delta:
        launches.append(launch_of(_value_gradient_kernel, chunks, inputs, given))
    launches += [launch_of(kernel, chunks, inputs, of_queries, KNOWN=False) for kernel in sides]
    if inputs.delta:
        launches += [launch_of(kernel, chunks, inputs, of_keys, KNOWN=True) for kernel in sides]
    return [*launches, launch_of(_written_gradient_kernel, chunks, inputs, given)]
