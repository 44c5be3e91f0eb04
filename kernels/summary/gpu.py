"""Triton kernels of chunk summaries: one pass over a store, its derivative, and writing steps into the ring.

Every program has one chunk (or row) and one block of the width to itself and walks the chunk's steps in a
fixed order, so results do not vary between runs.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.launch import Launch, with_dense_rows

_TILE_SCALARS = 2048
_WIDEST_BLOCK = 128


@triton.jit
def _is_nan(values):
    return values != values  # noqa: PLR0124


@triton.jit
def _length_of(lengths, chunk, length, HAS_LENGTHS: tl.constexpr):
    count = tl.cast(length, tl.int32)
    if HAS_LENGTHS:
        count = tl.minimum(tl.maximum(tl.load(lengths + chunk), 0), length).to(tl.int32)
    return count


@triton.jit
def _first_maximum(
    row, stride_step, count, column, in_width, BLOCK_STEPS: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):
    """Return the maximum of the first `count` steps and where it is first reached; NaN counts as largest."""
    best = tl.full([BLOCK_WIDTH], float("-inf"), tl.float32)
    best_step = tl.zeros([BLOCK_WIDTH], tl.int32)
    nan_step = tl.full([BLOCK_WIDTH], 2147483647, tl.int32)
    for first in range(0, count, BLOCK_STEPS):
        step = first + tl.arange(0, BLOCK_STEPS)
        mask = (step < count)[:, None] & in_width[None, :]
        place = row + step.to(tl.int64)[:, None] * stride_step + column[None, :]
        tile = tl.load(place, mask=mask, other=float("-inf")).to(tl.float32)
        is_nan = _is_nan(tile)
        nan_step = tl.minimum(nan_step, tl.min(tl.where(is_nan, step[:, None], 2147483647), axis=0))
        tile = tl.where(is_nan, float("-inf"), tile)
        tile_best = tl.max(tile, axis=0)
        tile_step = tl.min(tl.where(tile == tile_best[None, :], step[:, None], 2147483647), axis=0)
        best_step = tl.where(tile_best > best, tile_step, best_step)
        best = tl.maximum(best, tile_best)
    has_nan = nan_step < count
    return tl.where(has_nan, float("nan"), best), tl.where(has_nan, nan_step, best_step)


@triton.jit
def _summary_kernel(
    contents,
    lengths,
    out,
    stride_batch,
    stride_chunk,
    stride_step,
    chunks,
    length,
    width,
    KIND: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    in_width = column < width
    row = contents + chunk // chunks * stride_batch + chunk % chunks * stride_chunk
    count = _length_of(lengths, chunk, length, HAS_LENGTHS)
    summary = tl.zeros([BLOCK_WIDTH], tl.float32)
    if KIND == "mean":
        for first in range(0, count, BLOCK_STEPS):
            step = first + tl.arange(0, BLOCK_STEPS)
            mask = (step < count)[:, None] & in_width[None, :]
            place = row + step.to(tl.int64)[:, None] * stride_step + column[None, :]
            summary += tl.sum(tl.load(place, mask=mask, other=0.0).to(tl.float32), axis=0)
        summary = summary / tl.maximum(count, 1).to(tl.float32)
    elif KIND == "last":
        place = row + (count - 1).to(tl.int64) * stride_step + column
        summary = tl.load(place, mask=column < tl.where(count > 0, width, 0), other=0.0).to(tl.float32)
    else:
        best, _ = _first_maximum(row, stride_step, count, column, in_width, BLOCK_STEPS, BLOCK_WIDTH)
        summary = tl.where(count > 0, best, 0.0)
    tl.store(out + chunk * width + column, summary.to(out.dtype.element_ty), mask=in_width)


@triton.jit
def _summary_backward_kernel(
    grad,
    contents,
    lengths,
    out,
    stride_grad_batch,
    stride_grad_chunk,
    stride_batch,
    stride_chunk,
    stride_step,
    chunks,
    length,
    width,
    KIND: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    in_width = column < width
    batch, slot = chunk // chunks, chunk % chunks
    count = _length_of(lengths, chunk, length, HAS_LENGTHS)
    grad_row = grad + batch * stride_grad_batch + slot * stride_grad_chunk
    incoming = tl.load(grad_row + column, mask=in_width, other=0.0).to(tl.float32)
    chosen = tl.zeros([BLOCK_WIDTH], tl.int32) + count - 1
    if KIND == "mean":
        incoming = incoming / tl.maximum(count, 1).to(tl.float32)
    elif KIND == "max":
        row = contents + batch * stride_batch + slot * stride_chunk
        _, chosen = _first_maximum(row, stride_step, count, column, in_width, BLOCK_STEPS, BLOCK_WIDTH)
    for first in range(0, length, BLOCK_STEPS):
        step = first + tl.arange(0, BLOCK_STEPS)
        takes = (step < count)[:, None] & in_width[None, :]
        if KIND != "mean":
            takes = takes & (step[:, None] == chosen[None, :])
        place = out + (chunk * length + step.to(tl.int64)[:, None]) * width + column[None, :]
        outgoing = tl.where(takes, incoming[None, :], 0.0).to(out.dtype.element_ty)
        tl.store(place, outgoing, mask=(step < length)[:, None] & in_width[None, :])


@triton.jit
def _write_kernel(
    contents,
    summaries,
    x,
    touched,
    last,
    end,
    source,
    stride_batch,
    stride_chunk,
    stride_step,
    stride_summary_batch,
    stride_summary_chunk,
    stride_x_batch,
    stride_x_step,
    entries,
    length,
    width,
    KIND: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    in_width = column < width
    last_step = tl.load(last + entry)
    if last_step < 0:
        return
    last_offset = tl.load(end + entry)
    batch, slot = entry // entries, tl.load(touched + entry).to(tl.int64)
    row = contents + batch * stride_batch + slot * stride_chunk
    x_row = x + batch * stride_x_batch
    total = tl.zeros([BLOCK_WIDTH], tl.float32)
    best = tl.full([BLOCK_WIDTH], float("-inf"), tl.float32)
    has_nan = tl.zeros([BLOCK_WIDTH], tl.int32)
    for first in range(0, length, BLOCK_STEPS):
        offset = first + tl.arange(0, BLOCK_STEPS)
        step = tl.load(source + entry * length + offset, mask=offset < length, other=-1)
        mask = (step >= 0)[:, None] & in_width[None, :]
        tile = tl.load(
            x_row + step.to(tl.int64)[:, None] * stride_x_step + column[None, :], mask=mask, other=0.0
        )
        tl.store(row + offset.to(tl.int64)[:, None] * stride_step + column[None, :], tile, mask=mask)
        # Beyond the last offset lies what an earlier chunk of this very segment left in the slot.
        present = mask & (offset <= last_offset)[:, None]
        if KIND == "last":
            present = present & (offset == last_offset)[:, None]
        tile = tile.to(tl.float32)
        if KIND == "max":
            is_nan = _is_nan(tile)
            has_nan = tl.maximum(has_nan, tl.max((present & is_nan).to(tl.int32), axis=0))
            best = tl.maximum(best, tl.max(tl.where(present & ~is_nan, tile, float("-inf")), axis=0))
        else:
            total += tl.sum(tl.where(present, tile, 0.0), axis=0)
    place = summaries + batch * stride_summary_batch + slot * stride_summary_chunk + column
    carried = tl.maximum(last_offset - last_step, 0)
    old = tl.load(place, mask=column < tl.where(carried > 0, width, 0), other=0.0).to(tl.float32)
    if KIND == "mean":
        total = (old * carried.to(tl.float32) + total) / (last_offset + 1).to(tl.float32)
    elif KIND == "max":
        total = tl.where(carried > 0, tl.maximum(best, old), best)
        total = tl.where((has_nan > 0) | _is_nan(old), float("nan"), total)
    tl.store(place, total.to(summaries.dtype.element_ty), mask=in_width)


@triton.jit
def _write_one_kernel(
    contents,
    summaries,
    x,
    time,
    start,
    time_after,
    stride_batch,
    stride_chunk,
    stride_step,
    stride_summary_batch,
    stride_summary_chunk,
    stride_x_batch,
    stride_time,
    stride_start,
    chunks,
    length,
    width,
    KIND: tl.constexpr,
    HAS_START: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    in_width = column < width
    clock = tl.load(time + batch * stride_time).to(tl.int64)
    if HAS_START:
        clock = tl.where(tl.load(start + batch * stride_start) != 0, 0, clock)
    slot, offset = clock // length % chunks, clock % length
    new = tl.load(x + batch * stride_x_batch + column, mask=in_width, other=0.0)
    row = contents + batch * stride_batch + slot * stride_chunk + offset * stride_step
    tl.store(row + column, new, mask=in_width)
    place = summaries + batch * stride_summary_batch + slot * stride_summary_chunk + column
    summary = new.to(tl.float32)
    if KIND != "last":
        old = tl.load(place, mask=column < tl.where(offset > 0, width, 0), other=0.0).to(tl.float32)
        if KIND == "mean":
            summary = (old * offset.to(tl.float32) + summary) / (offset + 1).to(tl.float32)
        else:
            larger = tl.where((old >= summary) | _is_nan(old), old, summary)
            summary = tl.where(offset > 0, larger, summary)
    tl.store(place, summary.to(summaries.dtype.element_ty), mask=in_width)
    if tl.program_id(1) == 0:
        tl.store(time_after + batch, (clock + 1).to(time_after.dtype.element_ty))


def forward(contents: Tensor, lengths: Tensor | None, kind: str) -> Tensor:
    """Return the summaries `[B, M, D]` of contents `[B, M, C, D]`."""
    out = contents.new_empty(*contents.shape[:2], contents.shape[3])
    forward_launch(
        with_dense_rows(contents), None if lengths is None else lengths.contiguous(), out, kind
    ).run()
    return out


def backward(grad: Tensor, contents: Tensor, lengths: Tensor | None, kind: str) -> Tensor:
    """Return the derivative by contents for the derivative `grad` `[B, M, D]` by the summaries."""
    out = contents.new_empty(contents.shape)
    lengths = None if lengths is None else lengths.contiguous()
    backward_launch(with_dense_rows(grad), with_dense_rows(contents), lengths, out, kind).run()
    return out


def write(
    contents: Tensor,
    summaries: Tensor,
    x: Tensor,
    touched: Tensor,
    last: Tensor,
    end: Tensor,
    source: Tensor,
    kind: str,
) -> None:
    """Write the steps `x` in place.

    Args:
        contents: The ring of chunks, "B N C D".
        summaries: Theirs, "B N D".
        x: The segment, "B T D".
        touched: Of `vectorised.Plan`, and so the next three.
        last: As there.
        end: As there.
        source: As there.
        kind: Of the summaries.
    """
    tables = [table.to(torch.int32).contiguous() for table in (touched, last, end, source)]
    write_launch(contents, summaries, with_dense_rows(x), *tables, kind).run()


def write_one(
    contents: Tensor, summaries: Tensor, x: Tensor, time: Tensor, start: Tensor | None, kind: str
) -> Tensor:
    """Write one step per row in place and return the time after it.

    Args:
        contents: The ring of chunks, "B N C D".
        summaries: Theirs, "B N D".
        x: The step, "B D".
        time: Steps of each row's episode before it, "B".
        start: Rows whose episode begins; None for none.
        kind: Of the summaries.
    """
    time_after = time.new_empty(time.shape)
    write_one_launch(contents, summaries, with_dense_rows(x), time, start, time_after, kind).run()
    return time_after


def forward_launch(contents: Tensor, lengths: Tensor | None, out: Tensor, kind: str) -> Launch:
    """Return the launch of the summary kernel; the rows of contents and all of out are contiguous."""
    batch, chunks, length, width = contents.shape
    blocks = _blocks(length, width)
    return Launch(
        _summary_kernel,
        (batch * chunks, triton.cdiv(width, blocks["BLOCK_WIDTH"])),
        {
            "contents": contents,
            "lengths": lengths,
            "out": out,
            "stride_batch": contents.stride(0),
            "stride_chunk": contents.stride(1),
            "stride_step": contents.stride(2),
            "chunks": chunks,
            "length": length,
            "width": width,
        },
        {"KIND": kind, "HAS_LENGTHS": lengths is not None, **blocks},
    )


def backward_launch(grad: Tensor, contents: Tensor, lengths: Tensor | None, out: Tensor, kind: str) -> Launch:
    """Return the launch of the summary's derivative."""
    batch, chunks, length, width = contents.shape
    blocks = _blocks(length, width)
    return Launch(
        _summary_backward_kernel,
        (batch * chunks, triton.cdiv(width, blocks["BLOCK_WIDTH"])),
        {
            "grad": grad,
            "contents": contents,
            "lengths": lengths,
            "out": out,
            "stride_grad_batch": grad.stride(0),
            "stride_grad_chunk": grad.stride(1),
            "stride_batch": contents.stride(0),
            "stride_chunk": contents.stride(1),
            "stride_step": contents.stride(2),
            "chunks": chunks,
            "length": length,
            "width": width,
        },
        {"KIND": kind, "HAS_LENGTHS": lengths is not None, **blocks},
    )


def write_launch(
    contents: Tensor,
    summaries: Tensor,
    x: Tensor,
    touched: Tensor,
    last: Tensor,
    end: Tensor,
    source: Tensor,
    kind: str,
) -> Launch:
    """Return the launch that writes a segment; the tables are contiguous.

    Args: those of `write`.
    """
    batch, entries, length = source.shape
    width = contents.shape[3]
    blocks = _blocks(length, width)
    return Launch(
        _write_kernel,
        (batch * entries, triton.cdiv(width, blocks["BLOCK_WIDTH"])),
        {
            "contents": contents,
            "summaries": summaries,
            "x": x,
            "touched": touched,
            "last": last,
            "end": end,
            "source": source,
            "stride_batch": contents.stride(0),
            "stride_chunk": contents.stride(1),
            "stride_step": contents.stride(2),
            "stride_summary_batch": summaries.stride(0),
            "stride_summary_chunk": summaries.stride(1),
            "stride_x_batch": x.stride(0),
            "stride_x_step": x.stride(1),
            "entries": entries,
            "length": length,
            "width": width,
        },
        {"KIND": kind, **blocks},
    )


def write_one_launch(
    contents: Tensor,
    summaries: Tensor,
    x: Tensor,
    time: Tensor,
    start: Tensor | None,
    time_after: Tensor,
    kind: str,
) -> Launch:
    """Return the launch that writes one step per row.

    Args: those of `write_one`; `time_after` is filled.
    """
    batch, chunks, length, width = contents.shape
    block = _blocks(length, width)["BLOCK_WIDTH"]
    return Launch(
        _write_one_kernel,
        (batch, triton.cdiv(width, block)),
        {
            "contents": contents,
            "summaries": summaries,
            "x": x,
            "time": time,
            "start": start,
            "time_after": time_after,
            "stride_batch": contents.stride(0),
            "stride_chunk": contents.stride(1),
            "stride_step": contents.stride(2),
            "stride_summary_batch": summaries.stride(0),
            "stride_summary_chunk": summaries.stride(1),
            "stride_x_batch": x.stride(0),
            "stride_time": time.stride(0),
            "stride_start": 0 if start is None else start.stride(0),
            "chunks": chunks,
            "length": length,
            "width": width,
        },
        {"KIND": kind, "HAS_START": start is not None, "BLOCK_WIDTH": block},
        num_warps=1,
    )


def configurations() -> dict[str, Launch]:
    """Return the launches of the main sizes on meta tensors, for compiling without a GPU."""
    launches = {}
    for kind, dtype, width in (
        ("mean", torch.float16, 64),
        ("last", torch.float16, 64),
        ("max", torch.float16, 64),
        ("mean", torch.bfloat16, 128),
        ("mean", torch.float32, 64),
    ):
        name = f"{str(dtype).removeprefix('torch.')}, D={width}, {kind}"
        launches |= {f"{kernel}: {name}": launch for kernel, launch in _example(dtype, width, kind).items()}
    return launches


def _example(dtype: torch.dtype, width: int, kind: str) -> dict[str, Launch]:
    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    contents, summaries, x = meta(8, 64, 16, width), meta(8, 64, width), meta(8, 128, width)
    lengths, table = meta(8, 64, dtype=torch.int64), meta(8, 10, dtype=torch.int32)
    source = meta(8, 10, 16, dtype=torch.int32)
    time, start = meta(8, dtype=torch.int64), meta(8, 1, dtype=torch.bool)
    return {
        "summary": forward_launch(contents, lengths, summaries, kind),
        "summary gradient": backward_launch(summaries, contents, lengths, contents, kind),
        "write": write_launch(contents, summaries, x, table, table, table, source, kind),
        "write one step": write_one_launch(contents, summaries, x[:, :1], time, start, time, kind),
    }


def _blocks(length: int, width: int) -> dict[str, int]:
    block_width = min(triton.next_power_of_2(max(width, 1)), _WIDEST_BLOCK)
    block_steps = min(triton.next_power_of_2(length), _TILE_SCALARS // block_width)
    return {"BLOCK_STEPS": block_steps, "BLOCK_WIDTH": block_width}
