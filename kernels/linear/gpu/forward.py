# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""What tokens of a chunk need of each other, the walk from chunk to chunk, and what is read.

Shapes at loads: C tokens of a chunk, K and V the widths of a head, all padded.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.linear.gpu.layout import Inputs, Kept, launch_of
from scrubjay.kernels.linear.gpu.tiles import dot, factors, get, kept, pairs, put


@triton.jit
def _prepare_kernel(
    query_ptr, key_ptr, value_ptr, step_ptr, levels_ptr, since_ptr,
    read_ptr, inverse_ptr, errors_ptr, reached_ptr,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr, LEVELS: tl.constexpr,
    DELTA: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write the faded products of one chunk's tokens and, of the delta rule, what solves its errors."""
    chunk = tl.program_id(0).to(tl.int64)
    c, d, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    p_levels = levels_ptr + chunk * (LEVELS * C * F)
    # [C, K]
    query, key = get(query_ptr + chunk * (C * K), c, d, C, K), get(key_ptr + chunk * (C * K), c, d, C, K)
    # [C]
    step = tl.load(step_ptr + chunk * C + c, mask=c < C, other=0.0)
    stepped = key * step[:, None]
    read = pairs(query, stepped, p_levels, c, c, d, C, F, LEVELS, PRECISION)
    put(read_ptr + chunk * (C * C), read, c, c, C, C)
    if DELTA:
        # Row after row of the inverse of what is one on its diagonal: row i is its own, less those before.
        alike = tl.trans(pairs(key, stepped, p_levels, c, c, d, C, F, LEVELS, PRECISION))
        inverse = tl.where(c[:, None] == c[None, :], 1.0, 0.0)
        for i in range(1, C):
            # [C]
            above = tl.sum(tl.where((c[None, :] == i) & (c[:, None] < i), alike, 0.0), axis=1)
            row = tl.sum(above[:, None] * inverse, axis=0)
            inverse = tl.where(c[:, None] == i, inverse - row[None, :], inverse)
        put(inverse_ptr + chunk * (C * C), inverse, c, c, C, C)
        # [C, V]
        value = get(value_ptr + chunk * (C * V), c, e, C, V)
        put(errors_ptr + chunk * (C * V), dot(inverse, value, PRECISION), c, e, C, V)
        # [C, K]
        faded = key * factors(since_ptr + chunk * (C * F), c, d, C, F)
        put(reached_ptr + chunk * (C * K), dot(inverse, faded, PRECISION), c, d, C, K)


@triton.jit
def _walk_kernel(
    key_ptr, step_ptr, since_ptr, until_ptr, reached_ptr, errors_ptr, states_ptr, after_ptr,
    N, R,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr,
    DELTA: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, TILE_V: tl.constexpr,
):  # fmt: skip
    """Walk the chunks of one row and some channels of its values: states are written as they begin."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, d = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    e = tile * TILE_V + tl.arange(0, TILE_V)
    # [K, V]
    state = get(after_ptr + row * (K * V), d, e, K, V)
    for n in range(N):
        chunk = n * R + row
        put(states_ptr + chunk * (K * V), state, d, e, K, V)
        # [C, V]
        errors = get(errors_ptr + chunk * (C * V), c, e, C, V)
        if DELTA:
            # [C, K]
            errors -= dot(get(reached_ptr + chunk * (C * K), c, d, C, K), state, PRECISION)
            put(errors_ptr + chunk * (C * V), errors, c, e, C, V)
        # [C]
        step = tl.load(step_ptr + chunk * C + c, mask=c < C, other=0.0)
        # [C, K]
        written = get(key_ptr + chunk * (C * K), c, d, C, K) * step[:, None]
        written = written * factors(until_ptr + chunk * (C * F), c, d, C, F)
        state = kept(since_ptr + chunk * (C * F), d, C, F) * state
        state += dot(tl.trans(written), errors, PRECISION)
        state = tl.where(tl.abs(state) < 1e-30, 0.0, state)
    put(after_ptr + row * (K * V), state, d, e, K, V)


@triton.jit
def _read_kernel(
    query_ptr, since_ptr, read_ptr, errors_ptr, states_ptr, out_ptr,
    C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, F: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write what the queries of one chunk read."""
    chunk = tl.program_id(0).to(tl.int64)
    c, d, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    # [C, C], [C, V]
    errors = get(errors_ptr + chunk * (C * V), c, e, C, V)
    out = dot(get(read_ptr + chunk * (C * C), c, c, C, C), errors, PRECISION)
    # [C, K], [K, V]
    looked = get(query_ptr + chunk * (C * K), c, d, C, K) * factors(since_ptr + chunk * (C * F), c, d, C, F)
    out += dot(looked, get(states_ptr + chunk * (K * V), d, e, K, V), PRECISION)
    put(out_ptr + chunk * (C * V), out, c, e, C, V)


def forward_launches(inputs: Inputs, trace: Kept, after: Tensor, out: Tensor) -> list[Launch]:
    """Return the launches that fill `trace` and `out`, and lead `after` from the state before on."""
    count, rows = inputs.query.shape[:2]
    tiles = -(-out.shape[-1] // inputs.tile)
    given = inputs.tensors() | trace._asdict() | {"after": after, "out": out}
    return [
        launch_of(_prepare_kernel, (count * rows,), inputs, given),
        launch_of(_walk_kernel, (rows, tiles), inputs, given),
        launch_of(_read_kernel, (count * rows,), inputs, given),
    ]
