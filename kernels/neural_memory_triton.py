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
def _tile(pointer, rows, columns, row_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load a tile in float32, zeros outside of `[ROWS, COLUMNS]`."""
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    place = pointer + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    return tl.load(place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _put(pointer, tile, rows, columns, row_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    mask = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    place = pointer + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    tl.store(place, tile.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _read(x, alike, step, weight, delta, momentum, retained, built, PRECISION: tl.constexpr):
    """Return the product of each token's `x` with its own weights; `alike` is x inputs^T, mixed."""
    product = _dot(x, weight, PRECISION)
    product += retained[:, None] * _dot(x, delta, PRECISION)
    product += built[:, None] * _dot(x, momentum, PRECISION)
    return product - _dot(alike, step, PRECISION)


@triton.jit
def _advance(
    delta, momentum, x, step, end_retained, end_built, end_kept, end_mixed, end_trace, PRECISION: tl.constexpr
):  # fmt: skip
    """Return delta and momentum after the chunk."""
    x = tl.trans(x)
    delta = end_retained * delta + end_built * momentum - _dot(x, end_mixed[:, None] * step, PRECISION)
    momentum = end_kept * momentum - _dot(x, end_trace[:, None] * step, PRECISION)
    return _flushed(delta), _flushed(momentum)


@triton.jit
def _forward_kernel(
    query_ptr, key_ptr, value_ptr, step_ptr,
    read_retained_ptr, read_built_ptr, read_mixed_ptr, end_mixed_ptr, end_trace_ptr,
    end_retained_ptr, end_built_ptr, end_kept_ptr,
    lower_ptr, upper_ptr, delta_ptr, momentum_ptr, flags_ptr,
    out_ptr, squared_ptr, delta_after_ptr, momentum_after_ptr, anchor_ptr,
    deltas_ptr, momenta_ptr, taken_ptr, error_ptr, product_ptr, inner_ptr, read_ptr,
    N, H,
    query_b, query_t, query_h, key_b, key_t, key_h, value_b, value_t, value_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Walk the chunks; `anchor_ptr` holds the anchor before them and, at the end, the one after them."""
    row = tl.program_id(0).to(tl.int64)
    i_b, i_h = row // H, row % H
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    c, d, i = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_anchor = anchor_ptr + row * SIZE
    p_upper = upper_ptr + i_h * (D * I)
    delta = _tile(delta_ptr + row * SIZE + UPPER, i, d, D, I, D)
    momentum = _tile(momentum_ptr + row * SIZE + UPPER, i, d, D, I, D)
    if DEPTH == 2:
        p_lower = lower_ptr + i_h * (D * I)
        delta_lower = _tile(delta_ptr + row * SIZE, d, i, I, D, I)
        momentum_lower = _tile(momentum_ptr + row * SIZE, d, i, I, D, I)
    for n in range(N):
        chunk = row * N + n
        first, tokens = (chunk - row * N) * C, chunk * C
        flags = tl.load(flags_ptr + i_b * N + n)
        if (flags & 1) != 0:
            delta, momentum = tl.zeros_like(delta), tl.zeros_like(momentum)
            if DEPTH == 2:
                delta_lower, momentum_lower = tl.zeros_like(delta_lower), tl.zeros_like(momentum_lower)
        if KEEP:
            _put(deltas_ptr + chunk * SIZE + UPPER, delta, i, d, D, I, D)
            _put(momenta_ptr + chunk * SIZE + UPPER, momentum, i, d, D, I, D)
            if DEPTH == 2:
                _put(deltas_ptr + chunk * SIZE, delta_lower, d, i, I, D, I)
                _put(momenta_ptr + chunk * SIZE, momentum_lower, d, i, I, D, I)
        keeps_anchor = (flags & 12) == 4  # incomplete, and not held already
        if keeps_anchor:
            _put(p_anchor + UPPER, delta, i, d, D, I, D)
            if DEPTH == 2:
                _put(p_anchor, delta_lower, d, i, I, D, I)

        # What the chunk's keys write, at the anchor.
        key = _tile(key_ptr + i_b * key_b + i_h * key_h + first * key_t, c, d, key_t, C, D)
        error = -_tile(value_ptr + i_b * value_b + i_h * value_h + first * value_t, c, d, value_t, C, D)
        if RESIDUAL:
            error += key
        upper = _tile(p_upper, i, d, D, I, D)
        x = key
        if DEPTH == 2:
            lower = _tile(p_lower, d, i, I, D, I)
            if (flags & 8) != 0:
                lower += _tile(p_anchor, d, i, I, D, I)
            else:
                lower += delta_lower
            product = _dot(key, lower, PRECISION)
            x = _silu(product)
        if (flags & 8) != 0:
            upper += _tile(p_anchor + UPPER, i, d, D, I, D)
        else:
            upper += delta
        error += _dot(x, upper, PRECISION)
        step = tl.load(step_ptr + tokens + c, mask=m_c, other=0.0)
        squared = _squares(x) * _squares(error)
        if DEPTH == 2:
            inner = _dot(error, tl.trans(upper), PRECISION) * _silu_slope(product)
            squared += _squares(key) * _squares(inner)
            most = _squares(error)
            clipped = C * step * squared > most
            step = tl.where(clipped, most / (C * tl.where(squared > 0, squared, 1.0)), step)
        tl.store(squared_ptr + tokens + c, squared, mask=m_c)
        if KEEP:
            tl.store(taken_ptr + tokens + c, step, mask=m_c)
            _put(error_ptr + tokens * D, error, c, d, D, C, D)
            if DEPTH == 2:
                _put(product_ptr + tokens * I, product, c, i, I, C, I)
                _put(inner_ptr + tokens * I, inner, c, i, I, C, I)
        error = step[:, None] * error

        # What its queries read, and where it leaves delta and momentum.
        retained = tl.load(read_retained_ptr + tokens + c, mask=m_c, other=0.0)
        built = tl.load(read_built_ptr + tokens + c, mask=m_c, other=0.0)
        mixed = _tile(read_mixed_ptr + tokens * C, c, c, C, C, C)
        end_mixed = tl.load(end_mixed_ptr + tokens + c, mask=m_c, other=0.0)
        end_trace = tl.load(end_trace_ptr + tokens + c, mask=m_c, other=0.0)
        end_retained, end_built = tl.load(end_retained_ptr + chunk), tl.load(end_built_ptr + chunk)
        end_kept = tl.load(end_kept_ptr + chunk)
        query = _tile(query_ptr + i_b * query_b + i_h * query_h + first * query_t, c, d, query_t, C, D)
        reads = query
        if DEPTH == 2:
            inner = step[:, None] * inner
            alike = mixed * _dot(query, tl.trans(key), PRECISION)
            lower = _tile(p_lower, d, i, I, D, I)
            reads = _read(query, alike, inner, lower, delta_lower, momentum_lower, retained, built, PRECISION)
            if KEEP:
                _put(read_ptr + tokens * I, reads, c, i, I, C, I)
            reads = _silu(reads)
            delta_lower, momentum_lower = _advance(
                delta_lower, momentum_lower, key, inner,
                end_retained, end_built, end_kept, end_mixed, end_trace, PRECISION,
            )  # fmt: skip
        alike = mixed * _dot(reads, tl.trans(x), PRECISION)
        upper = _tile(p_upper, i, d, D, I, D)
        out = _read(reads, alike, error, upper, delta, momentum, retained, built, PRECISION)
        if RESIDUAL:
            out += query
        _put(out_ptr + ((i_b * N * C + first) * H + i_h) * D, out, c, d, H * D, C, D)
        delta, momentum = _advance(
            delta, momentum, x, error,
            end_retained, end_built, end_kept, end_mixed, end_trace, PRECISION,
        )  # fmt: skip
        if keeps_anchor:
            tl.debug_barrier()  # before the next chunk loads what other threads have stored
    _put(delta_after_ptr + row * SIZE + UPPER, delta, i, d, D, I, D)
    _put(momentum_after_ptr + row * SIZE + UPPER, momentum, i, d, D, I, D)
    if DEPTH == 2:
        _put(delta_after_ptr + row * SIZE, delta_lower, d, i, I, D, I)
        _put(momentum_after_ptr + row * SIZE, momentum_lower, d, i, I, D, I)
    if (tl.load(flags_ptr + i_b * N + N - 1) & 4) == 0:
        _put(p_anchor + UPPER, delta, i, d, D, I, D)
        if DEPTH == 2:
            _put(p_anchor, delta_lower, d, i, I, D, I)


@triton.jit
def _read_gradient(
    grad, x, other, step, mixed, retained, built, p_weight, p_delta, p_momentum, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go back through `_read` of one layer.

    Return the gradients of x, of the steps, of the inputs that x is compared with, and of the three coefficients.
    """
    alike = _dot(x, tl.trans(other), PRECISION)
    grad_step = -_dot(tl.trans(mixed * alike), grad, PRECISION)
    grad_alike = -_dot(grad, tl.trans(step), PRECISION)
    grad_mixed = grad_alike * alike
    grad_alike = grad_alike * mixed
    grad_other = _dot(tl.trans(grad_alike), x, PRECISION)
    grad_x = _dot(grad_alike, other, PRECISION)
    grad_x += _dot(grad, tl.trans(_tile(p_weight, rows, columns, COLUMNS, ROWS, COLUMNS)), PRECISION)
    by_delta = _dot(grad, tl.trans(_tile(p_delta, rows, columns, COLUMNS, ROWS, COLUMNS)), PRECISION)
    grad_retained = tl.sum(x * by_delta, axis=1)
    grad_x += retained[:, None] * by_delta
    by_momentum = _dot(grad, tl.trans(_tile(p_momentum, rows, columns, COLUMNS, ROWS, COLUMNS)), PRECISION)
    grad_built = tl.sum(x * by_momentum, axis=1)
    grad_x += built[:, None] * by_momentum
    return grad_x, grad_step, grad_other, grad_retained, grad_built, grad_mixed


@triton.jit
def _read_gradient_kernel(
    query_ptr, key_ptr, grad_ptr, read_retained_ptr, read_built_ptr, read_mixed_ptr,
    lower_ptr, upper_ptr, deltas_ptr, momenta_ptr, taken_ptr, error_ptr, product_ptr, inner_ptr, read_ptr,
    query_grad_ptr, retained_grad_ptr, built_grad_ptr, mixed_grad_ptr,
    error_owed_ptr, x_owed_ptr, inner_owed_ptr, key_owed_ptr, read_grad_ptr,
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
    c, d, i = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    retained = tl.load(read_retained_ptr + tokens + c, mask=m_c, other=0.0)
    built = tl.load(read_built_ptr + tokens + c, mask=m_c, other=0.0)
    mixed = _tile(read_mixed_ptr + tokens * C, c, c, C, C, C)
    taken = tl.load(taken_ptr + tokens + c, mask=m_c, other=0.0)
    p_token = ((i_b * N * C + first) * H + i_h) * D
    grad = _tile(grad_ptr + p_token, c, d, H * D, C, D)
    error = taken[:, None] * _tile(error_ptr + tokens * D, c, d, D, C, D)
    if DEPTH == 2:
        read = _tile(read_ptr + tokens * I, c, i, I, C, I)
        x, other = _silu(read), _silu(_tile(product_ptr + tokens * I, c, i, I, C, I))
    else:
        x = _tile(query_ptr + i_b * query_b + i_h * query_h + first * query_t, c, d, query_t, C, D)
        other = _tile(key_ptr + i_b * key_b + i_h * key_h + first * key_t, c, d, key_t, C, D)
    grad_x, grad_error, grad_other, grad_retained, grad_built, grad_mixed = _read_gradient(
        grad, x, other, error, mixed, retained, built,
        upper_ptr + i_h * (D * I), deltas_ptr + chunk * SIZE + UPPER, momenta_ptr + chunk * SIZE + UPPER,
        i, d, I, D, PRECISION,
    )  # fmt: skip
    _put(error_owed_ptr + tokens * D, grad_error, c, d, D, C, D)
    _put(x_owed_ptr + tokens * I, grad_other, c, i, I, C, I)
    if DEPTH == 2:
        grad_read = grad_x * _silu_slope(read)
        _put(read_grad_ptr + tokens * I, grad_read, c, i, I, C, I)
        inner = taken[:, None] * _tile(inner_ptr + tokens * I, c, i, I, C, I)
        x = _tile(query_ptr + i_b * query_b + i_h * query_h + first * query_t, c, d, query_t, C, D)
        other = _tile(key_ptr + i_b * key_b + i_h * key_h + first * key_t, c, d, key_t, C, D)
        grad_x, grad_inner, grad_other, more_retained, more_built, more_mixed = _read_gradient(
            grad_read, x, other, inner, mixed, retained, built,
            lower_ptr + i_h * (D * I), deltas_ptr + chunk * SIZE, momenta_ptr + chunk * SIZE,
            d, i, D, I, PRECISION,
        )  # fmt: skip
        grad_retained += more_retained
        grad_built += more_built
        grad_mixed += more_mixed
        _put(inner_owed_ptr + tokens * I, grad_inner, c, i, I, C, I)
        _put(key_owed_ptr + tokens * D, grad_other, c, d, D, C, D)
    if RESIDUAL:
        grad_x += _tile(grad_ptr + p_token, c, d, H * D, C, D)
    _put(query_grad_ptr + p_token, grad_x, c, d, H * D, C, D)
    tl.store(retained_grad_ptr + tokens + c, grad_retained, mask=m_c)
    tl.store(built_grad_ptr + tokens + c, grad_built, mask=m_c)
    _put(mixed_grad_ptr + tokens * C, grad_mixed, c, c, C, C, C)


@triton.jit
def _advance_gradient(
    to_delta, to_momentum, x, step, p_delta, p_momentum, rows, columns,
    end_retained, end_built, end_kept, end_mixed, end_trace,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go back through `_advance` of one layer.

    Return the gradients of delta and momentum, of x, of the steps, and of the five coefficients.
    """
    by_delta = _dot(step, tl.trans(to_delta), PRECISION)
    grad_mixed = -tl.sum(x * by_delta, axis=1)
    grad_x = -end_mixed[:, None] * by_delta
    by_momentum = _dot(step, tl.trans(to_momentum), PRECISION)
    grad_trace = -tl.sum(x * by_momentum, axis=1)
    grad_x -= end_trace[:, None] * by_momentum
    grad_step = -end_mixed[:, None] * _dot(x, to_delta, PRECISION)
    grad_step -= end_trace[:, None] * _dot(x, to_momentum, PRECISION)
    grad_retained = tl.sum(_tile(p_delta, rows, columns, COLUMNS, ROWS, COLUMNS) * to_delta)
    momentum = _tile(p_momentum, rows, columns, COLUMNS, ROWS, COLUMNS)
    grad_built, grad_kept = tl.sum(momentum * to_delta), tl.sum(momentum * to_momentum)
    to_momentum = end_built * to_delta + end_kept * to_momentum
    to_delta = end_retained * to_delta
    return to_delta, to_momentum, grad_x, grad_step, grad_mixed, grad_trace, grad_retained, grad_built, grad_kept


@triton.jit
def _take_anchor(
    grad, grad_anchor, pointer, flags, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Give an anchor's gradient to the delta it was, or keep it in memory where an earlier chunk set that anchor."""
    if (flags & 4) != 0:
        grad_anchor += _tile(pointer, rows, columns, COLUMNS, ROWS, COLUMNS)
    if (flags & 8) == 0:
        grad += grad_anchor
    if (flags & 16) != 0:
        kept = tl.where((flags & 10) == 8, grad_anchor, 0.0)
        _put(pointer, kept, rows, columns, COLUMNS, ROWS, COLUMNS)
        tl.debug_barrier()  # before the chunk before this loads what other threads have stored
    return grad


@triton.jit
def _write_gradient_kernel(
    query_ptr, key_ptr, grad_ptr, step_ptr,
    read_retained_ptr, read_built_ptr, end_mixed_ptr, end_trace_ptr,
    end_retained_ptr, end_built_ptr, end_kept_ptr,
    lower_ptr, upper_ptr, anchor_ptr, flags_ptr, source_ptr, squared_ptr,
    deltas_ptr, momenta_ptr, taken_ptr, error_ptr, product_ptr, inner_ptr, read_ptr,
    error_owed_ptr, x_owed_ptr, inner_owed_ptr, key_owed_ptr, read_grad_ptr,
    delta_grad_ptr, momentum_grad_ptr, anchor_grad_ptr,
    key_grad_ptr, error_grad_ptr, step_grad_ptr, slope_grad_ptr, product_grad_ptr,
    end_mixed_grad_ptr, end_trace_grad_ptr, end_retained_grad_ptr, end_built_grad_ptr, end_kept_grad_ptr,
    N, H,
    query_b, query_t, query_h, key_b, key_t, key_h,
    C: tl.constexpr, D: tl.constexpr, I: tl.constexpr, DEPTH: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Walk the chunks backward; the gradients of the state come in the tensors in which they are returned."""
    row = tl.program_id(0).to(tl.int64)
    i_b, i_h = row // H, row % H
    SIZE: tl.constexpr = D * I * DEPTH
    UPPER: tl.constexpr = D * I * (DEPTH - 1)
    c, d, i = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    m_c = c < C
    p_upper = upper_ptr + i_h * (D * I)
    p_anchor_grad = anchor_grad_ptr + row * SIZE
    to_delta = _tile(delta_grad_ptr + row * SIZE + UPPER, i, d, D, I, D)
    to_momentum = _tile(momentum_grad_ptr + row * SIZE + UPPER, i, d, D, I, D)
    if DEPTH == 2:
        p_lower = lower_ptr + i_h * (D * I)
        to_delta_lower = _tile(delta_grad_ptr + row * SIZE, d, i, I, D, I)
        to_momentum_lower = _tile(momentum_grad_ptr + row * SIZE, d, i, I, D, I)
    for back in range(N):
        chunk = row * N + (N - 1 - back)
        n = chunk - row * N
        first, tokens = n * C, chunk * C
        flags, source = tl.load(flags_ptr + i_b * N + n), tl.load(source_ptr + i_b * N + n).to(tl.int64)
        taken = tl.load(taken_ptr + tokens + c, mask=m_c, other=0.0)
        end_mixed = tl.load(end_mixed_ptr + tokens + c, mask=m_c, other=0.0)
        end_trace = tl.load(end_trace_ptr + tokens + c, mask=m_c, other=0.0)
        end_retained, end_built = tl.load(end_retained_ptr + chunk), tl.load(end_built_ptr + chunk)
        end_kept = tl.load(end_kept_ptr + chunk)
        retained = tl.load(read_retained_ptr + tokens + c, mask=m_c, other=0.0)
        built = tl.load(read_built_ptr + tokens + c, mask=m_c, other=0.0)

        # The upper layer: what the chunk left, and what its reads owe to delta and momentum.
        error = _tile(error_ptr + tokens * D, c, d, D, C, D)
        if DEPTH == 2:
            x = _silu(_tile(product_ptr + tokens * I, c, i, I, C, I))
        else:
            x = _tile(key_ptr + i_b * key_b + i_h * key_h + first * key_t, c, d, key_t, C, D)
        (
            to_delta, to_momentum, grad_x, grad_error, grad_mixed, grad_trace, grad_retained, grad_built, grad_kept,
        ) = _advance_gradient(
            to_delta, to_momentum, x, taken[:, None] * error,
            deltas_ptr + chunk * SIZE + UPPER, momenta_ptr + chunk * SIZE + UPPER, i, d,
            end_retained, end_built, end_kept, end_mixed, end_trace, I, D, PRECISION,
        )  # fmt: skip
        grad_x += _tile(x_owed_ptr + tokens * I, c, i, I, C, I)
        grad_error += _tile(error_owed_ptr + tokens * D, c, d, D, C, D)
        if DEPTH == 2:
            reads = _silu(_tile(read_ptr + tokens * I, c, i, I, C, I))
        else:
            reads = _tile(query_ptr + i_b * query_b + i_h * query_h + first * query_t, c, d, query_t, C, D)
        grad = _tile(grad_ptr + ((i_b * N * C + first) * H + i_h) * D, c, d, H * D, C, D)
        reads = tl.trans(reads)
        to_delta += _dot(reads, retained[:, None] * grad, PRECISION)
        to_momentum += _dot(reads, built[:, None] * grad, PRECISION)

        grad_step = tl.sum(grad_error * error, axis=1)
        grad_error = taken[:, None] * grad_error
        if DEPTH == 2:
            # The lower layer likewise, then the clip.
            key = _tile(key_ptr + i_b * key_b + i_h * key_h + first * key_t, c, d, key_t, C, D)
            inner = _tile(inner_ptr + tokens * I, c, i, I, C, I)
            (
                to_delta_lower, to_momentum_lower, grad_key, grad_inner,
                more_mixed, more_trace, more_retained, more_built, more_kept,
            ) = _advance_gradient(
                to_delta_lower, to_momentum_lower, key, taken[:, None] * inner,
                deltas_ptr + chunk * SIZE, momenta_ptr + chunk * SIZE, d, i,
                end_retained, end_built, end_kept, end_mixed, end_trace, D, I, PRECISION,
            )  # fmt: skip
            grad_mixed += more_mixed
            grad_trace += more_trace
            grad_retained += more_retained
            grad_built += more_built
            grad_kept += more_kept
            grad_key += _tile(key_owed_ptr + tokens * D, c, d, D, C, D)
            grad_inner += _tile(inner_owed_ptr + tokens * I, c, i, I, C, I)
            query = _tile(query_ptr + i_b * query_b + i_h * query_h + first * query_t, c, d, query_t, C, D)
            grad_read = _tile(read_grad_ptr + tokens * I, c, i, I, C, I)
            query = tl.trans(query)
            to_delta_lower += _dot(query, retained[:, None] * grad_read, PRECISION)
            to_momentum_lower += _dot(query, built[:, None] * grad_read, PRECISION)

            grad_step += tl.sum(grad_inner * inner, axis=1)
            grad_inner = taken[:, None] * grad_inner
            step = tl.load(step_ptr + tokens + c, mask=m_c, other=0.0)
            squared = tl.load(squared_ptr + tokens + c, mask=m_c, other=1.0)
            clipped = taken != step
            owed = tl.where(clipped, 2 * grad_step / tl.where(clipped, squared, 1.0), 0.0)
            per_square = -owed * taken
            grad_x += (per_square * _squares(error))[:, None] * x
            grad_key += (per_square * _squares(inner))[:, None] * key
            grad_inner += (per_square * _squares(key))[:, None] * inner
            grad_error += (per_square * _squares(x) + owed / C)[:, None] * error
            grad_step = tl.where(clipped, 0.0, grad_step)
        tl.store(end_mixed_grad_ptr + tokens + c, grad_mixed, mask=m_c)
        tl.store(end_trace_grad_ptr + tokens + c, grad_trace, mask=m_c)
        tl.store(end_retained_grad_ptr + chunk, grad_retained)
        tl.store(end_built_grad_ptr + chunk, grad_built)
        tl.store(end_kept_grad_ptr + chunk, grad_kept)
        tl.store(step_grad_ptr + tokens + c, grad_step, mask=m_c)

        # The write at the anchor: its backward pass, then its forward pass.
        if source < 0:
            p_anchor = anchor_ptr + row * SIZE
        else:
            p_anchor = deltas_ptr + (row * N + source) * SIZE
        upper = _tile(p_upper, i, d, D, I, D) + _tile(p_anchor + UPPER, i, d, D, I, D)
        if DEPTH == 2:
            product = _tile(product_ptr + tokens * I, c, i, I, C, I)
            grad_slope = grad_inner * _silu_slope(product)
            _put(slope_grad_ptr + tokens * I, grad_slope, c, i, I, C, I)
            grad_error += _dot(grad_slope, upper, PRECISION)
            grad_upper = _dot(tl.trans(grad_slope), error, PRECISION)
            grad_upper += _dot(tl.trans(x), grad_error, PRECISION)
            grad_x += _dot(grad_error, tl.trans(upper), PRECISION)
            grad_product = grad_inner * _dot(error, tl.trans(upper), PRECISION) * _silu_bend(product)
            grad_product += grad_x * _silu_slope(product)
            _put(product_grad_ptr + tokens * I, grad_product, c, i, I, C, I)
            to_delta = _take_anchor(to_delta, grad_upper, p_anchor_grad + UPPER, flags, i, d, I, D)
            lower = _tile(p_lower, d, i, I, D, I) + _tile(p_anchor, d, i, I, D, I)
            grad_x = grad_key + _dot(grad_product, tl.trans(lower), PRECISION)
            grad_lower = _dot(tl.trans(key), grad_product, PRECISION)
            to_delta_lower = _take_anchor(to_delta_lower, grad_lower, p_anchor_grad, flags, d, i, D, I)
        else:
            grad_x += _dot(grad_error, tl.trans(upper), PRECISION)
            grad_upper = _dot(tl.trans(x), grad_error, PRECISION)
            to_delta = _take_anchor(to_delta, grad_upper, p_anchor_grad, flags, i, d, I, D)
        if RESIDUAL:
            grad_x += grad_error
        p_token = ((i_b * N * C + first) * H + i_h) * D
        _put(key_grad_ptr + p_token, grad_x, c, d, H * D, C, D)
        _put(error_grad_ptr + p_token, grad_error, c, d, H * D, C, D)
        if (flags & 2) != 0:
            to_delta, to_momentum = tl.zeros_like(to_delta), tl.zeros_like(to_momentum)
            if DEPTH == 2:
                to_delta_lower = tl.zeros_like(to_delta_lower)
                to_momentum_lower = tl.zeros_like(to_momentum_lower)
    _put(delta_grad_ptr + row * SIZE + UPPER, to_delta, i, d, D, I, D)
    _put(momentum_grad_ptr + row * SIZE + UPPER, to_momentum, i, d, D, I, D)
    if DEPTH == 2:
        _put(delta_grad_ptr + row * SIZE, to_delta_lower, d, i, I, D, I)
        _put(momentum_grad_ptr + row * SIZE, to_momentum_lower, d, i, I, D, I)


class Kept(NamedTuple):
    """What a forward pass leaves for its gradient; the last three of two layers only."""

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
    left so; 16 that of the chunk before it was (of chunk 0, always).
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
    bits = torch.stack([fresh, border, incomplete, held, follows]).to(torch.int32)
    flags = (bits * torch.tensor([1, 2, 4, 8, 16], dtype=torch.int32, device=device)[:, None, None]).sum(0)
    chunk = torch.arange(count, device=device).expand(batch, count)
    source = chunk.masked_fill(held, -1).cummax(dim=1).values
    return Borders(flags.to(torch.int32).contiguous(), source.to(torch.int32).contiguous())


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
        y, squared, after, kept = forward(inputs, options.shape, any(ctx.needs_input_grad))
        ctx.mark_non_differentiable(squared)
        ctx.save_for_backward(*flat, squared, *(kept or ()))
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


def forward(
    inputs: Inputs, shape: NetworkShape, keep: bool
) -> tuple[Tensor, Tensor, NeuralState, Kept | None]:
    """Return the outputs, the squared lengths of the gradients, the state after, and, to `keep`, what is kept."""
    query, step_size, state = inputs.query, inputs.step_size, inputs.state
    y, squared = query.new_empty(query.shape), torch.empty_like(step_size)
    after = NeuralState(torch.empty_like(state.delta), torch.empty_like(state.momentum), state.anchor.clone())
    kept = _kept(inputs, shape) if keep else None
    forward_launch(inputs, shape, y, squared, after, kept).run()
    return y, squared, after, kept


def _kept(inputs: Inputs, shape: NetworkShape) -> Kept:
    rows, count, length = inputs.step_size.shape
    inner, width = shape.layers[-1]
    new = inputs.step_size.new_empty
    states = (new(rows, count, shape.size) for _ in range(2))
    hidden = (new(rows, count, length, inner) if len(shape.layers) == 2 else None for _ in range(3))
    return Kept(*states, new(rows, count, length), new(rows, count, length, width), *hidden)


def backward(
    inputs: Inputs, shape: NetworkShape, squared: Tensor, kept: Kept, grad_y: Tensor, grad_after: NeuralState
) -> list[Tensor]:
    """Return the gradients of tokens, step sizes, coefficients, weights and state, in this order."""
    at, incomplete = inputs.coefficients, (inputs.borders.flags[:, -1] & 4 != 0)[:, None, None]
    owed = Owed(
        *(
            None if x is None else torch.empty_like(x)
            for x in (
                kept.error,
                kept.error.new_empty(*kept.error.shape[:-1], shape.layers[-1][0]),
                kept.inner,
                None if kept.inner is None else kept.error,
                kept.read,
            )
        )
    )
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
    write_gradient_launch(inputs, shape, squared, kept, grad_y, owed, grads).run()
    weights = _weight_gradients(inputs, kept, grad_y, owed, grads)
    value = grads.error.neg().to(inputs.value.dtype)
    return [grads.query, grads.key, value, grads.step_size, *grads.coefficients, *weights, *grad_state]


class Owed(NamedTuple):
    """What reads owe to the steps and inputs of writes, by `_read_gradient_kernel`; the last three of two layers."""

    error: Tensor
    x: Tensor
    inner: Tensor | None
    key: Tensor | None
    read: Tensor | None


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
    lower = product(query, tokens(owed.read)) + product(key, tokens(grads.product))
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
        "BLOCK_I": _block(inner),
    }


def _warps(constants: dict[str, object]) -> int:
    """Choose so that a thread holds few numbers of the state and of a chunk's hidden units."""
    largest = constants["BLOCK_I"] * max(constants["BLOCK_C"], constants["BLOCK_D"])
    return 4 if largest * constants["DEPTH"] <= 4096 else 8


def _shared_arguments(inputs: Inputs) -> dict[str, object]:
    named = {}
    for name in ("query", "key"):
        tensor = getattr(inputs, name)
        named |= {f"{name}_ptr": tensor}
        named |= {f"{name}_{dim}": tensor.stride(place) for place, dim in enumerate("bth")}
    lower, upper = inputs.weights if len(inputs.weights) == 2 else (None, *inputs.weights)
    at = inputs.coefficients
    return {
        **named,
        "read_retained_ptr": at.read_retained,
        "read_built_ptr": at.read_built,
        "lower_ptr": lower,
        "upper_ptr": upper,
        "N": inputs.step_size.shape[1],
        "H": inputs.query.shape[2],
    }


def _end_arguments(inputs: Inputs) -> dict[str, object]:
    names = ("end_mixed", "end_trace", "end_retained", "end_built", "end_kept")
    return {f"{name}_ptr": getattr(inputs.coefficients, name) for name in names}


def _kept_arguments(kept: Kept | None) -> dict[str, object]:
    return {f"{name}_ptr": None if kept is None else getattr(kept, name) for name in Kept._fields}


def forward_launch(
    inputs: Inputs, shape: NetworkShape, y: Tensor, squared: Tensor, after: NeuralState, kept: Kept | None
) -> Launch:
    """Return the launch that fills `y`, `squared`, the state `after`, whose anchor is that before, and `kept`."""
    constants = _constants(inputs, shape)
    return Launch(
        _forward_kernel,
        (inputs.step_size.shape[0],),
        {
            **_shared_arguments(inputs),
            **_end_arguments(inputs),
            **_kept_arguments(kept),
            **{f"value_{dim}": inputs.value.stride(place) for place, dim in enumerate("bth")},
            "value_ptr": inputs.value,
            "step_ptr": inputs.step_size,
            "read_mixed_ptr": inputs.coefficients.read_mixed,
            "delta_ptr": inputs.state.delta,
            "momentum_ptr": inputs.state.momentum,
            "flags_ptr": inputs.borders.flags,
            "out_ptr": y,
            "squared_ptr": squared,
            "delta_after_ptr": after.delta,
            "momentum_after_ptr": after.momentum,
            "anchor_ptr": after.anchor,
        },
        {**constants, "KEEP": kept is not None},
        num_warps=_warps(constants),
        num_stages=1,
    )


def _owed_arguments(owed: Owed) -> dict[str, object]:
    names = ("error_owed", "x_owed", "inner_owed", "key_owed", "read_grad")
    return {f"{name}_ptr": tensor for name, tensor in zip(names, owed, strict=True)}


def read_gradient_launch(
    inputs: Inputs, shape: NetworkShape, kept: Kept, grad_y: Tensor, owed: Owed, grads: Gradients
) -> Launch:
    """Return the launch that fills `owed`, and the gradients of query and of the coefficients of reads."""
    constants = _constants(inputs, shape)
    rows, count, _ = inputs.step_size.shape
    return Launch(
        _read_gradient_kernel,
        (rows * count,),
        {
            **_shared_arguments(inputs),
            **_kept_arguments(kept),
            **_owed_arguments(owed),
            "read_mixed_ptr": inputs.coefficients.read_mixed,
            "grad_ptr": grad_y,
            "query_grad_ptr": grads.query,
            "retained_grad_ptr": grads.coefficients.read_retained,
            "built_grad_ptr": grads.coefficients.read_built,
            "mixed_grad_ptr": grads.coefficients.read_mixed,
        },
        constants,
        num_warps=_warps(constants),
        num_stages=1,
    )


def write_gradient_launch(
    inputs: Inputs,
    shape: NetworkShape,
    squared: Tensor,
    kept: Kept,
    grad_y: Tensor,
    owed: Owed,
    grads: Gradients,
) -> Launch:
    """Return the launch that fills all gradients but those of reads; the state's hold those of the state after."""
    constants = _constants(inputs, shape)
    at = grads.coefficients
    return Launch(
        _write_gradient_kernel,
        (inputs.step_size.shape[0],),
        {
            **_shared_arguments(inputs),
            **_end_arguments(inputs),
            **_kept_arguments(kept),
            **_owed_arguments(owed),
            "step_ptr": inputs.step_size,
            "squared_ptr": squared,
            "grad_ptr": grad_y,
            "anchor_ptr": inputs.state.anchor,
            "flags_ptr": inputs.borders.flags,
            "source_ptr": inputs.borders.source,
            "key_grad_ptr": grads.key,
            "error_grad_ptr": grads.error,
            "step_grad_ptr": grads.step_size,
            "slope_grad_ptr": grads.slope,
            "product_grad_ptr": grads.product,
            **{f"{name}_grad_ptr": getattr(at, name) for name in Coefficients._fields if name[:3] == "end"},
            **{f"{name}_grad_ptr": tensor for name, tensor in grads.state._asdict().items()},
        },
        constants,
        num_warps=_warps(constants),
        num_stages=1,
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
    owed = Owed(kept.error, kept.error if hidden is None else kept.inner, kept.inner, kept.error, kept.read)
    grads = Gradients(
        tokens[0], tokens[1], meta(*tokens[0].shape), each, at, kept.inner, kept.inner, states
    )
    return {
        "forward": forward_launch(inputs, shape, tokens[0], each, states, kept),
        "read gradient": read_gradient_launch(inputs, shape, kept, tokens[0], owed, grads),
        "write gradient": write_gradient_launch(inputs, shape, each, kept, tokens[0], owed, grads),
    }
