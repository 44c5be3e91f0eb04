# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Forward kernels: products inside chunks, the loop over chunks, and the reads.

Letters in shape comments: C tokens of a chunk, K and V the widths of a head's keys and values, all padded.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.linear.gpu.layout import LinearKernelInputs, LinearKernelTrace, build_launch
from scrubjay.kernels.linear.gpu.tiles import (
    dot,
    get,
    get_row,
    load_chunk_decay,
    load_decays,
    pair_products,
    put,
)


@triton.jit
def _prepare_kernel(
    query_ptr, key_ptr, erase_key_ptr, value_ptr, step_ptr, levels_ptr, from_start_ptr,
    read_scores_ptr, inverse_ptr, errors_ptr, inverse_keys_ptr,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr,
    DELTA: tl.constexpr, ERASE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the decayed products of one chunk's queries and keys.

    For the delta rule, also write the inverse, and its products with the values and with the decayed erase
    keys.
    """
    chunk = tl.program_id(0).to(tl.int64)
    c, d, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    p_levels = levels_ptr + chunk * (LEVELS * C * F)
    # Products of queries with keys.
    # [C, K]
    query, key = get(query_ptr, chunk, c, d, C, K), get(key_ptr, chunk, c, d, C, K)
    # [C]
    step = get_row(step_ptr, chunk, c, C)
    scaled_key = key * step[:, None]
    read_scores = pair_products(query, scaled_key, p_levels, c, d, C, F, LEVELS, PRECISION)
    put(read_scores_ptr, chunk, read_scores, c, c, C, C)
    if DELTA:
        # [C, K]
        if ERASE:
            key = get(erase_key_ptr, chunk, c, d, C, K)
        # Invert the unit lower triangular matrix row by row: row i of the identity, less the rows before.
        key_scores = tl.trans(pair_products(key, scaled_key, p_levels, c, d, C, F, LEVELS, PRECISION))
        inverse = tl.where(c[:, None] == c[None, :], 1.0, 0.0)
        for i in range(1, C):
            # [C]
            above = tl.sum(tl.where((c[None, :] == i) & (c[:, None] < i), key_scores, 0.0), axis=1)
            row = tl.sum(above[:, None] * inverse, axis=0)
            inverse = tl.where(c[:, None] == i, inverse - row[None, :], inverse)
        put(inverse_ptr, chunk, inverse, c, c, C, C)
        # [C, V]
        value = get(value_ptr, chunk, c, e, C, V)
        put(errors_ptr, chunk, dot(inverse, value, PRECISION), c, e, C, V)
        # [C, K]
        decayed_key = key * load_decays(from_start_ptr, chunk, c, d, C, F)
        put(inverse_keys_ptr, chunk, dot(inverse, decayed_key, PRECISION), c, d, C, K)


@triton.jit
def _scan_chunks_kernel(
    key_ptr, step_ptr, from_start_ptr, to_end_ptr, inverse_keys_ptr, errors_ptr, states_ptr, after_ptr,
    N, R,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr,
    DELTA: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, TILE_V: tl.constexpr,
):  # fmt: skip
    """Loop over the chunks of one head of one batch row, for a tile of value channels.

    Write the state before each chunk and, for the delta rule, the errors.
    """
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    e = tile * TILE_V + tl.arange(0, TILE_V)
    # The initial state.
    # [K, V]
    state = get(after_ptr, row, d, e, K, V)
    for n in range(N):
        chunk = n * R + row
        put(states_ptr, chunk, state, d, e, K, V)
        # Errors of the chunk, given the state at its start.
        # [C, V]
        errors = get(errors_ptr, chunk, c, e, C, V)
        if DELTA:
            # [C, K]
            errors -= dot(get(inverse_keys_ptr, chunk, c, d, C, K), state, PRECISION)
            put(errors_ptr, chunk, errors, c, e, C, V)
        # Decay the state, add the chunk's writes, and flush denormal numbers.
        # [C]
        step = get_row(step_ptr, chunk, c, C)
        # [C, K]
        decayed_key = get(key_ptr, chunk, c, d, C, K) * step[:, None]
        decayed_key = decayed_key * load_decays(to_end_ptr, chunk, c, d, C, F)
        state = load_chunk_decay(from_start_ptr, chunk, d, C, F) * state
        state += dot(tl.trans(decayed_key), errors, PRECISION)
        state = tl.where(tl.abs(state) < 1e-30, 0.0, state)
    put(after_ptr, row, state, d, e, K, V)


@triton.jit
def _read_kernel(
    query_ptr, from_start_ptr, read_scores_ptr, errors_ptr, states_ptr, out_ptr,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the outputs of one chunk."""
    chunk = tl.program_id(0).to(tl.int64)
    c, d, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    # Reads of the chunk's own writes.
    # [C, C], [C, V]
    errors = get(errors_ptr, chunk, c, e, C, V)
    out = dot(get(read_scores_ptr, chunk, c, c, C, C), errors, PRECISION)
    # Reads of the state at the chunk's start.
    # [C, K], [K, V]
    decayed_query = get(query_ptr, chunk, c, d, C, K) * load_decays(from_start_ptr, chunk, c, d, C, F)
    out += dot(decayed_query, get(states_ptr, chunk, d, e, K, V), PRECISION)
    put(out_ptr, chunk, out, c, e, C, V)


def forward_launches(
    inputs: LinearKernelInputs, trace: LinearKernelTrace, after: Tensor, out: Tensor
) -> list[Launch]:
    """Return the kernel launches, not yet run, that write to `trace`, `out` and `after`.

    `after` must hold the initial state. The launches overwrite it with the final state.
    """
    count, rows = inputs.query.shape[:2]
    tiles = -(-out.shape[-1] // inputs.tile)
    tensors = inputs.tensors() | trace._asdict() | {"after": after, "out": out}
    return [
        build_launch(_prepare_kernel, (count * rows,), inputs, tensors),
        build_launch(_scan_chunks_kernel, (rows, tiles), inputs, tensors),
        build_launch(_read_kernel, (count * rows,), inputs, tensors),
    ]
