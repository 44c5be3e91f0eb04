# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Neural memory on Triton: what depends on the chunk before walks the chunks, all else takes them in parallel.

The maths is that of `neural_memory_torch`, of a matrix or of two layers, "lower" `[D, I]` and "upper" `[I, D]`; a
matrix is an upper layer with I = D. The coefficients of the learning rule are torch's.

Two kernels walk, one program a row and head, from a chunk's delta and momentum to the next one's and, backward, with
their gradients. They go through the hidden width in tiles of 16, so that any hidden width does. A tile is loaded from
the slot of its chunk and stored in that of the next: in a chunk's products delta and momentum are operands whole, and
an operand kept in registers beside its tile would fill them (at D = I = C = 64 a thread needed 500 and more, of 255).
The slots stay in the second-level cache, and the gradient needs them: 2 P numbers a chunk. To keep each g-th only would
mean to walk again, and the walk is what takes time.

What queries read, what that owes in the gradient, and the gradient of the rule have a program for each chunk. The
gradients of the weights are products over all tokens, left to torch. No atomics: results are deterministic.

An anchor is delta at the start of its chunk, but behind an incomplete chunk it is an older one. The forward walk keeps
such an anchor in the tensor that returns it, written by a chunk that is incomplete and read by one that is held.

Products of float32 are three TF32 ones each, whose error is near float32's own; where query, key or value has half
precision they are one TF32 product, as exact as float16 and without its limits, for delta, momentum and the gradients
stay float32. C and D are padded to powers of two of at least 16, and at most 64.
Beyond what `configurations` lists they are right, but may spill registers: two layers at D = 64 or in float32, and C = 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.launch import Launch, with_dense_rows
from scrubjay.kernels.neural.chunk import Coefficients, coefficients_of
from scrubjay.kernels.neural.network import NetworkShape, NeuralState, Problem


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _silu_slope(x):
    gate = tl.sigmoid(x)
    return gate * (1 + x * (1 - gate))


@triton.jit
def _silu_bend(x):
    gate = tl.sigmoid(x)
    shut = 1 - gate
    return gate * shut * (2 + x * (shut - gate))


@triton.jit
def _squares(x):
    return tl.sum(x * x, axis=1)


@triton.jit
def _flushed(x):
    return tl.where(tl.abs(x) < 1e-30, 0.0, x)


@triton.jit
def _load(place, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load `[rows, columns]`, in float32, with zeros outside of `[ROWS, COLUMNS]`; masked only where some are."""
    UNEVEN_ROWS: tl.constexpr = (rows.shape[0] * 0 + ROWS) % rows.shape[0] != 0
    UNEVEN_COLUMNS: tl.constexpr = (columns.shape[0] * 0 + COLUMNS) % columns.shape[0] != 0
    if UNEVEN_ROWS or UNEVEN_COLUMNS:
        loaded = tl.load(place, mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :], other=0.0)
    else:
        loaded = tl.load(place)
    return loaded.to(tl.float32)


@triton.jit
def _store(place, tile, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    UNEVEN_ROWS: tl.constexpr = (rows.shape[0] * 0 + ROWS) % rows.shape[0] != 0
    UNEVEN_COLUMNS: tl.constexpr = (columns.shape[0] * 0 + COLUMNS) % columns.shape[0] != 0
    if UNEVEN_ROWS or UNEVEN_COLUMNS:
        tl.store(place, tile, mask=(rows < ROWS)[:, None] & (columns < COLUMNS)[None, :])
    else:
        tl.store(place, tile)


@triton.jit
def _tile(pointer, rows, columns, row_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    place = pointer + (rows[:, None] * row_stride + columns[None, :])
    return _load(place, rows, columns, ROWS, COLUMNS)


@triton.jit
def _put(pointer, tile, rows, columns, row_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    place = pointer + (rows[:, None] * row_stride + columns[None, :])
    _store(place, tile.to(pointer.dtype.element_ty), rows, columns, ROWS, COLUMNS)


@triton.jit
def _transposed(pointer, rows, columns, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a tile of what lies in memory column by column: the upper layer, so that its long side is as the lower's."""
    return _load(pointer + (rows[:, None] + columns[None, :] * column_stride), rows, columns, ROWS, COLUMNS)


@triton.jit
def _put_transposed(pointer, tile, rows, columns, column_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    _store(pointer + (rows[:, None] + columns[None, :] * column_stride), tile, rows, columns, ROWS, COLUMNS)


@triton.jit
def _write_kernel(
    key_ptr, value_ptr, rule_ptr, lower_ptr, upper_ptr, flags_ptr, anchor_ptr, states_ptr, kept_ptr,
    N, H, key_b, key_t, key_h, value_b, value_t, value_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, RULE: tl.constexpr, MIXED: tl.constexpr, KEPT: tl.constexpr,
    PRODUCT: tl.constexpr, INNER: tl.constexpr, READ: tl.constexpr, ERROR: tl.constexpr, TAKEN: tl.constexpr,
    SQUARED: tl.constexpr, X_SQUARED: tl.constexpr, INNER_SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Walk the chunks: slot 0 of deltas and momenta comes filled, and chunk n fills slot n + 1."""
    row = tl.program_id(0).to(tl.int64)
    i_b, i_h = row // H, row % H
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_upper = upper_ptr + i_h * (D * I)
    p_kept_anchor = anchor_ptr + row * SIZE
    for n in range(N):
        chunk = row * N + n
        first = (chunk - row * N) * C
        p_rule, p_kept = rule_ptr + chunk * RULE, kept_ptr + chunk * KEPT
        o_now = (chunk + row) * (2 * SIZE)  # slots are one more than chunks
        o_next = o_now + 2 * SIZE
        flags = tl.load(flags_ptr + i_b * N + n)
        p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
        p_value = value_ptr + i_b * value_b + i_h * value_h + first * value_t
        p_anchor = states_ptr + o_now
        if (flags & 8) != 0:
            p_anchor = p_kept_anchor

        # What the chunk's keys write, at the anchor.
        error = -_tile(p_value, c, d, value_t, C, D)
        if RESIDUAL:
            error += _tile(p_key, c, d, key_t, C, D)
        x_squares = tl.zeros([BLOCK_C], tl.float32)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            anchor = _transposed(p_anchor + UPPER, d, i, D, D, I)
            if (flags & 12) == 4:  # incomplete, and not held already
                _put_transposed(p_kept_anchor + UPPER, anchor, d, i, D, D, I)
            upper = _transposed(p_upper, d, i, D, D, I) + anchor
            if DEPTH == 2:
                anchor = _tile(p_anchor, d, i, I, D, I)
                if (flags & 12) == 4:
                    _put(p_kept_anchor, anchor, d, i, I, D, I)
                lower = _tile(lower_ptr + i_h * (D * I), d, i, I, D, I) + anchor
                product = _dot(_tile(p_key, c, d, key_t, C, D), lower, PRECISION)
                _put(p_kept + PRODUCT, product, c, i, I, C, I)
                x = _silu(product)
            else:
                x = _tile(p_key, c, i, key_t, C, I)
            x_squares += _squares(x)
            error += _dot(x, tl.trans(upper), PRECISION)
        step = tl.load(p_rule + c, mask=m_c, other=0.0)
        most = _squares(error)
        squared = x_squares * most
        if DEPTH == 2:
            tl.debug_barrier()
            inner_squares = tl.zeros([BLOCK_C], tl.float32)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                upper = _transposed(p_upper, d, i, D, D, I) + _transposed(p_anchor + UPPER, d, i, D, D, I)
                product = _tile(p_kept + PRODUCT, c, i, I, C, I)
                inner = _dot(error, upper, PRECISION) * _silu_slope(product)
                inner_squares += _squares(inner)
                _put(p_kept + INNER, inner, c, i, I, C, I)
            squared += _squares(_tile(p_key, c, d, key_t, C, D)) * inner_squares
            most = tl.load(p_rule + 5 * C + 3 + c, mask=m_c, other=0.0) * most
            step = tl.where(step * squared > most, most / tl.where(squared > 0, squared, 1.0), step)
        tl.store(p_kept + SQUARED + c, squared, mask=m_c)
        tl.store(p_kept + TAKEN + c, step, mask=m_c)
        if DEPTH == 2:
            tl.store(p_kept + X_SQUARED + c, x_squares, mask=m_c)
            tl.store(p_kept + INNER_SQUARED + c, inner_squares, mask=m_c)
        _put(p_kept + ERROR, error, c, d, D, C, D)
        error = step[:, None] * error
        # All is stored and loaded before other threads load or overwrite it.
        tl.debug_barrier()

        # Where it leaves delta and momentum: nothing, if the next chunk is fresh.
        end_mixed = tl.load(p_rule + 3 * C + c, mask=m_c, other=0.0)
        end_trace = tl.load(p_rule + 4 * C + c, mask=m_c, other=0.0)
        end_retained, end_built = tl.load(p_rule + 5 * C), tl.load(p_rule + 5 * C + 1)
        end_kept = tl.load(p_rule + 5 * C + 2)
        stays = (flags & 32) == 0
        error = tl.trans(error)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            if DEPTH == 2:
                inner = step[:, None] * _tile(p_kept + INNER, c, i, I, C, I)
                x = _silu(_tile(p_kept + PRODUCT, c, i, I, C, I))
                key = tl.trans(_tile(p_key, c, d, key_t, C, D))
                delta = _tile(states_ptr + o_now, d, i, I, D, I)
                momentum = _tile(states_ptr + o_now + SIZE, d, i, I, D, I)
                delta = end_retained * delta + end_built * momentum
                delta = _flushed(delta - _dot(key, end_mixed[:, None] * inner, PRECISION))
                momentum = end_kept * momentum
                momentum = _flushed(momentum - _dot(key, end_trace[:, None] * inner, PRECISION))
                _put(states_ptr + o_next, tl.where(stays, delta, 0.0), d, i, I, D, I)
                _put(states_ptr + o_next + SIZE, tl.where(stays, momentum, 0.0), d, i, I, D, I)
            else:
                x = _tile(p_key, c, i, key_t, C, I)
            delta = _transposed(states_ptr + o_now + UPPER, d, i, D, D, I)
            momentum = _transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, D, I)
            delta = end_retained * delta + end_built * momentum
            delta = _flushed(delta - _dot(error, end_mixed[:, None] * x, PRECISION))
            momentum = end_kept * momentum
            momentum = _flushed(momentum - _dot(error, end_trace[:, None] * x, PRECISION))
            _put_transposed(states_ptr + o_next + UPPER, tl.where(stays, delta, 0.0), d, i, D, D, I)
            _put_transposed(states_ptr + o_next + SIZE + UPPER, tl.where(stays, momentum, 0.0), d, i, D, D, I)
        tl.debug_barrier()


@triton.jit
def _read_kernel(
    query_ptr, key_ptr, rule_ptr, lower_ptr, upper_ptr, states_ptr, kept_ptr, out_ptr,
    N, H, query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, RULE: tl.constexpr, MIXED: tl.constexpr, KEPT: tl.constexpr,
    PRODUCT: tl.constexpr, INNER: tl.constexpr, READ: tl.constexpr, ERROR: tl.constexpr, TAKEN: tl.constexpr,
    SQUARED: tl.constexpr, X_SQUARED: tl.constexpr, INNER_SQUARED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write what the queries of one chunk read."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    p_rule, p_kept = rule_ptr + chunk * RULE, kept_ptr + chunk * KEPT
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * (2 * SIZE)  # slots are one more than chunks
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    retained = tl.load(p_rule + C + c, mask=m_c, other=0.0)
    built = tl.load(p_rule + 2 * C + c, mask=m_c, other=0.0)
    taken = tl.load(p_kept + TAKEN + c, mask=m_c, other=0.0)
    if DEPTH == 2:
        key = _tile(p_key, c, d, key_t, C, D)
        alike_lower = _dot(_tile(p_query, c, d, query_t, C, D), tl.trans(key), PRECISION)
        alike_lower = alike_lower * _tile(p_rule + MIXED, c, c, C, C, C)
    alike = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    out = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            inner = taken[:, None] * _tile(p_kept + INNER, c, i, I, C, I)
            query = _tile(p_query, c, d, query_t, C, D)
            read = _dot(query, _tile(lower_ptr + i_h * (D * I), d, i, I, D, I), PRECISION)
            read += retained[:, None] * _dot(query, _tile(states_ptr + o_now, d, i, I, D, I), PRECISION)
            read += built[:, None] * _dot(query, _tile(states_ptr + o_now + SIZE, d, i, I, D, I), PRECISION)
            read -= _dot(alike_lower, inner, PRECISION)
            _put(p_kept + READ, read, c, i, I, C, I)
            x, other = _silu(read), _silu(_tile(p_kept + PRODUCT, c, i, I, C, I))
        else:
            x, other = _tile(p_query, c, i, query_t, C, I), _tile(p_key, c, i, key_t, C, I)
        alike += _dot(x, tl.trans(other), PRECISION)
        upper = _transposed(upper_ptr + i_h * (D * I), d, i, D, D, I)
        out += _dot(x, tl.trans(upper), PRECISION)
        delta = _transposed(states_ptr + o_now + UPPER, d, i, D, D, I)
        out += retained[:, None] * _dot(x, tl.trans(delta), PRECISION)
        momentum = _transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, D, I)
        out += built[:, None] * _dot(x, tl.trans(momentum), PRECISION)
    alike = alike * _tile(p_rule + MIXED, c, c, C, C, C)
    error = taken[:, None] * _tile(p_kept + ERROR, c, d, D, C, D)
    out -= _dot(alike, error, PRECISION)
    if RESIDUAL:
        out += _tile(p_query, c, d, query_t, C, D)
    _put(out_ptr + ((i_b * N * C + first) * H + i_h) * D, out, c, d, H * D, C, D)


@triton.jit
def _read_gradient_kernel(
    query_ptr, key_ptr, rule_ptr, lower_ptr, upper_ptr, states_ptr, kept_ptr,
    grad_ptr, query_grad_ptr, rule_grad_ptr, owed_ptr, to_ptr,
    N, H, query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, RULE: tl.constexpr, MIXED: tl.constexpr, KEPT: tl.constexpr,
    PRODUCT: tl.constexpr, INNER: tl.constexpr, READ: tl.constexpr, ERROR: tl.constexpr, TAKEN: tl.constexpr,
    SQUARED: tl.constexpr, X_SQUARED: tl.constexpr, INNER_SQUARED: tl.constexpr, OWED: tl.constexpr, X_OWED: tl.constexpr, ERROR_OWED: tl.constexpr, KEY_OWED: tl.constexpr,
    INNER_OWED: tl.constexpr, READ_GRAD: tl.constexpr, SLOPE_GRAD: tl.constexpr, PRODUCT_GRAD: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write what the reads of one chunk owe, in the upper layer, to its inputs, coefficients, writes and state."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    p_rule, p_kept = rule_ptr + chunk * RULE, kept_ptr + chunk * KEPT
    p_rule_grad, p_owed = rule_grad_ptr + chunk * RULE, owed_ptr + chunk * OWED
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * (2 * SIZE)  # slots are one more than chunks
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    p_mixed = p_rule + MIXED
    p_token = ((i_b * N * C + first) * H + i_h) * D
    retained = tl.load(p_rule + C + c, mask=m_c, other=0.0)
    built = tl.load(p_rule + 2 * C + c, mask=m_c, other=0.0)
    taken = tl.load(p_kept + TAKEN + c, mask=m_c, other=0.0)

    # The upper layer's likeness of reads to writes, and what that owes to the steps.
    alike = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            x = _silu(_tile(p_kept + READ, c, i, I, C, I))
            other = _silu(_tile(p_kept + PRODUCT, c, i, I, C, I))
        else:
            x, other = _tile(p_query, c, i, query_t, C, I), _tile(p_key, c, i, key_t, C, I)
        alike += _dot(x, tl.trans(other), PRECISION)
    grad = _tile(grad_ptr + p_token, c, d, H * D, C, D)
    mixed = _tile(p_mixed, c, c, C, C, C)
    grad_error = -_dot(tl.trans(mixed * alike), grad, PRECISION)
    _put(p_owed + ERROR_OWED, grad_error, c, d, D, C, D)
    error = taken[:, None] * _tile(p_kept + ERROR, c, d, D, C, D)
    grad_alike = -_dot(grad, tl.trans(error), PRECISION)
    _put(p_rule_grad + MIXED, grad_alike * alike, c, c, C, C, C)
    grad_alike = grad_alike * mixed

    grad_retained, grad_built = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            x, other = (
                _silu(_tile(p_kept + READ, c, i, I, C, I)),
                _silu(_tile(p_kept + PRODUCT, c, i, I, C, I)),
            )
        else:
            x, other = _tile(p_query, c, i, query_t, C, I), _tile(p_key, c, i, key_t, C, I)
        _put(p_owed + X_OWED, _dot(tl.trans(grad_alike), x, PRECISION), c, i, I, C, I)
        grad_x = _dot(grad_alike, other, PRECISION)
        if DEPTH == 2:
            _put(p_owed + READ_GRAD, grad_x, c, i, I, C, I)
        else:
            if RESIDUAL:
                grad_x += _tile(grad_ptr + p_token, c, i, H * D, C, I)
            _put(p_owed + KEY_OWED, grad_x, c, i, I, C, I)
    tl.debug_barrier()
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            grad_x = _tile(p_owed + READ_GRAD, c, i, I, C, I)
            read = _tile(p_kept + READ, c, i, I, C, I)
            x = _silu(read)
        else:
            grad_x = _tile(p_owed + KEY_OWED, c, i, I, C, I)
            x = _tile(p_query, c, i, query_t, C, I)
        grad = _tile(grad_ptr + p_token, c, d, H * D, C, D)
        grad_x += _dot(grad, _transposed(upper_ptr + i_h * (D * I), d, i, D, D, I), PRECISION)
        by_delta = _dot(grad, _transposed(states_ptr + o_now + UPPER, d, i, D, D, I), PRECISION)
        grad_retained += tl.sum(x * by_delta, axis=1)
        by_momentum = _dot(grad, _transposed(states_ptr + o_now + SIZE + UPPER, d, i, D, D, I), PRECISION)
        grad_built += tl.sum(x * by_momentum, axis=1)
        grad_x += retained[:, None] * by_delta + built[:, None] * by_momentum
        if DEPTH == 2:
            _put(p_owed + READ_GRAD, grad_x * _silu_slope(read), c, i, I, C, I)
        else:
            _put(query_grad_ptr + p_token, grad_x, c, i, H * D, C, I)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            x = _silu(_tile(p_kept + READ, c, i, I, C, I))
        else:
            x = _tile(p_query, c, i, query_t, C, I)
        turned = tl.trans(_tile(grad_ptr + p_token, c, d, H * D, C, D))
        to_delta = _dot(turned, retained[:, None] * x, PRECISION)
        _put_transposed(to_ptr + o_now + UPPER, to_delta, d, i, D, D, I)
        to_momentum = _dot(turned, built[:, None] * x, PRECISION)
        _put_transposed(to_ptr + o_now + SIZE + UPPER, to_momentum, d, i, D, D, I)
    tl.store(p_rule_grad + C + c, grad_retained, mask=m_c)
    tl.store(p_rule_grad + 2 * C + c, grad_built, mask=m_c)


@triton.jit
def _lower_read_gradient_kernel(
    query_ptr, key_ptr, rule_ptr, lower_ptr, upper_ptr, states_ptr, kept_ptr,
    grad_ptr, query_grad_ptr, rule_grad_ptr, owed_ptr, to_ptr,
    N, H, query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, RULE: tl.constexpr, MIXED: tl.constexpr, KEPT: tl.constexpr,
    PRODUCT: tl.constexpr, INNER: tl.constexpr, READ: tl.constexpr, ERROR: tl.constexpr, TAKEN: tl.constexpr,
    SQUARED: tl.constexpr, X_SQUARED: tl.constexpr, INNER_SQUARED: tl.constexpr, OWED: tl.constexpr, X_OWED: tl.constexpr, ERROR_OWED: tl.constexpr, KEY_OWED: tl.constexpr,
    INNER_OWED: tl.constexpr, READ_GRAD: tl.constexpr, SLOPE_GRAD: tl.constexpr, PRODUCT_GRAD: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Go on from the upper layer's inputs, in the reads of one chunk, to queries and the lower layer; add to coefficients."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    p_rule, p_kept = rule_ptr + chunk * RULE, kept_ptr + chunk * KEPT
    p_rule_grad, p_owed = rule_grad_ptr + chunk * RULE, owed_ptr + chunk * OWED
    SIZE: tl.constexpr = D * I * DEPTH
    o_now = (chunk + row) * (2 * SIZE)  # slots are one more than chunks
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    p_mixed = p_rule + MIXED
    p_token = ((i_b * N * C + first) * H + i_h) * D
    retained = tl.load(p_rule + C + c, mask=m_c, other=0.0)
    built = tl.load(p_rule + 2 * C + c, mask=m_c, other=0.0)
    taken = tl.load(p_kept + TAKEN + c, mask=m_c, other=0.0)

    query, key = _tile(p_query, c, d, query_t, C, D), _tile(p_key, c, d, key_t, C, D)
    alike = tl.trans(_dot(query, tl.trans(key), PRECISION) * _tile(p_mixed, c, c, C, C, C))
    grad_alike = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        grad_read = _tile(p_owed + READ_GRAD, c, i, I, C, I)
        _put(p_owed + INNER_OWED, -_dot(alike, grad_read, PRECISION), c, i, I, C, I)
        inner = taken[:, None] * _tile(p_kept + INNER, c, i, I, C, I)
        grad_alike -= _dot(grad_read, tl.trans(inner), PRECISION)
    p_mixed_grad = p_rule_grad + MIXED
    grad_mixed = grad_alike * _dot(query, tl.trans(key), PRECISION)
    _put(p_mixed_grad, _tile(p_mixed_grad, c, c, C, C, C) + grad_mixed, c, c, C, C, C)
    grad_alike = grad_alike * _tile(p_mixed, c, c, C, C, C)
    _put(p_owed + KEY_OWED, _dot(tl.trans(grad_alike), query, PRECISION), c, d, D, C, D)
    grad_query = _dot(grad_alike, key, PRECISION)
    if RESIDUAL:
        grad_query += _tile(grad_ptr + p_token, c, d, H * D, C, D)
    grad_retained, grad_built = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        grad_read = _tile(p_owed + READ_GRAD, c, i, I, C, I)
        lower = _tile(lower_ptr + i_h * (D * I), d, i, I, D, I)
        grad_query += _dot(grad_read, tl.trans(lower), PRECISION)
        # Sums of query * (grad_read delta^T), without a tile of [C, D].
        query = _tile(p_query, c, d, query_t, C, D)
        delta = _tile(states_ptr + o_now, d, i, I, D, I)
        grad_retained += tl.sum(grad_read * _dot(query, delta, PRECISION), axis=1)
        grad_query += _dot(retained[:, None] * grad_read, tl.trans(delta), PRECISION)
        momentum = _tile(states_ptr + o_now + SIZE, d, i, I, D, I)
        grad_built += tl.sum(grad_read * _dot(query, momentum, PRECISION), axis=1)
        grad_query += _dot(built[:, None] * grad_read, tl.trans(momentum), PRECISION)
    _put(query_grad_ptr + p_token, grad_query, c, d, H * D, C, D)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        grad_read = _tile(p_owed + READ_GRAD, c, i, I, C, I)
        turned = tl.trans(_tile(p_query, c, d, query_t, C, D))
        _put(to_ptr + o_now, _dot(turned, retained[:, None] * grad_read, PRECISION), d, i, I, D, I)
        _put(to_ptr + o_now + SIZE, _dot(turned, built[:, None] * grad_read, PRECISION), d, i, I, D, I)
    grad_retained += tl.load(p_rule_grad + C + c, mask=m_c, other=0.0)
    tl.store(p_rule_grad + C + c, grad_retained, mask=m_c)
    grad_built += tl.load(p_rule_grad + 2 * C + c, mask=m_c, other=0.0)
    tl.store(p_rule_grad + 2 * C + c, grad_built, mask=m_c)


@triton.jit
def _take_anchor(grad_anchor, p_delta, p_momentum, p_anchor, flags, place, mask):
    """Give an anchor's gradient to the delta it was, or keep it where an earlier chunk set that anchor.

    Where nothing flows across the beginning of the chunk, zeros are left.
    """
    if (flags & 4) != 0:
        grad_anchor += tl.load(p_anchor + place, mask=mask, other=0.0)
    if (flags & 16) != 0:
        tl.store(p_anchor + place, tl.where((flags & 10) == 8, grad_anchor, 0.0), mask=mask)
    if (flags & 10) == 0:
        grad_anchor += tl.load(p_delta + place, mask=mask, other=0.0)
        tl.store(p_delta + place, grad_anchor, mask=mask)
    if (flags & 2) != 0:
        tl.store(p_delta + place, tl.zeros_like(grad_anchor), mask=mask)
        tl.store(p_momentum + place, tl.zeros_like(grad_anchor), mask=mask)


@triton.jit
def _write_gradient_kernel(
    key_ptr, rule_ptr, lower_ptr, upper_ptr, flags_ptr, source_ptr, anchor_ptr, states_ptr, kept_ptr,
    rule_grad_ptr, owed_ptr, to_ptr, anchor_grad_ptr,
    N, H, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, RULE: tl.constexpr, MIXED: tl.constexpr, KEPT: tl.constexpr,
    PRODUCT: tl.constexpr, INNER: tl.constexpr, READ: tl.constexpr, ERROR: tl.constexpr, TAKEN: tl.constexpr,
    SQUARED: tl.constexpr, X_SQUARED: tl.constexpr, INNER_SQUARED: tl.constexpr, OWED: tl.constexpr, X_OWED: tl.constexpr, ERROR_OWED: tl.constexpr, KEY_OWED: tl.constexpr,
    INNER_OWED: tl.constexpr, READ_GRAD: tl.constexpr, SLOPE_GRAD: tl.constexpr, PRODUCT_GRAD: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Walk the chunks backward; the gradient of slot n + 1 is there when that of slot n is added to.

    What is owed to errors, and to keys, grows on the way to their gradient.
    """
    row = tl.program_id(0).to(tl.int64)
    i_b, i_h = row // H, row % H
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_upper = upper_ptr + i_h * (D * I)
    p_anchor_grad = anchor_grad_ptr + row * SIZE
    for back in range(N):
        chunk = row * N + (N - 1 - back)
        n = chunk - row * N
        first = n * C
        p_rule, p_kept = rule_ptr + chunk * RULE, kept_ptr + chunk * KEPT
        p_rule_grad, p_owed = rule_grad_ptr + chunk * RULE, owed_ptr + chunk * OWED
        p_to = to_ptr + (chunk + row) * (2 * SIZE)  # slots are one more than chunks
        p_after = p_to + 2 * SIZE
        p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
        flags, source = tl.load(flags_ptr + i_b * N + n), tl.load(source_ptr + i_b * N + n).to(tl.int64)
        p_anchor = anchor_ptr + row * SIZE
        if source >= 0:
            p_anchor = states_ptr + (row * (N + 1) + source) * (2 * SIZE)
        taken = tl.load(p_kept + TAKEN + c, mask=m_c, other=0.0)
        end_mixed = tl.load(p_rule + 3 * C + c, mask=m_c, other=0.0)
        end_trace = tl.load(p_rule + 4 * C + c, mask=m_c, other=0.0)
        end_retained, end_built = tl.load(p_rule + 5 * C), tl.load(p_rule + 5 * C + 1)
        end_kept = tl.load(p_rule + 5 * C + 2)

        # What the chunk left, in the upper layer.
        grad_error = _tile(p_owed + ERROR_OWED, c, d, D, C, D)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            if DEPTH == 2:
                x = _silu(_tile(p_kept + PRODUCT, c, i, I, C, I))
            else:
                x = _tile(p_key, c, i, key_t, C, I)
            to_delta = _transposed(p_after + UPPER, d, i, D, D, I)
            to_momentum = _transposed(p_after + SIZE + UPPER, d, i, D, D, I)
            step_error = taken[:, None] * _tile(p_kept + ERROR, c, d, D, C, D)
            grad_x = _tile(p_owed + X_OWED, c, i, I, C, I)
            grad_x -= end_mixed[:, None] * _dot(step_error, to_delta, PRECISION)
            grad_x -= end_trace[:, None] * _dot(step_error, to_momentum, PRECISION)
            _put(p_owed + X_OWED, grad_x, c, i, I, C, I)
            grad_error -= _dot(end_mixed[:, None] * x, tl.trans(to_delta), PRECISION)
            grad_error -= _dot(end_trace[:, None] * x, tl.trans(to_momentum), PRECISION)
            to_momentum = end_built * to_delta + end_kept * to_momentum
            to_momentum += _transposed(p_to + SIZE + UPPER, d, i, D, D, I)
            _put_transposed(p_to + SIZE + UPPER, to_momentum, d, i, D, D, I)
            to_delta = end_retained * to_delta + _transposed(p_to + UPPER, d, i, D, D, I)
            _put_transposed(p_to + UPPER, to_delta, d, i, D, D, I)
        error = _tile(p_kept + ERROR, c, d, D, C, D)
        grad_step = tl.sum(grad_error * error, axis=1)
        grad_error = taken[:, None] * grad_error

        per_square = tl.zeros([BLOCK_C], tl.float32)
        grad_share = tl.zeros([BLOCK_C], tl.float32)
        if DEPTH == 2:
            # In the lower layer.
            _put(p_owed + ERROR_OWED, grad_error, c, d, D, C, D)
            grad_key = _tile(p_owed + KEY_OWED, c, d, D, C, D)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                key = _tile(p_key, c, d, key_t, C, D)
                inner = _tile(p_kept + INNER, c, i, I, C, I)
                to_delta = _tile(p_after, d, i, I, D, I)
                to_momentum = _tile(p_after + SIZE, d, i, I, D, I)
                step_inner = taken[:, None] * inner
                grad_key -= _dot(end_mixed[:, None] * step_inner, tl.trans(to_delta), PRECISION)
                grad_key -= _dot(end_trace[:, None] * step_inner, tl.trans(to_momentum), PRECISION)
                grad_inner = _tile(p_owed + INNER_OWED, c, i, I, C, I)
                grad_inner -= end_mixed[:, None] * _dot(key, to_delta, PRECISION)
                grad_inner -= end_trace[:, None] * _dot(key, to_momentum, PRECISION)
                _put(p_owed + INNER_OWED, grad_inner, c, i, I, C, I)
                grad_step += tl.sum(grad_inner * inner, axis=1)
                to_momentum = end_built * to_delta + end_kept * to_momentum
                _put(p_to + SIZE, to_momentum + _tile(p_to + SIZE, d, i, I, D, I), d, i, I, D, I)
                to_delta = end_retained * to_delta + _tile(p_to, d, i, I, D, I)
                _put(p_to, to_delta, d, i, I, D, I)

            # The clip.
            step = tl.load(p_rule + c, mask=m_c, other=0.0)
            squared = tl.load(p_kept + SQUARED + c, mask=m_c, other=1.0)
            clipped = taken != step
            owed = tl.where(clipped, 2 * grad_step / tl.where(clipped, squared, 1.0), 0.0)
            per_square = -owed * taken
            share = tl.load(p_rule + 5 * C + 3 + c, mask=m_c, other=0.0)
            x_squares = tl.load(p_kept + X_SQUARED + c, mask=m_c, other=0.0)
            inner_squares = tl.load(p_kept + INNER_SQUARED + c, mask=m_c, other=0.0)
            key = _tile(p_key, c, d, key_t, C, D)
            per_inner = per_square * _squares(key)
            _put(p_owed + KEY_OWED, grad_key + (per_square * inner_squares)[:, None] * key, c, d, D, C, D)
            grad_step = tl.where(clipped, 0.0, grad_step)
            tl.debug_barrier()

            # The write's backward pass at the anchor.
            error = _tile(p_kept + ERROR, c, d, D, C, D)
            per_x = per_square * _squares(error)
            grad_error = _tile(p_owed + ERROR_OWED, c, d, D, C, D)
            grad_share = 0.5 * owed * _squares(error)
            grad_error += (per_square * x_squares + owed * share)[:, None] * error
            for block in range(0, I, BLOCK_I):
                i = block + tile
                grad_inner = taken[:, None] * _tile(p_owed + INNER_OWED, c, i, I, C, I)
                grad_inner += per_inner[:, None] * _tile(p_kept + INNER, c, i, I, C, I)
                _put(p_owed + INNER_OWED, grad_inner, c, i, I, C, I)
                grad_slope = grad_inner * _silu_slope(_tile(p_kept + PRODUCT, c, i, I, C, I))
                _put(p_owed + SLOPE_GRAD, grad_slope, c, i, I, C, I)
                upper = _transposed(p_upper, d, i, D, D, I) + _transposed(p_anchor + UPPER, d, i, D, D, I)
                grad_error += _dot(grad_slope, tl.trans(upper), PRECISION)
        tl.store(p_rule_grad + c, grad_step, mask=m_c)
        tl.store(p_rule_grad + 5 * C + 3 + c, grad_share, mask=m_c)
        tl.debug_barrier()
        _put(p_owed + ERROR_OWED, grad_error, c, d, D, C, D)
        tl.debug_barrier()

        # Its forward pass.
        for block in range(0, I, BLOCK_I):
            i = block + tile
            upper = _transposed(p_upper, d, i, D, D, I) + _transposed(p_anchor + UPPER, d, i, D, D, I)
            grad_x = _tile(p_owed + X_OWED, c, i, I, C, I) + _dot(grad_error, upper, PRECISION)
            if DEPTH == 2:
                product = _tile(p_kept + PRODUCT, c, i, I, C, I)
                grad_x += per_x[:, None] * _silu(product)
                error = _tile(p_kept + ERROR, c, d, D, C, D)
                grad_product = _tile(p_owed + INNER_OWED, c, i, I, C, I) * _silu_bend(product)
                grad_product = grad_product * _dot(error, upper, PRECISION) + grad_x * _silu_slope(product)
                _put(p_owed + PRODUCT_GRAD, grad_product, c, i, I, C, I)
            else:
                if RESIDUAL:
                    grad_x += _tile(p_owed + ERROR_OWED, c, i, D, C, I)
                _put(p_owed + X_OWED, grad_x, c, i, I, C, I)
        tl.debug_barrier()
        for block in range(0, I, BLOCK_I):
            i = block + tile
            inside = (d < D)[:, None] & (i < I)[None, :]
            place = UPPER + d[:, None] + i[None, :] * D
            turned = tl.trans(_tile(p_owed + ERROR_OWED, c, d, D, C, D))
            if DEPTH == 2:
                x = _silu(_tile(p_kept + PRODUCT, c, i, I, C, I))
                grad_upper = _dot(turned, x, PRECISION)
                grad_slope = _tile(p_owed + SLOPE_GRAD, c, i, I, C, I)
                turned = tl.trans(_tile(p_kept + ERROR, c, d, D, C, D))
                grad_upper += _dot(turned, grad_slope, PRECISION)
            else:
                grad_upper = _dot(turned, _tile(p_key, c, i, key_t, C, I), PRECISION)
            _take_anchor(grad_upper, p_to, p_to + SIZE, p_anchor_grad, flags, place, inside)
        if DEPTH == 2:
            grad_key = _tile(p_owed + KEY_OWED, c, d, D, C, D)
            if RESIDUAL:
                grad_key += _tile(p_owed + ERROR_OWED, c, d, D, C, D)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                inside = (d < D)[:, None] & (i < I)[None, :]
                place = d[:, None] * I + i[None, :]
                grad_product = _tile(p_owed + PRODUCT_GRAD, c, i, I, C, I)
                turned = tl.trans(_tile(p_key, c, d, key_t, C, D))
                grad_lower = _dot(turned, grad_product, PRECISION)
                _take_anchor(grad_lower, p_to, p_to + SIZE, p_anchor_grad, flags, place, inside)
                lower = _tile(lower_ptr + i_h * (D * I), d, i, I, D, I) + _tile(p_anchor, d, i, I, D, I)
                grad_key += _dot(grad_product, tl.trans(lower), PRECISION)
            _put(p_owed + KEY_OWED, grad_key, c, d, D, C, D)
        tl.debug_barrier()


@triton.jit
def _rule_gradient_kernel(
    key_ptr, states_ptr, kept_ptr, rule_grad_ptr, to_ptr,
    N, H, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
    RULE: tl.constexpr, KEPT: tl.constexpr, PRODUCT: tl.constexpr, INNER: tl.constexpr, ERROR: tl.constexpr,
    TAKEN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the coefficients at the end of one chunk, from those of the state after it."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first = (chunk - row * N) * C
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * (2 * SIZE)  # slots are one more than chunks
    p_state, p_to = states_ptr + o_now, to_ptr + o_now + 2 * SIZE
    p_kept, p_rule_grad = kept_ptr + chunk * KEPT, rule_grad_ptr + chunk * RULE
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    taken = tl.load(p_kept + TAKEN + c, mask=m_c, other=0.0)
    grad_mixed, grad_trace = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    # Sums over a tile's columns alone: one number would be summed over warps in every block.
    grad_retained = tl.zeros([BLOCK_D], tl.float32)
    grad_built, grad_kept = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            x = _silu(_tile(p_kept + PRODUCT, c, i, I, C, I))
            to_delta, to_momentum = _tile(p_to, d, i, I, D, I), _tile(p_to + SIZE, d, i, I, D, I)
            delta, momentum = _tile(p_state, d, i, I, D, I), _tile(p_state + SIZE, d, i, I, D, I)
            grad_retained += tl.sum(delta * to_delta, axis=1)
            grad_built += tl.sum(momentum * to_delta, axis=1)
            grad_kept += tl.sum(momentum * to_momentum, axis=1)
            key = _tile(p_key, c, d, key_t, C, D)
            inner = taken[:, None] * _tile(p_kept + INNER, c, i, I, C, I)
            grad_mixed -= tl.sum(inner * _dot(key, to_delta, PRECISION), axis=1)
            grad_trace -= tl.sum(inner * _dot(key, to_momentum, PRECISION), axis=1)
        else:
            x = _tile(p_key, c, i, key_t, C, I)
        to_delta = _transposed(p_to + UPPER, d, i, D, D, I)
        to_momentum = _transposed(p_to + SIZE + UPPER, d, i, D, D, I)
        delta = _transposed(p_state + UPPER, d, i, D, D, I)
        momentum = _transposed(p_state + SIZE + UPPER, d, i, D, D, I)
        grad_retained += tl.sum(delta * to_delta, axis=1)
        grad_built += tl.sum(momentum * to_delta, axis=1)
        grad_kept += tl.sum(momentum * to_momentum, axis=1)
        error = taken[:, None] * _tile(p_kept + ERROR, c, d, D, C, D)
        grad_mixed -= tl.sum(x * _dot(error, to_delta, PRECISION), axis=1)
        grad_trace -= tl.sum(x * _dot(error, to_momentum, PRECISION), axis=1)
    tl.store(p_rule_grad + 3 * C + c, grad_mixed, mask=m_c)
    tl.store(p_rule_grad + 4 * C + c, grad_trace, mask=m_c)
    tl.store(p_rule_grad + 5 * C, tl.sum(grad_retained))
    tl.store(p_rule_grad + 5 * C + 1, tl.sum(grad_built))
    tl.store(p_rule_grad + 5 * C + 2, tl.sum(grad_kept))


class Inputs(NamedTuple):
    """What the kernels read: tokens `[B, T, H, D]` in their own dtype, all else float32 and contiguous."""

    query: Tensor
    key: Tensor
    value: Tensor
    rule: Tensor
    """Of every chunk `[R, N, .]`: step sizes and coefficients, as `_rule` lays them out."""
    weights: tuple[Tensor, ...]
    state: NeuralState
    borders: Borders


class Borders(NamedTuple):
    """What happens at the border of each chunk, `[B, N]`: bits, and the chunk whose first delta is the anchor, or -1.

    1 fresh; 2 fresh or cut; 4 its last token is skipped, so it leaves the anchor where it was; 8 its own anchor was
    left so; 16 the chunk before it left it so (for chunk 0, always); 32 the next chunk is fresh.
    """

    flags: Tensor
    source: Tensor


class Kept(NamedTuple):
    """What a forward pass leaves for its gradient: one tensor for many, so that kernels hold few addresses.

    States `[R, N + 1, 2, P]` are delta and momentum at the beginnings of chunks, then those after the last.
    """

    states: Tensor
    chunks: Tensor
    """Of every chunk `[R, N, .]`: what `Layout.kept` names."""


@dataclass(frozen=True)
class Layout:
    """Where things lie in what is kept and owed of a chunk of `length` tokens: the offset and width of each."""

    shape: NetworkShape
    length: int

    @property
    def kept(self) -> dict[str, tuple[int, int]]:
        """The hidden units' products with keys, their deltas, their products with queries; then of each token."""
        inner, width = self.shape.layers[-1]
        hidden = inner * (len(self.shape.layers) - 1)
        return self._places(
            product=hidden,
            inner=hidden,
            read=hidden,
            error=width,
            taken=1,
            squared=1,
            x_squared=1,
            inner_squared=1,
        )

    @property
    def owed(self) -> dict[str, tuple[int, int]]:
        """What reads owe, then the gradients by the hidden units' slopes and products, then what is owed to the state."""
        inner, width = self.shape.layers[-1]
        hidden = inner * (len(self.shape.layers) - 1)
        return self._places(
            x_owed=inner,
            error_owed=width,
            key_owed=width,
            inner_owed=hidden,
            read_grad=hidden,
            slope_grad=hidden,
            product_grad=hidden,
        )

    @property
    def mixed(self) -> int:
        """The place of the C x C coefficients among a chunk's."""
        return _padded(6 * self.length + 3)

    def sizes(self) -> dict[str, int]:
        """Return the numbers of a chunk's rule, of what is kept of it, and of what is owed to it."""
        return {
            "RULE": _padded(self.mixed + self.length**2),
            "KEPT": _padded(_end(self.kept, self.length)),
            "OWED": _padded(_end(self.owed, self.length)),
        }

    def view(self, whole: Tensor, name: str) -> Tensor:
        """Return `[R, N, C, width]` of what is kept or owed, without a copy."""
        offset, width = (self.kept | self.owed)[name]
        return whole[..., offset : offset + self.length * width].unflatten(-1, (self.length, width))

    def _places(self, **widths: int) -> dict[str, tuple[int, int]]:
        places, offset = {}, 0
        for name, width in widths.items():
            places[name] = offset, width
            offset = _padded(offset + self.length * width)
        return places


def _end(places: dict[str, tuple[int, int]], length: int) -> int:
    return max(offset + length * width for offset, width in places.values())


def _padded(size: int) -> int:
    """Return the next multiple of 16, at which loads are aligned."""
    return -(-size // 16) * 16


def run_walk(problem: Problem) -> tuple[Tensor, Tensor, NeuralState]:
    """Run all chunks: `run_chunks` of `neural_memory_torch`, in kernels."""
    batch, time, heads, _ = problem.query.shape
    count, rows = time // problem.chunk_size, batch * heads

    def by_chunk(x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(rows, count, problem.chunk_size)

    gates, learned = [by_chunk(gate) for gate in problem.gates], None
    if problem.valid is not None:
        learned = by_chunk(problem.valid[..., None].expand(batch, time, heads))
        gates = [gate.masked_fill(~learned, 0) for gate in gates]
    step_size, log_momentum, log_retention = gates
    coefficients = coefficients_of(log_retention, log_momentum, learned, problem.read_before_write)
    layout = Layout(problem.shape, problem.chunk_size)
    options = _Options(layout, _borders(problem, count))
    y, squared, *after = _Walk.apply(
        options,
        problem.query,
        problem.key,
        problem.value,
        _rule(layout, step_size, coefficients),
        *problem.weights,
        *problem.state,
    )
    return y, squared.sqrt().view(batch, heads, time).transpose(1, 2), NeuralState(*after)


def _rule(layout: Layout, step_size: Tensor, at: Coefficients) -> Tensor:
    """Lay out what each chunk's tokens multiply, in the order in which the kernels find it."""
    rows, count, _ = step_size.shape
    ends = (at.end_retained, at.end_built, at.end_kept)
    parts = [step_size, at.read_retained, at.read_built, at.end_mixed, at.end_trace, *ends, at.share]
    first = torch.cat([part.reshape(rows, count, -1) for part in parts], dim=-1)
    padding = step_size.new_zeros(rows, count, layout.mixed - first.shape[-1])
    mixed = at.read_mixed.reshape(rows, count, -1)
    rest = step_size.new_zeros(rows, count, layout.sizes()["RULE"] - layout.mixed - mixed.shape[-1])
    return torch.cat([first, padding, mixed, rest], dim=-1)


def _borders(problem: Problem, count: int) -> Borders:
    batch, device = problem.query.shape[0], problem.query.device
    never = torch.zeros(batch, count, dtype=torch.bool, device=device)
    fresh = never if problem.fresh is None else problem.fresh
    border = fresh if problem.cut is None else fresh | problem.cut
    incomplete = never
    if problem.valid is not None:
        incomplete = ~problem.valid.unflatten(1, (count, problem.chunk_size))[..., -1]
    follows = torch.cat([~never[:, :1], incomplete[:, :-1]], dim=1)
    held = follows & ~fresh
    ends = torch.cat([fresh[:, 1:], never[:, :1]], dim=1)
    bits = (fresh, border, incomplete, held, follows, ends)
    flags = sum(bit.to(torch.int32) << place for place, bit in enumerate(bits))
    chunk = torch.arange(count, device=device).expand(batch, count)
    source = chunk.masked_fill(held, -1).cummax(dim=1).values
    return Borders(flags.contiguous(), source.to(torch.int32).contiguous())


class _Options(NamedTuple):
    layout: Layout
    borders: Borders


class _Walk(torch.autograd.Function):
    """All kernels as one operation, differentiable once."""

    @staticmethod
    def forward(ctx, options: _Options, *flat: Tensor):
        ctx.options = options
        y, squared, after, kept = forward(_inputs(options, flat), options.layout)
        ctx.mark_non_differentiable(squared)
        ctx.save_for_backward(*flat, *kept)
        return y, squared, *after

    @staticmethod
    def backward(ctx, grad_y, _, *grad_after):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "neural_memory with implementation='triton' is differentiable once; "
                "use 'torch' for second derivatives"
            )
        *flat, states, chunks = ctx.saved_tensors
        inputs, kept = _inputs(ctx.options, flat), Kept(states, chunks)
        return None, *backward(inputs, ctx.options.layout, kept, grad_y, NeuralState(*grad_after))


def _inputs(options: _Options, flat: Sequence[Tensor]) -> Inputs:
    tokens = [with_dense_rows(x) for x in flat[:3]]
    rule, *rest = (x.contiguous() for x in flat[3:])
    return Inputs(*tokens, rule, tuple(rest[:-3]), NeuralState(*rest[-3:]), options.borders)


def forward(inputs: Inputs, layout: Layout) -> tuple[Tensor, Tensor, NeuralState, Kept]:
    """Return the outputs, the squared lengths of the gradients, the state after, and what is kept for a gradient."""
    query, state, flags = inputs.query, inputs.state, inputs.borders.flags
    y, kept, anchor = query.new_empty(query.shape), _kept(inputs, layout), state.anchor.clone()
    starts_fresh, ends_incomplete = (
        ((flags[:, n] & bit) != 0)[:, None, None] for n, bit in ((0, 1), (-1, 4))
    )
    for place, part in enumerate((state.delta, state.momentum)):
        kept.states[:, 0, place] = part.masked_fill(starts_fresh, 0).flatten(0, 1)
    write_launch(inputs, layout, anchor, kept).run()
    read_launch(inputs, layout, y, kept).run()
    delta, momentum = (kept.states[:, -1, place].clone().view_as(anchor) for place in (0, 1))
    after = NeuralState(delta, momentum, torch.where(ends_incomplete, anchor, delta))
    return y, layout.view(kept.chunks, "squared").flatten(1), after, kept


def _kept(inputs: Inputs, layout: Layout) -> Kept:
    rows, count, _ = inputs.rule.shape
    new = inputs.rule.new_empty
    return Kept(new(rows, count + 1, 2, layout.shape.size), new(rows, count, layout.sizes()["KEPT"]))


def backward(
    inputs: Inputs, layout: Layout, kept: Kept, grad_y: Tensor, grad_after: NeuralState
) -> list[Tensor]:
    """Return the gradients of tokens, rule, weights and state, in this order."""
    incomplete = ((inputs.borders.flags[:, -1] & 4) != 0)[:, None, None]
    grad_y = grad_y.contiguous()
    grad_query, grad_rule = inputs.query.new_empty(inputs.query.shape), torch.empty_like(inputs.rule)
    owed = inputs.rule.new_empty(*inputs.rule.shape[:2], layout.sizes()["OWED"])
    # The anchor after the last chunk is its delta, unless the chunk is incomplete.
    grad_delta = grad_after.delta + grad_after.anchor.masked_fill(incomplete, 0)
    grad_anchor = grad_after.anchor.masked_fill(~incomplete, 0).contiguous()
    to = torch.empty_like(kept.states)
    to[:, -1] = torch.stack([grad_delta, grad_after.momentum], dim=2).flatten(0, 1)
    for launch in read_gradient_launches(inputs, layout, kept, grad_y, grad_query, grad_rule, owed, to):
        launch.run()
    write_gradient_launch(inputs, layout, kept, grad_rule, owed, to, grad_anchor).run()
    rule_gradient_launch(inputs, layout, kept, grad_rule, to).run()
    grad_state = [to[:, 0, place].reshape(grad_anchor.shape) for place in (0, 1)]
    key = layout.view(owed, "key_owed" if len(inputs.weights) == 2 else "x_owed")
    key, error = (_tokens(x, inputs) for x in (key, layout.view(owed, "error_owed")))
    tokens = [grad_query, key.to(inputs.key.dtype), error.neg().to(inputs.value.dtype)]
    weights = _weight_gradients(inputs, layout, kept, grad_y, owed)
    return [*tokens, grad_rule, *weights, *grad_state, grad_anchor]


def _tokens(x: Tensor, inputs: Inputs) -> Tensor:
    """Return `[B, T, H, .]` of what lies in chunks `[R, N, C, .]`."""
    batch, _, heads, _ = inputs.query.shape
    return x.unflatten(0, (batch, heads)).flatten(2, 3).transpose(1, 2)


def _weight_gradients(
    inputs: Inputs, layout: Layout, kept: Kept, grad_y: Tensor, owed: Tensor
) -> list[Tensor]:
    """Return the gradients of the weights: of every product with them, inputs^T gradient, over all tokens."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bthi,btho->hio", a.float(), b.float())

    def of(whole: Tensor, name: str) -> Tensor:
        return _tokens(layout.view(whole, name), inputs)

    query, key, error = inputs.query, inputs.key, of(owed, "error_owed")
    if len(inputs.weights) == 1:
        return [product(query, grad_y) + product(key, error)]
    lower = product(query, of(owed, "read_grad")) + product(key, of(owed, "product_grad"))
    reads, hidden = functional.silu(of(kept.chunks, "read")), functional.silu(of(kept.chunks, "product"))
    upper = product(reads, grad_y) + product(hidden, error)
    return [lower, upper.add_(product(of(owed, "slope_grad"), of(kept.chunks, "error")))]


def _block(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _launch(kernel, programs: int, inputs: Inputs, layout: Layout, arguments: dict[str, Tensor]) -> Launch:
    """Return the launch of a kernel, which takes of all inputs and constants those that it names."""
    inner, width = layout.shape.layers[-1]
    exact = all(x.dtype == torch.float32 for x in (inputs.query, inputs.key, inputs.value))
    constants: dict[str, object] = {
        "C": layout.length,
        "D": width,
        "I": inner,
        "DEPTH": len(layout.shape.layers),
        "RESIDUAL": layout.shape.residual,
        "PRECISION": "tf32x3" if exact else "tf32",
        "BLOCK_C": _block(layout.length),
        "BLOCK_D": _block(width),
        "BLOCK_I": 16,
        "MIXED": layout.mixed,
        **layout.sizes(),
        **{name.upper(): offset for name, (offset, _) in (layout.kept | layout.owed).items()},
    }
    lower, upper = inputs.weights if len(inputs.weights) == 2 else (None, *inputs.weights)
    known: dict[str, object] = {
        "rule_ptr": inputs.rule,
        "lower_ptr": lower,
        "upper_ptr": upper,
        "flags_ptr": inputs.borders.flags,
        "source_ptr": inputs.borders.source,
        "N": inputs.rule.shape[1],
        "H": inputs.query.shape[2],
        **arguments,
    }
    for name in ("query", "key", "value"):
        tensor = getattr(inputs, name)
        known[f"{name}_ptr"] = tensor
        known |= {f"{name}_{dim}": tensor.stride(place) for place, dim in enumerate("bth")}
    return Launch(
        kernel,
        (programs,),
        {name: known[name] for name in kernel.arg_names if name in known},
        {name: constants[name] for name in kernel.arg_names if name in constants},
        num_warps=_warps(layout),
        num_stages=1,
    )


def _warps(layout: Layout) -> int:
    """Give every warp 16 of a chunk's tokens, the rows of most products, and use no fewer than four."""
    return max(4, _block(layout.length) // 16)


def write_launch(inputs: Inputs, layout: Layout, anchor: Tensor, kept: Kept) -> Launch:
    """Return the launch that fills `kept` but its reads, and moves the `anchor` that incomplete chunks leave."""
    arguments = {"anchor_ptr": anchor, "states_ptr": kept.states, "kept_ptr": kept.chunks}
    return _launch(_write_kernel, inputs.rule.shape[0], inputs, layout, arguments)


def read_launch(inputs: Inputs, layout: Layout, y: Tensor, kept: Kept) -> Launch:
    """Return the launch that fills `y` and the reads of `kept`."""
    rows, count, _ = inputs.rule.shape
    arguments = {"states_ptr": kept.states, "kept_ptr": kept.chunks, "out_ptr": y}
    return _launch(_read_kernel, rows * count, inputs, layout, arguments)


def read_gradient_launches(
    inputs: Inputs,
    layout: Layout,
    kept: Kept,
    grad_y: Tensor,
    grad_query: Tensor,
    grad_rule: Tensor,
    owed: Tensor,
    to: Tensor,
) -> list[Launch]:
    """Return the launches, one a layer, that fill `owed`, and the gradients of query and of reads' coefficients.

    `to` are the gradients of the states, of which those after the last chunk are there; reads give theirs.
    """
    rows, count, _ = inputs.rule.shape
    arguments = {
        "states_ptr": kept.states,
        "kept_ptr": kept.chunks,
        "grad_ptr": grad_y,
        "query_grad_ptr": grad_query,
        "rule_grad_ptr": grad_rule,
        "owed_ptr": owed,
        "to_ptr": to,
    }
    kernels = (_read_gradient_kernel, _lower_read_gradient_kernel)[: len(inputs.weights)]
    return [_launch(kernel, rows * count, inputs, layout, arguments) for kernel in kernels]


def write_gradient_launch(
    inputs: Inputs,
    layout: Layout,
    kept: Kept,
    grad_rule: Tensor,
    owed: Tensor,
    to: Tensor,
    grad_anchor: Tensor,
) -> Launch:
    """Return the launch of the walk back, that fills `to` and `grad_anchor` for the state before."""
    arguments = {
        "anchor_ptr": inputs.state.anchor,
        "states_ptr": kept.states,
        "kept_ptr": kept.chunks,
        "rule_grad_ptr": grad_rule,
        "owed_ptr": owed,
        "to_ptr": to,
        "anchor_grad_ptr": grad_anchor,
    }
    return _launch(_write_gradient_kernel, inputs.rule.shape[0], inputs, layout, arguments)


def rule_gradient_launch(inputs: Inputs, layout: Layout, kept: Kept, grad_rule: Tensor, to: Tensor) -> Launch:
    """Return the launch that fills the gradients of the coefficients at the ends of chunks."""
    rows, count, _ = inputs.rule.shape
    arguments = {"states_ptr": kept.states, "kept_ptr": kept.chunks, "rule_grad_ptr": grad_rule, "to_ptr": to}
    return _launch(_rule_gradient_kernel, rows * count, inputs, layout, arguments)


def configurations() -> dict[str, Launch]:
    """Return the launches of the main configurations on meta tensors, to compile without a GPU."""
    launches = {}
    for dtype, width, hidden, length in (
        (torch.bfloat16, 64, None, 32),
        (torch.float32, 32, None, 32),
        (torch.float16, 32, 64, 16),
    ):
        depth = "a matrix" if hidden is None else f"hidden {hidden}"
        name = f"{str(dtype).removeprefix('torch.')}, D={width}, {depth}, C={length}"
        for kernel, launch in _example(dtype, width, hidden, length).items():
            launches[f"{kernel}: {name}"] = launch
    return launches


def _example(dtype: torch.dtype, width: int, hidden: int | None, length: int) -> dict[str, Launch]:
    batch, count, heads = 8, 16, 4
    rows = batch * heads

    def meta(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*sizes, dtype=dtype, device="meta")

    layers = ((width, width),) if hidden is None else ((width, hidden), (hidden, width))
    layout = Layout(NetworkShape(layers, residual=False, norm=False), length)
    tokens = [meta(batch, count * length, heads, width, dtype=dtype) for _ in range(3)]
    rule, state = meta(rows, count, layout.sizes()["RULE"]), meta(batch, heads, layout.shape.size)
    flags = meta(batch, count, dtype=torch.int32)
    weights = tuple(meta(heads, a, b) for a, b in layers)
    inputs = Inputs(*tokens, rule, weights, NeuralState(state, state, state), Borders(flags, flags))
    kept, owed = _kept(inputs, layout), meta(rows, count, layout.sizes()["OWED"])
    to = kept.states
    reads = read_gradient_launches(inputs, layout, kept, tokens[0], tokens[0], rule, owed, to)
    return {
        "write": write_launch(inputs, layout, state, kept),
        "read": read_launch(inputs, layout, tokens[0], kept),
        **dict(zip(("read gradient", "lower read gradient"), reads, strict=False)),
        "write gradient": write_gradient_launch(inputs, layout, kept, rule, owed, to, state),
        "rule gradient": rule_gradient_launch(inputs, layout, kept, rule, to),
    }
