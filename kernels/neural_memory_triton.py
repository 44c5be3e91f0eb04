# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Neural memory on Triton: one program per row and head walks the chunks with delta and momentum on chip.

The maths is that of `neural_memory_torch`, of a matrix or of two layers, "lower" `[D, I]` and "upper" `[I, D]`; a
matrix is an upper layer with I = D. The coefficients of the learning rule, `[R, N, C, ...]`, are torch's.

Forward, where a gradient is wanted, leaves delta and momentum at the start of every chunk, 2 P / C numbers a token
(a chunk kept in g would be formed again by walking it, the very walk whose length is the time it takes), and
each layer's products, which are fewer. Backward is two kernels. What a chunk's reads owe depends on no other chunk, so
it has a program for each; the other walks from the last chunk to the first with the gradients of delta and momentum
on chip. Gradients of the weights are products over all tokens, left to torch. No atomics: results are deterministic.

An anchor is delta at the start of its chunk, but behind an incomplete chunk it is an older one. Such an anchor is kept
in memory, in the tensor that returns it, written by a chunk that is incomplete and read by one that is `held`.

Products of float32 are three TF32 ones each, whose error is near float32's own; where query, key or value has half
precision they are one TF32 product, as exact as float16 and without its limits, for delta, momentum and the gradients
stay float32. I, C and D are padded to powers of two of at least 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.launch import Launch, with_dense_rows
from scrubjay.kernels.neural_memory_torch import Coefficients, coefficients_of
from scrubjay.kernels.neural_network import NetworkShape, NeuralState, Problem


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
    key_ptr, value_ptr, step_ptr,
    end_mixed_ptr, end_trace_ptr, end_retained_ptr, end_built_ptr, end_kept_ptr,
    lower_ptr, upper_ptr, flags_ptr, squared_ptr, anchor_ptr,
    deltas_ptr, momenta_ptr, taken_ptr, error_ptr, product_ptr, inner_ptr,
    N, H,
    key_b, key_t, key_h, value_b, value_t, value_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
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
        first, tokens = (chunk - row * N) * C, chunk * C
        o_now = (chunk + row) * SIZE  # slots are one more than chunks
        o_next = o_now + SIZE
        flags = tl.load(flags_ptr + i_b * N + n)
        p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
        p_value = value_ptr + i_b * value_b + i_h * value_h + first * value_t
        p_anchor = deltas_ptr + o_now
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
                _put(product_ptr + tokens * I, product, c, i, I, C, I)
                x = _silu(product)
            else:
                x = _tile(p_key, c, i, key_t, C, I)
            x_squares += _squares(x)
            error += _dot(x, tl.trans(upper), PRECISION)
        step = tl.load(step_ptr + tokens + c, mask=m_c, other=0.0)
        most = _squares(error)
        squared = x_squares * most
        if DEPTH == 2:
            tl.debug_barrier()
            inner_squares = tl.zeros([BLOCK_C], tl.float32)
            for block in range(0, I, BLOCK_I):
                i = block + tile
                upper = _transposed(p_upper, d, i, D, D, I) + _transposed(p_anchor + UPPER, d, i, D, D, I)
                product = _tile(product_ptr + tokens * I, c, i, I, C, I)
                inner = _dot(error, upper, PRECISION) * _silu_slope(product)
                inner_squares += _squares(inner)
                _put(inner_ptr + tokens * I, inner, c, i, I, C, I)
            squared += _squares(_tile(p_key, c, d, key_t, C, D)) * inner_squares
            clipped = C * step * squared > most
            step = tl.where(clipped, most / (C * tl.where(squared > 0, squared, 1.0)), step)
        tl.store(squared_ptr + tokens + c, squared, mask=m_c)
        tl.store(taken_ptr + tokens + c, step, mask=m_c)
        _put(error_ptr + tokens * D, error, c, d, D, C, D)
        error = step[:, None] * error
        # All is stored and loaded before other threads load or overwrite it.
        tl.debug_barrier()

        # Where it leaves delta and momentum: nothing, if the next chunk is fresh.
        end_mixed = tl.load(end_mixed_ptr + tokens + c, mask=m_c, other=0.0)
        end_trace = tl.load(end_trace_ptr + tokens + c, mask=m_c, other=0.0)
        end_retained, end_built = tl.load(end_retained_ptr + chunk), tl.load(end_built_ptr + chunk)
        end_kept = tl.load(end_kept_ptr + chunk)
        stays = (flags & 32) == 0
        error = tl.trans(error)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            if DEPTH == 2:
                inner = step[:, None] * _tile(inner_ptr + tokens * I, c, i, I, C, I)
                x = _silu(_tile(product_ptr + tokens * I, c, i, I, C, I))
                key = tl.trans(_tile(p_key, c, d, key_t, C, D))
                delta = _tile(deltas_ptr + o_now, d, i, I, D, I)
                momentum = _tile(momenta_ptr + o_now, d, i, I, D, I)
                delta = end_retained * delta + end_built * momentum
                delta = _flushed(delta - _dot(key, end_mixed[:, None] * inner, PRECISION))
                momentum = end_kept * momentum
                momentum = _flushed(momentum - _dot(key, end_trace[:, None] * inner, PRECISION))
                _put(deltas_ptr + o_next, tl.where(stays, delta, 0.0), d, i, I, D, I)
                _put(momenta_ptr + o_next, tl.where(stays, momentum, 0.0), d, i, I, D, I)
            else:
                x = _tile(p_key, c, i, key_t, C, I)
            delta = _transposed(deltas_ptr + o_now + UPPER, d, i, D, D, I)
            momentum = _transposed(momenta_ptr + o_now + UPPER, d, i, D, D, I)
            delta = end_retained * delta + end_built * momentum
            delta = _flushed(delta - _dot(error, end_mixed[:, None] * x, PRECISION))
            momentum = end_kept * momentum
            momentum = _flushed(momentum - _dot(error, end_trace[:, None] * x, PRECISION))
            _put_transposed(deltas_ptr + o_next + UPPER, tl.where(stays, delta, 0.0), d, i, D, D, I)
            _put_transposed(momenta_ptr + o_next + UPPER, tl.where(stays, momentum, 0.0), d, i, D, D, I)
        tl.debug_barrier()


@triton.jit
def _read_kernel(
    query_ptr, key_ptr, read_retained_ptr, read_built_ptr, read_mixed_ptr,
    lower_ptr, upper_ptr, deltas_ptr, momenta_ptr, taken_ptr, error_ptr, product_ptr, inner_ptr, read_ptr,
    out_ptr,
    N, H,
    query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write what the queries of one chunk read."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first, tokens = (chunk - row * N) * C, chunk * C
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * SIZE  # slots are one more than chunks
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    retained = tl.load(read_retained_ptr + tokens + c, mask=m_c, other=0.0)
    built = tl.load(read_built_ptr + tokens + c, mask=m_c, other=0.0)
    taken = tl.load(taken_ptr + tokens + c, mask=m_c, other=0.0)
    if DEPTH == 2:
        key = _tile(p_key, c, d, key_t, C, D)
        alike_lower = _dot(_tile(p_query, c, d, query_t, C, D), tl.trans(key), PRECISION)
        alike_lower = alike_lower * _tile(read_mixed_ptr + tokens * C, c, c, C, C, C)
    alike = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    out = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            inner = taken[:, None] * _tile(inner_ptr + tokens * I, c, i, I, C, I)
            query = _tile(p_query, c, d, query_t, C, D)
            read = _dot(query, _tile(lower_ptr + i_h * (D * I), d, i, I, D, I), PRECISION)
            read += retained[:, None] * _dot(query, _tile(deltas_ptr + o_now, d, i, I, D, I), PRECISION)
            read += built[:, None] * _dot(query, _tile(momenta_ptr + o_now, d, i, I, D, I), PRECISION)
            read -= _dot(alike_lower, inner, PRECISION)
            _put(read_ptr + tokens * I, read, c, i, I, C, I)
            x, other = _silu(read), _silu(_tile(product_ptr + tokens * I, c, i, I, C, I))
        else:
            x, other = _tile(p_query, c, i, query_t, C, I), _tile(p_key, c, i, key_t, C, I)
        alike += _dot(x, tl.trans(other), PRECISION)
        upper = _transposed(upper_ptr + i_h * (D * I), d, i, D, D, I)
        out += _dot(x, tl.trans(upper), PRECISION)
        delta = _transposed(deltas_ptr + o_now + UPPER, d, i, D, D, I)
        out += retained[:, None] * _dot(x, tl.trans(delta), PRECISION)
        momentum = _transposed(momenta_ptr + o_now + UPPER, d, i, D, D, I)
        out += built[:, None] * _dot(x, tl.trans(momentum), PRECISION)
    alike = alike * _tile(read_mixed_ptr + tokens * C, c, c, C, C, C)
    error = taken[:, None] * _tile(error_ptr + tokens * D, c, d, D, C, D)
    out -= _dot(alike, error, PRECISION)
    if RESIDUAL:
        out += _tile(p_query, c, d, query_t, C, D)
    _put(out_ptr + ((i_b * N * C + first) * H + i_h) * D, out, c, d, H * D, C, D)


@triton.jit
def _read_gradient_kernel(
    query_ptr, key_ptr, grad_ptr, read_retained_ptr, read_built_ptr, read_mixed_ptr,
    lower_ptr, upper_ptr, deltas_ptr, momenta_ptr, taken_ptr, error_ptr, product_ptr, inner_ptr, read_ptr,
    query_grad_ptr, retained_grad_ptr, built_grad_ptr, mixed_grad_ptr,
    error_owed_ptr, x_owed_ptr, inner_owed_ptr, key_owed_ptr, read_grad_ptr, delta_owed_ptr, momentum_owed_ptr,
    N, H,
    query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Write what the reads of one chunk owe to queries and coefficients, and to the steps and inputs of its writes."""
    chunk = tl.program_id(0).to(tl.int64)
    row = chunk // N
    i_b, i_h = row // H, row % H
    first, tokens = (chunk - row * N) * C, chunk * C
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    o_now = (chunk + row) * SIZE  # slots are one more than chunks
    o_owed = chunk * SIZE
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_query = query_ptr + i_b * query_b + i_h * query_h + first * query_t
    p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
    p_mixed = read_mixed_ptr + tokens * C
    p_token = ((i_b * N * C + first) * H + i_h) * D
    retained = tl.load(read_retained_ptr + tokens + c, mask=m_c, other=0.0)
    built = tl.load(read_built_ptr + tokens + c, mask=m_c, other=0.0)
    taken = tl.load(taken_ptr + tokens + c, mask=m_c, other=0.0)

    # The upper layer's likeness of reads to writes, and what that owes to the steps.
    alike = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            x = _silu(_tile(read_ptr + tokens * I, c, i, I, C, I))
            other = _silu(_tile(product_ptr + tokens * I, c, i, I, C, I))
        else:
            x, other = _tile(p_query, c, i, query_t, C, I), _tile(p_key, c, i, key_t, C, I)
        alike += _dot(x, tl.trans(other), PRECISION)
    grad = _tile(grad_ptr + p_token, c, d, H * D, C, D)
    mixed = _tile(p_mixed, c, c, C, C, C)
    grad_error = -_dot(tl.trans(mixed * alike), grad, PRECISION)
    _put(error_owed_ptr + tokens * D, grad_error, c, d, D, C, D)
    error = taken[:, None] * _tile(error_ptr + tokens * D, c, d, D, C, D)
    grad_alike = -_dot(grad, tl.trans(error), PRECISION)
    _put(mixed_grad_ptr + tokens * C, grad_alike * alike, c, c, C, C, C)
    grad_alike = grad_alike * mixed

    grad_retained, grad_built = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    if DEPTH == 2:
        query, key = _tile(p_query, c, d, query_t, C, D), _tile(p_key, c, d, key_t, C, D)
        alike_lower = tl.trans(_dot(query, tl.trans(key), PRECISION) * mixed)
        grad_alike_lower = tl.zeros([BLOCK_C, BLOCK_C], tl.float32)
        grad_query = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    for block in range(0, I, BLOCK_I):
        i = block + tile
        if DEPTH == 2:
            read = _tile(read_ptr + tokens * I, c, i, I, C, I)
            x, other = _silu(read), _silu(_tile(product_ptr + tokens * I, c, i, I, C, I))
        else:
            x, other = _tile(p_query, c, i, query_t, C, I), _tile(p_key, c, i, key_t, C, I)
        _put(x_owed_ptr + tokens * I, _dot(tl.trans(grad_alike), x, PRECISION), c, i, I, C, I)
        grad_x = _dot(grad_alike, other, PRECISION)
        grad = _tile(grad_ptr + p_token, c, d, H * D, C, D)
        grad_x += _dot(grad, _transposed(upper_ptr + i_h * (D * I), d, i, D, D, I), PRECISION)
        by_delta = _dot(grad, _transposed(deltas_ptr + o_now + UPPER, d, i, D, D, I), PRECISION)
        grad_retained += tl.sum(x * by_delta, axis=1)
        by_momentum = _dot(grad, _transposed(momenta_ptr + o_now + UPPER, d, i, D, D, I), PRECISION)
        grad_built += tl.sum(x * by_momentum, axis=1)
        grad_x += retained[:, None] * by_delta + built[:, None] * by_momentum
        grad = tl.trans(grad)
        to_delta = _dot(grad, retained[:, None] * x, PRECISION)
        _put_transposed(delta_owed_ptr + o_owed + UPPER, to_delta, d, i, D, D, I)
        to_momentum = _dot(grad, built[:, None] * x, PRECISION)
        _put_transposed(momentum_owed_ptr + o_owed + UPPER, to_momentum, d, i, D, D, I)
        if DEPTH == 2:
            grad_read = grad_x * _silu_slope(read)
            _put(read_grad_ptr + tokens * I, grad_read, c, i, I, C, I)
            _put(inner_owed_ptr + tokens * I, -_dot(alike_lower, grad_read, PRECISION), c, i, I, C, I)
            inner = taken[:, None] * _tile(inner_ptr + tokens * I, c, i, I, C, I)
            grad_alike_lower -= _dot(grad_read, tl.trans(inner), PRECISION)
            query = _tile(p_query, c, d, query_t, C, D)
            lower = _tile(lower_ptr + i_h * (D * I), d, i, I, D, I)
            grad_query += _dot(grad_read, tl.trans(lower), PRECISION)
            by_delta = _dot(grad_read, tl.trans(_tile(deltas_ptr + o_now, d, i, I, D, I)), PRECISION)
            grad_retained += tl.sum(query * by_delta, axis=1)
            grad_query += retained[:, None] * by_delta
            by_momentum = _dot(grad_read, tl.trans(_tile(momenta_ptr + o_now, d, i, I, D, I)), PRECISION)
            grad_built += tl.sum(query * by_momentum, axis=1)
            grad_query += built[:, None] * by_momentum
            query = tl.trans(query)
            to_delta = _dot(query, retained[:, None] * grad_read, PRECISION)
            _put(delta_owed_ptr + o_owed, to_delta, d, i, I, D, I)
            to_momentum = _dot(query, built[:, None] * grad_read, PRECISION)
            _put(momentum_owed_ptr + o_owed, to_momentum, d, i, I, D, I)
        else:
            if RESIDUAL:
                grad_x += _tile(grad_ptr + p_token, c, i, H * D, C, I)
            _put(query_grad_ptr + p_token, grad_x, c, i, H * D, C, I)
    if DEPTH == 2:
        query, key = _tile(p_query, c, d, query_t, C, D), _tile(p_key, c, d, key_t, C, D)
        alike_lower = _dot(query, tl.trans(key), PRECISION)
        p_grad_mixed = mixed_grad_ptr + tokens * C
        tl.debug_barrier()
        grad_mixed = _tile(p_grad_mixed, c, c, C, C, C) + grad_alike_lower * alike_lower
        _put(p_grad_mixed, grad_mixed, c, c, C, C, C)
        grad_alike_lower = grad_alike_lower * _tile(p_mixed, c, c, C, C, C)
        _put(key_owed_ptr + tokens * D, _dot(tl.trans(grad_alike_lower), query, PRECISION), c, d, D, C, D)
        grad_query += _dot(grad_alike_lower, key, PRECISION)
        if RESIDUAL:
            grad_query += _tile(grad_ptr + p_token, c, d, H * D, C, D)
        _put(query_grad_ptr + p_token, grad_query, c, d, H * D, C, D)
    tl.store(retained_grad_ptr + tokens + c, grad_retained, mask=m_c)
    tl.store(built_grad_ptr + tokens + c, grad_built, mask=m_c)


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
    key_ptr, step_ptr, end_mixed_ptr, end_trace_ptr, end_retained_ptr, end_built_ptr, end_kept_ptr,
    lower_ptr, upper_ptr, anchor_ptr, flags_ptr, source_ptr, squared_ptr,
    deltas_ptr, momenta_ptr, taken_ptr, error_ptr, product_ptr, inner_ptr,
    error_owed_ptr, x_owed_ptr, inner_owed_ptr, key_owed_ptr, delta_owed_ptr, momentum_owed_ptr,
    delta_grad_ptr, momentum_grad_ptr, anchor_grad_ptr,
    key_grad_ptr, error_grad_ptr, step_grad_ptr, slope_grad_ptr, product_grad_ptr,
    end_mixed_grad_ptr, end_trace_grad_ptr, end_retained_grad_ptr, end_built_grad_ptr, end_kept_grad_ptr,
    N, H,
    key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Walk the chunks backward; the gradients of the state come in the tensors in which they are returned.

    `x_owed_ptr` and `inner_owed_ptr` hold gradients that are added to on the way.
    """
    row = tl.program_id(0).to(tl.int64)
    i_b, i_h = row // H, row % H
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    c, d, tile = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_upper = upper_ptr + i_h * (D * I)
    p_to_delta, p_to_momentum = delta_grad_ptr + row * SIZE, momentum_grad_ptr + row * SIZE
    p_anchor_grad = anchor_grad_ptr + row * SIZE
    for back in range(N):
        chunk = row * N + (N - 1 - back)
        n = chunk - row * N
        first, tokens = n * C, chunk * C
        o_now, o_owed = (chunk + row) * SIZE, chunk * SIZE
        p_key = key_ptr + i_b * key_b + i_h * key_h + first * key_t
        p_token = ((i_b * N * C + first) * H + i_h) * D
        flags, source = tl.load(flags_ptr + i_b * N + n), tl.load(source_ptr + i_b * N + n).to(tl.int64)
        p_anchor = anchor_ptr + row * SIZE
        if source >= 0:
            p_anchor = deltas_ptr + (row * (N + 1) + source) * SIZE
        taken = tl.load(taken_ptr + tokens + c, mask=m_c, other=0.0)
        end_mixed = tl.load(end_mixed_ptr + tokens + c, mask=m_c, other=0.0)
        end_trace = tl.load(end_trace_ptr + tokens + c, mask=m_c, other=0.0)
        end_retained, end_built = tl.load(end_retained_ptr + chunk), tl.load(end_built_ptr + chunk)
        end_kept = tl.load(end_kept_ptr + chunk)

        # What the chunk left, and what its reads owe to delta and momentum.
        grad_mixed, grad_trace = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
        grad_retained, grad_built, grad_kept = 0.0, 0.0, 0.0
        grad_step = tl.zeros([BLOCK_C], tl.float32)
        x_squares, inner_squares = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
        grad_error = _tile(error_owed_ptr + tokens * D, c, d, D, C, D)
        if DEPTH == 2:
            grad_key = _tile(key_owed_ptr + tokens * D, c, d, D, C, D)
        for block in range(0, I, BLOCK_I):
            i = block + tile
            if DEPTH == 2:
                x = _silu(_tile(product_ptr + tokens * I, c, i, I, C, I))
            else:
                x = _tile(p_key, c, i, key_t, C, I)
            x_squares += _squares(x)
            to_delta = _transposed(p_to_delta + UPPER, d, i, D, D, I)
            to_momentum = _transposed(p_to_momentum + UPPER, d, i, D, D, I)
            error = taken[:, None] * _tile(error_ptr + tokens * D, c, d, D, C, D)
            by_delta = _dot(error, to_delta, PRECISION)
            by_momentum = _dot(error, to_momentum, PRECISION)
            grad_mixed -= tl.sum(x * by_delta, axis=1)
            grad_trace -= tl.sum(x * by_momentum, axis=1)
            grad_x = _tile(x_owed_ptr + tokens * I, c, i, I, C, I)
            grad_x -= end_mixed[:, None] * by_delta + end_trace[:, None] * by_momentum
            _put(x_owed_ptr + tokens * I, grad_x, c, i, I, C, I)
            grad_error -= _dot(end_mixed[:, None] * x, tl.trans(to_delta), PRECISION)
            grad_error -= _dot(end_trace[:, None] * x, tl.trans(to_momentum), PRECISION)
            grad_retained += tl.sum(_transposed(deltas_ptr + o_now + UPPER, d, i, D, D, I) * to_delta)
            momentum = _transposed(momenta_ptr + o_now + UPPER, d, i, D, D, I)
            grad_built += tl.sum(momentum * to_delta)
            grad_kept += tl.sum(momentum * to_momentum)
            to_momentum = end_built * to_delta + end_kept * to_momentum
            to_delta = end_retained * to_delta
            to_delta += _transposed(delta_owed_ptr + o_owed + UPPER, d, i, D, D, I)
            _put_transposed(p_to_delta + UPPER, to_delta, d, i, D, D, I)
            to_momentum += _transposed(momentum_owed_ptr + o_owed + UPPER, d, i, D, D, I)
            _put_transposed(p_to_momentum + UPPER, to_momentum, d, i, D, D, I)
            if DEPTH == 2:
                key = _tile(p_key, c, d, key_t, C, D)
                inner = _tile(inner_ptr + tokens * I, c, i, I, C, I)
                inner_squares += _squares(inner)
                to_delta = _tile(p_to_delta, d, i, I, D, I)
                to_momentum = _tile(p_to_momentum, d, i, I, D, I)
                by_delta = _dot(taken[:, None] * inner, tl.trans(to_delta), PRECISION)
                grad_mixed -= tl.sum(key * by_delta, axis=1)
                grad_key -= end_mixed[:, None] * by_delta
                by_momentum = _dot(taken[:, None] * inner, tl.trans(to_momentum), PRECISION)
                grad_trace -= tl.sum(key * by_momentum, axis=1)
                grad_key -= end_trace[:, None] * by_momentum
                grad_inner = _tile(inner_owed_ptr + tokens * I, c, i, I, C, I)
                grad_inner -= end_mixed[:, None] * _dot(key, to_delta, PRECISION)
                grad_inner -= end_trace[:, None] * _dot(key, to_momentum, PRECISION)
                _put(inner_owed_ptr + tokens * I, grad_inner, c, i, I, C, I)
                grad_step += tl.sum(grad_inner * inner, axis=1)
                grad_retained += tl.sum(_tile(deltas_ptr + o_now, d, i, I, D, I) * to_delta)
                momentum = _tile(momenta_ptr + o_now, d, i, I, D, I)
                grad_built += tl.sum(momentum * to_delta)
                grad_kept += tl.sum(momentum * to_momentum)
                to_momentum = end_built * to_delta + end_kept * to_momentum
                to_delta = end_retained * to_delta + _tile(delta_owed_ptr + o_owed, d, i, I, D, I)
                _put(p_to_delta, to_delta, d, i, I, D, I)
                to_momentum += _tile(momentum_owed_ptr + o_owed, d, i, I, D, I)
                _put(p_to_momentum, to_momentum, d, i, I, D, I)
        tl.store(end_mixed_grad_ptr + tokens + c, grad_mixed, mask=m_c)
        tl.store(end_trace_grad_ptr + tokens + c, grad_trace, mask=m_c)
        tl.store(end_retained_grad_ptr + chunk, grad_retained)
        tl.store(end_built_grad_ptr + chunk, grad_built)
        tl.store(end_kept_grad_ptr + chunk, grad_kept)
        tl.debug_barrier()

        # The steps and their clip.
        error = _tile(error_ptr + tokens * D, c, d, D, C, D)
        grad_step += tl.sum(grad_error * error, axis=1)
        grad_error = taken[:, None] * grad_error
        per_square = tl.zeros([BLOCK_C], tl.float32)
        error_squares = _squares(error)
        if DEPTH == 2:
            step = tl.load(step_ptr + tokens + c, mask=m_c, other=0.0)
            squared = tl.load(squared_ptr + tokens + c, mask=m_c, other=1.0)
            clipped = taken != step
            owed = tl.where(clipped, 2 * grad_step / tl.where(clipped, squared, 1.0), 0.0)
            per_square = -owed * taken
            key = _tile(p_key, c, d, key_t, C, D)
            key_squares = _squares(key)
            grad_key += (per_square * inner_squares)[:, None] * key
            grad_error += (per_square * x_squares + owed / C)[:, None] * error
            grad_step = tl.where(clipped, 0.0, grad_step)
        tl.store(step_grad_ptr + tokens + c, grad_step, mask=m_c)

        # The write at the anchor: its backward pass, then its forward pass.
        if DEPTH == 2:
            for block in range(0, I, BLOCK_I):
                i = block + tile
                grad_inner = taken[:, None] * _tile(inner_owed_ptr + tokens * I, c, i, I, C, I)
                inner = _tile(inner_ptr + tokens * I, c, i, I, C, I)
                grad_inner += (per_square * key_squares)[:, None] * inner
                _put(inner_owed_ptr + tokens * I, grad_inner, c, i, I, C, I)
                grad_slope = grad_inner * _silu_slope(_tile(product_ptr + tokens * I, c, i, I, C, I))
                _put(slope_grad_ptr + tokens * I, grad_slope, c, i, I, C, I)
                upper = _transposed(p_upper, d, i, D, D, I) + _transposed(p_anchor + UPPER, d, i, D, D, I)
                grad_error += _dot(grad_slope, tl.trans(upper), PRECISION)
        _put(error_grad_ptr + p_token, grad_error, c, d, H * D, C, D)
        tl.debug_barrier()
        for block in range(0, I, BLOCK_I):
            i = block + tile
            inside = (d < D)[:, None] & (i < I)[None, :]
            upper = _transposed(p_upper, d, i, D, D, I) + _transposed(p_anchor + UPPER, d, i, D, D, I)
            grad_x = _tile(x_owed_ptr + tokens * I, c, i, I, C, I) + _dot(grad_error, upper, PRECISION)
            if DEPTH == 2:
                product = _tile(product_ptr + tokens * I, c, i, I, C, I)
                x = _silu(product)
                grad_x += (per_square * error_squares)[:, None] * x
                error = _tile(error_ptr + tokens * D, c, d, D, C, D)
                grad_product = _tile(inner_owed_ptr + tokens * I, c, i, I, C, I) * _silu_bend(product)
                grad_product = grad_product * _dot(error, upper, PRECISION) + grad_x * _silu_slope(product)
                _put(product_grad_ptr + tokens * I, grad_product, c, i, I, C, I)
                lower = _tile(lower_ptr + i_h * (D * I), d, i, I, D, I) + _tile(p_anchor, d, i, I, D, I)
                grad_key += _dot(grad_product, tl.trans(lower), PRECISION)
                grad_lower = _dot(tl.trans(_tile(p_key, c, d, key_t, C, D)), grad_product, PRECISION)
                place = d[:, None] * I + i[None, :]
                _take_anchor(grad_lower, p_to_delta, p_to_momentum, p_anchor_grad, flags, place, inside)
                grad_slope = _tile(slope_grad_ptr + tokens * I, c, i, I, C, I)
                grad_upper = _dot(tl.trans(error), grad_slope, PRECISION)
                grad_upper += _dot(tl.trans(grad_error), x, PRECISION)
            else:
                if RESIDUAL:
                    grad_x += _tile(error_grad_ptr + p_token, c, i, H * D, C, I)
                grad_upper = _dot(tl.trans(grad_error), _tile(p_key, c, i, key_t, C, I), PRECISION)
                _put(key_grad_ptr + p_token, grad_x, c, i, H * D, C, I)
            place = UPPER + d[:, None] + i[None, :] * D
            _take_anchor(grad_upper, p_to_delta, p_to_momentum, p_anchor_grad, flags, place, inside)
        if DEPTH == 2:
            if RESIDUAL:
                grad_key += grad_error
            _put(key_grad_ptr + p_token, grad_key, c, d, H * D, C, D)
        tl.debug_barrier()


class Kept(NamedTuple):
    """What a forward pass leaves for its gradient; the last three of two layers only.

    Deltas and momenta `[R, N + 1, P]` are those at the beginnings of chunks, then those after the last.
    """

    deltas: Tensor
    momenta: Tensor
    taken: Tensor
    error: Tensor
    product: Tensor | None
    inner: Tensor | None
    read: Tensor | None


class Inputs(NamedTuple):
    """What the kernels read: tokens `[B, T, H, D]` in their own dtype, all else float32 and contiguous."""

    query: Tensor
    key: Tensor
    value: Tensor
    step_size: Tensor
    coefficients: Coefficients
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


def run_walk(problem: Problem) -> tuple[Tensor, Tensor, NeuralState]:
    """Run all chunks: `run_chunks` of `neural_memory_torch`, in kernels."""
    batch, time, heads, _ = problem.query.shape
    count, rows = time // problem.chunk_size, batch * heads

    def by_chunk(x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(rows, count, problem.chunk_size)

    gates = [by_chunk(gate) for gate in problem.gates]
    valid = problem.valid
    if valid is not None:
        learned = by_chunk(valid[..., None].expand(batch, time, heads))
        gates = [gate.masked_fill(~learned, 0) for gate in gates]
    step_size, log_momentum, log_retention = gates
    coefficients = coefficients_of(
        log_retention, log_momentum, None if valid is None else learned, problem.read_before_write
    )
    options = _Options(problem.shape, problem.chunk_size, _borders(problem, count))
    y, squared, *after = _Walk.apply(
        options, problem.query, problem.key, problem.value, step_size, *coefficients, *problem.weights, *problem.state
    )
    return y, squared.sqrt().view(batch, heads, time).transpose(1, 2), NeuralState(*after)


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
    shape: NetworkShape
    chunk_size: int
    borders: Borders


class _Walk(torch.autograd.Function):
    """Both kernels as one operation, differentiable once."""

    @staticmethod
    def forward(ctx, options: _Options, *flat: Tensor):
        ctx.options = options
        inputs = _inputs(options, flat)
        y, squared, after, kept = forward(inputs, options.shape)
        ctx.mark_non_differentiable(squared)
        ctx.save_for_backward(*flat, squared, *kept)
        return y, squared, *after

    @staticmethod
    def backward(ctx, grad_y, _, *grad_after):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "neural_memory with implementation='triton' is differentiable once; "
                "use 'torch' for second derivatives"
            )
        count = len(ctx.saved_tensors) - len(Kept._fields) - 1
        flat, squared, kept = (
            ctx.saved_tensors[:count], ctx.saved_tensors[count], Kept(*ctx.saved_tensors[count + 1 :])
        )
        inputs = _inputs(ctx.options, flat)
        grads = backward(inputs, ctx.options.shape, squared, kept, grad_y, NeuralState(*grad_after))
        return None, *grads


def _inputs(options: _Options, flat: Sequence[Tensor]) -> Inputs:
    depth = len(options.shape.layers)
    tokens = [with_dense_rows(x) for x in flat[:3]]
    step_size, *rest = (x.contiguous() for x in flat[3:])
    weights, state = tuple(rest[8 : 8 + depth]), NeuralState(*rest[8 + depth :])
    return Inputs(*tokens, step_size, Coefficients(*rest[:8]), weights, state, options.borders)


def forward(inputs: Inputs, shape: NetworkShape) -> tuple[Tensor, Tensor, NeuralState, Kept]:
    """Return the outputs, the squared lengths of the gradients, the state after, and what is kept for a gradient."""
    query, state, flags = inputs.query, inputs.state, inputs.borders.flags
    y, squared = query.new_empty(query.shape), torch.empty_like(inputs.step_size)
    kept, anchor = _kept(inputs, shape), state.anchor.clone()
    starts_fresh, ends_incomplete = (((flags[:, n] & bit) != 0)[:, None, None] for n, bit in ((0, 1), (-1, 4)))
    for slots, part in ((kept.deltas, state.delta), (kept.momenta, state.momentum)):
        slots[:, 0] = part.masked_fill(starts_fresh, 0).flatten(0, 1)
    write_launch(inputs, shape, squared, anchor, kept).run()
    read_launch(inputs, shape, y, kept).run()
    delta, momentum = (slots[:, -1].clone().view_as(anchor) for slots in (kept.deltas, kept.momenta))
    after = NeuralState(delta, momentum, torch.where(ends_incomplete, anchor, delta))
    return y, squared, after, kept


def _kept(inputs: Inputs, shape: NetworkShape) -> Kept:
    rows, count, length = inputs.step_size.shape
    inner, width = shape.layers[-1]
    new = inputs.step_size.new_empty
    states = (new(rows, count + 1, shape.size) for _ in range(2))
    hidden = (new(rows, count, length, inner) if len(shape.layers) == 2 else None for _ in range(3))
    return Kept(*states, new(rows, count, length), new(rows, count, length, width), *hidden)


def backward(
    inputs: Inputs, shape: NetworkShape, squared: Tensor, kept: Kept, grad_y: Tensor, grad_after: NeuralState
) -> list[Tensor]:
    """Return the gradients of tokens, step sizes, coefficients, weights and state, in this order."""
    at, incomplete = inputs.coefficients, (inputs.borders.flags[:, -1] & 4 != 0)[:, None, None]
    owed = _owed(kept, shape)
    # The anchor after the last chunk is its delta, unless the chunk is incomplete.
    grad_delta = grad_after.delta + grad_after.anchor.masked_fill(incomplete, 0)
    grad_state = NeuralState(
        grad_delta.contiguous(),
        grad_after.momentum.clone(memory_format=torch.contiguous_format),
        grad_after.anchor.masked_fill(~incomplete, 0).contiguous(),
    )
    grad_y = grad_y.contiguous()
    grads = Gradients(
        query=inputs.query.new_empty(inputs.query.shape),
        key=inputs.key.new_empty(inputs.key.shape),
        error=squared.new_empty(inputs.value.shape),
        step_size=torch.empty_like(squared),
        coefficients=Coefficients(*(torch.empty_like(x) for x in at)),
        slope=None if kept.inner is None else torch.empty_like(kept.inner),
        product=None if kept.inner is None else torch.empty_like(kept.inner),
        state=grad_state,
    )
    read_gradient_launch(inputs, shape, kept, grad_y, owed, grads).run()
    write_gradient_launch(inputs, shape, squared, kept, owed, grads).run()
    weights = _weight_gradients(inputs, kept, grad_y, owed, grads)
    value = grads.error.neg().to(inputs.value.dtype)
    return [grads.query, grads.key, value, grads.step_size, *grads.coefficients, *weights, *grad_state]


def _owed(kept: Kept, shape: NetworkShape) -> Owed:
    rows, count, length, _ = kept.error.shape
    states = (kept.deltas.new_empty(rows, count, shape.size) for _ in range(2))
    hidden = (None, None, None)
    if kept.inner is not None:
        hidden = (torch.empty_like(kept.inner), torch.empty_like(kept.error), torch.empty_like(kept.read))
    x = kept.error.new_empty(rows, count, length, shape.layers[-1][0])
    return Owed(torch.empty_like(kept.error), x, *states, *hidden)


class Owed(NamedTuple):
    """What reads owe to the writes of their chunk and to the state before it; the last three of two layers only."""

    error_owed: Tensor
    x_owed: Tensor
    delta_owed: Tensor
    momentum_owed: Tensor
    inner_owed: Tensor | None
    key_owed: Tensor | None
    read_grad: Tensor | None


class Gradients(NamedTuple):
    """The gradients that the kernels fill; that of the value is minus that of the error."""

    query: Tensor
    key: Tensor
    error: Tensor
    step_size: Tensor
    coefficients: Coefficients
    slope: Tensor | None
    """At the slope of SiLU in the inner backward pass, times that slope: at the error times the upper weights."""
    product: Tensor | None
    state: NeuralState


def _weight_gradients(
    inputs: Inputs, kept: Kept, grad_y: Tensor, owed: Owed, grads: Gradients
) -> list[Tensor]:
    """Return the gradients of the weights: of every product with them, inputs^T gradient, over all tokens."""
    batch, _, heads, _ = inputs.query.shape

    def product(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bthi,btho->hio", a.float(), b.float())

    def tokens(x: Tensor) -> Tensor:
        return x.view(batch, heads, -1, x.shape[-1]).transpose(1, 2)

    query, key = inputs.query, inputs.key
    if kept.product is None:
        return [product(query, grad_y) + product(key, grads.error)]
    lower = product(query, tokens(owed.read_grad)) + product(key, tokens(grads.product))
    upper = product(tokens(functional.silu(kept.read)), grad_y)
    upper += product(tokens(functional.silu(kept.product)), grads.error)
    return [lower, upper.add_(product(tokens(grads.slope), tokens(kept.error)))]


def _block(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


def _constants(inputs: Inputs, shape: NetworkShape) -> dict[str, object]:
    inner, width = shape.layers[-1]
    length = inputs.step_size.shape[-1]
    exact = all(x.dtype == torch.float32 for x in (inputs.query, inputs.key, inputs.value))
    return {
        "C": length,
        "D": width,
        "I": inner,
        "DEPTH": len(shape.layers),
        "RESIDUAL": shape.residual,
        "PRECISION": "tf32x3" if exact else "tf32",
        "BLOCK_C": _block(length),
        "BLOCK_D": _block(width),
        "BLOCK_I": 16,
    }


def _input_arguments(inputs: Inputs) -> dict[str, object]:
    named: dict[str, object] = {}
    for name in ("query", "key", "value"):
        tensor = getattr(inputs, name)
        named[f"{name}_ptr"] = tensor
        named |= {f"{name}_{dim}": tensor.stride(place) for place, dim in enumerate("bth")}
    lower, upper = inputs.weights if len(inputs.weights) == 2 else (None, *inputs.weights)
    return {
        **named,
        **{f"{name}_ptr": tensor for name, tensor in inputs.coefficients._asdict().items()},
        "step_ptr": inputs.step_size,
        "lower_ptr": lower,
        "upper_ptr": upper,
        "flags_ptr": inputs.borders.flags,
        "source_ptr": inputs.borders.source,
        "N": inputs.step_size.shape[1],
        "H": inputs.query.shape[2],
    }


def _kept_arguments(kept: Kept) -> dict[str, object]:
    return {f"{name}_ptr": tensor for name, tensor in kept._asdict().items()}


def write_launch(
    inputs: Inputs, shape: NetworkShape, squared: Tensor, anchor: Tensor, kept: Kept
) -> Launch:
    """Return the launch that fills `squared` and `kept` but its reads, and moves the `anchor` of incomplete chunks."""
    return _launch(
        _write_kernel,
        inputs.step_size.shape[0],
        inputs,
        shape,
        {**_kept_arguments(kept), "squared_ptr": squared, "anchor_ptr": anchor},
    )


def read_launch(inputs: Inputs, shape: NetworkShape, y: Tensor, kept: Kept) -> Launch:
    """Return the launch that fills `y` and the reads of `kept`."""
    rows, count, _ = inputs.step_size.shape
    return _launch(_read_kernel, rows * count, inputs, shape, {**_kept_arguments(kept), "out_ptr": y})


def _launch(kernel, programs: int, inputs: Inputs, shape: NetworkShape, arguments: dict[str, object]) -> Launch:
    """Return the launch of a kernel, which takes of all inputs those that it names."""
    constants = _constants(inputs, shape)
    known = {**_input_arguments(inputs), **arguments}
    taken = {name: known[name] for name in kernel.arg_names if name not in constants}
    warps = max(1, constants["BLOCK_C"] // 16)  # each has 16 of the tokens, the rows of most products
    return Launch(kernel, (programs,), taken, constants, num_warps=warps, num_stages=1)


def _owed_arguments(owed: Owed) -> dict[str, object]:
    return {f"{name}_ptr": tensor for name, tensor in owed._asdict().items()}


def read_gradient_launch(
    inputs: Inputs, shape: NetworkShape, kept: Kept, grad_y: Tensor, owed: Owed, grads: Gradients
) -> Launch:
    """Return the launch that fills `owed`, and the gradients of query and of the coefficients of reads."""
    rows, count, _ = inputs.step_size.shape
    at = grads.coefficients
    return _launch(
        _read_gradient_kernel,
        rows * count,
        inputs,
        shape,
        {
            **_kept_arguments(kept),
            **_owed_arguments(owed),
            "grad_ptr": grad_y,
            "query_grad_ptr": grads.query,
            "retained_grad_ptr": at.read_retained,
            "built_grad_ptr": at.read_built,
            "mixed_grad_ptr": at.read_mixed,
        },
    )


def write_gradient_launch(
    inputs: Inputs, shape: NetworkShape, squared: Tensor, kept: Kept, owed: Owed, grads: Gradients
) -> Launch:
    """Return the launch that fills all gradients but those of reads; the state's hold those of the state after."""
    at = grads.coefficients
    return _launch(
        _write_gradient_kernel,
        inputs.step_size.shape[0],
        inputs,
        shape,
        {
            **_kept_arguments(kept),
            **_owed_arguments(owed),
            "squared_ptr": squared,
            "anchor_ptr": inputs.state.anchor,
            "key_grad_ptr": grads.key,
            "error_grad_ptr": grads.error,
            "step_grad_ptr": grads.step_size,
            "slope_grad_ptr": grads.slope,
            "product_grad_ptr": grads.product,
            **{f"{name}_grad_ptr": getattr(at, name) for name in Coefficients._fields},
            **{f"{name}_grad_ptr": tensor for name, tensor in grads.state._asdict().items()},
        },
    )


def configurations() -> dict[str, Launch]:
    """Return the launches of the main configurations on meta tensors, to compile without a GPU."""
    launches = {}
    for dtype, width, hidden, length in (
        (torch.bfloat16, 64, None, 64),
        (torch.float32, 64, None, 64),
        (torch.float16, 32, 64, 32),
        (torch.bfloat16, 64, 64, 64),
        (torch.float32, 32, 64, 16),
        (torch.bfloat16, 64, 128, 32),
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
    shape = NetworkShape(layers, residual=False, norm=False)
    tokens = [meta(batch, count * length, heads, width, dtype=dtype) for _ in range(3)]
    each, end, state = meta(rows, count, length), meta(rows, count), meta(batch, heads, shape.size)
    at = Coefficients(each, each, meta(rows, count, length, length), each, each, end, end, end)
    flags = meta(batch, count, dtype=torch.int32)
    weights = tuple(meta(heads, a, b) for a, b in layers)
    states = NeuralState(state, state, state)
    inputs = Inputs(*tokens, each, at, weights, states, Borders(flags, flags))
    kept = _kept(inputs, shape)
    owed = _owed(kept, shape)
    grads = Gradients(
        tokens[0], tokens[1], meta(*tokens[0].shape), each, at, kept.inner, kept.inner, states
    )
    return {
        "write": write_launch(inputs, shape, each, state, kept),
        "read": read_launch(inputs, shape, tokens[0], kept),
        "read gradient": read_gradient_launch(inputs, shape, kept, tokens[0], owed, grads),
        "write gradient": write_gradient_launch(inputs, shape, each, kept, owed, grads),
    }
