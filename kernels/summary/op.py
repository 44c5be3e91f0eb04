"""Summaries of chunks: computed from a store, or kept up to date while steps are written into it.

A store holds M chunks of C steps in a ring: step p of an episode lies in slot `p // C % M` at offset `p % C`.
A chunk's summary is over the steps written to it so far: their mean, the last of them, or their maximum.
Means are the landmarks of HCAM (Lampinen et al. 2021, arXiv 2105.14039) and MoBA (arXiv 2502.13189).

Letters: B batch, T steps written, M slots, C chunk length, D width (trailing dims are flattened to it), N
slots a segment can touch, W steps of a segment that one chunk can hold.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import (
    Implementation,
    is_compiled,
    resolve,
    unsupported_dtype,
    without_autocast,
)
from scrubjay.kernels.summary import reference, vectorised
from scrubjay.kernels.summary.reference import Kind

_KINDS = ("mean", "last", "max")


@without_autocast
def chunk_summary(
    contents: Float[Tensor, "B M C *D"],
    lengths: Int[Tensor, "B M"] | None = None,
    *,
    kind: Kind = "mean",
    implementation: Implementation = "auto",
) -> Float[Tensor, "B M *D"]:
    """Return the summary of the first `lengths` steps of every chunk, of all C by default.

    Zeros where a length is 0; a length beyond C counts as C. Steps beyond the length may hold anything, NaN
    included; a NaN within it makes the mean and the maximum NaN. Of equal maxima the first gets the gradient.
    Accumulates in at least float32.

    Raises ValueError on mismatched shapes or an unknown `kind`, TypeError on a wrong dtype.
    """
    _check_summary(contents, lengths, kind)
    trailing = contents.shape[3:]
    contents = contents.flatten(3)
    path = resolve(implementation, contents, lengths, unsupported=unsupported_dtype(contents))
    if path == "triton" or is_compiled():
        out = torch.ops.scrubjay.chunk_summary(contents, lengths, kind, path)
    else:
        out = _SUMMARIES[path](contents, lengths, kind)
    return out.unflatten(2, trailing)


@without_autocast
def write_steps(
    contents: Float[Tensor, "B M C *D"],
    summaries: Float[Tensor, "B M *D"],
    x: Float[Tensor, "B T *D"],
    time: Int[Tensor, "B"],
    start: Bool[Tensor, "B T"] | None = None,
    *,
    kind: Kind = "mean",
    in_place: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "B M C *D"], Float[Tensor, "B M *D"], Int[Tensor, "B"]]:
    """Write T steps of every row into its ring and return contents, summaries and time after them.

    `time` counts the steps of the episode already written; a `start` begins a new episode, whose steps are
    written from slot 0 on. The first step of a chunk recycles its slot: the summary is of the present chunk
    alone. Slots not written to stay as they are, so what an earlier episode left where the present one has
    not been yet is the reader's to mask: of its chunks `time // C` are complete.

    `in_place=True` overwrites and returns `contents` and `summaries`; it is for caches and takes no gradient.
    Otherwise gradients flow to contents, summaries and x, and what was overwritten gets zero. The derivative
    is taken in torch on every path, Triton included, so it can be differentiated again.

    Steps are rounded to the dtype of `contents` before they are summarised. A chunk is accumulated in at
    least float32 within one call, but between calls its mean is rounded to the dtype of `summaries`: written
    one by one, the mean of n steps is wrong by up to (n + 1) / 2 roundings of that dtype, sqrt(n / 3)
    typically. Where that matters (bfloat16 rounds by 0.4 %), keep `summaries` in float32 beside contents in
    half precision.

    Raises ValueError on mismatched shapes, an unknown `kind`, or an in-place call that would lose a gradient
    or that cannot write through the strides it is given, TypeError on a wrong dtype.
    """
    _check_write(contents, summaries, x, time, start, kind)
    if in_place:
        _check_in_place(contents, summaries, x)
    if x.shape[1] == 0:
        return (
            (contents, summaries, time) if in_place else (contents.clone(), summaries.clone(), time.clone())
        )
    trailing = contents.shape[3:]
    flatten = _view_flat if in_place else torch.flatten
    store, table, steps = flatten(contents, 3), flatten(summaries, 2), x.flatten(2).to(contents.dtype)
    unsupported = unsupported_dtype(store, table) or (
        _unsupported_in_place(store, table) if in_place else None
    )
    path = resolve(implementation, store, table, steps, time, start, unsupported=unsupported)
    as_op = path == "triton" or is_compiled()
    if in_place:
        write = torch.ops.scrubjay.write_steps_ if as_op else _write_in_place
        return contents, summaries, write(store, table, steps, time, start, kind, path)
    if as_op:
        written, summarised, after = torch.ops.scrubjay.write_steps(
            store, table, steps, time, start, kind, path
        )
    else:
        written, summarised, after = _WRITES[path](store, table, steps, time, start, kind)
    return written.unflatten(3, trailing), summarised.unflatten(2, trailing), after


def _unsupported_in_place(*tensors: Tensor) -> str | None:
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        return "in place the last dimension must be contiguous"
    return None


@torch.no_grad()
def _write_in_place(
    contents: Tensor,
    summaries: Tensor,
    x: Tensor,
    time: Tensor,
    start: Tensor | None,
    kind: Kind,
    implementation: str,
) -> Tensor:
    """Overwrite contents and summaries and return the time after the segment."""
    chunks, length = contents.shape[1:3]
    if implementation == "triton":
        from scrubjay.kernels.summary import gpu

        if x.shape[1] == 1:
            return gpu.write_one(contents, summaries, x, time, start, kind)
        plan = vectorised.plan_writes(time, start, x.shape[1], chunks, length)
        assert plan.source is not None
        gpu.write(contents, summaries, x, plan.touched, plan.last, plan.end, plan.source, kind)
        return plan.time
    if implementation == "reference":
        written, summarised, after = reference.write(contents, summaries, x, time, start, kind)
        contents.copy_(written)
        summaries.copy_(summarised)
        return after
    plan = vectorised.plan_writes(time, start, x.shape[1], chunks, length)
    index, new = vectorised.new_summaries(summaries, x, plan, kind, length)
    summaries.scatter_(1, index, new)
    slot, offset = plan.slot, plan.offset
    if plan.survives is not None:
        # A step that would be overwritten repeats the last one, which never is: the order of writes is free.
        slot = torch.where(plan.survives, slot, slot[:, -1:])
        offset = torch.where(plan.survives, offset, offset[:, -1:])
        x = torch.where(plan.survives[..., None], x, x[:, -1:])
    row = torch.arange(slot.shape[0], device=slot.device)[:, None]
    contents.index_put_((row, slot, offset), x)
    return plan.time


_SUMMARIES: dict[str, Any] = {"reference": reference.summarise, "torch": vectorised.summarise}
_WRITES: dict[str, Any] = {"reference": reference.write, "torch": vectorised.write}


@torch.library.custom_op("scrubjay::chunk_summary", mutates_args=())
def _summary_op(contents: Tensor, lengths: Tensor | None, kind: str, implementation: str) -> Tensor:
    if implementation == "triton":
        from scrubjay.kernels.summary import gpu

        return gpu.forward(contents, lengths, kind)
    return _SUMMARIES[implementation](contents, lengths, kind).contiguous()


@_summary_op.register_fake
def _(contents, lengths, kind, implementation):
    batch, chunks, _, width = contents.shape
    return contents.new_empty(batch, chunks, width)


@torch.library.custom_op("scrubjay::chunk_summary_backward", mutates_args=())
def _summary_backward_op(grad: Tensor, contents: Tensor, lengths: Tensor | None, kind: str) -> Tensor:
    from scrubjay.kernels.summary import gpu

    return gpu.backward(grad, contents, lengths, kind)


@_summary_backward_op.register_fake
def _(grad, contents, lengths, kind):
    return contents.new_empty(contents.shape)


def _save_summary(ctx, inputs, output) -> None:
    contents, lengths, ctx.kind, ctx.implementation = inputs
    ctx.save_for_backward(contents, lengths)


def _summary_gradient(ctx, grad):
    contents, lengths = ctx.saved_tensors
    if ctx.implementation == "triton":
        return torch.ops.scrubjay.chunk_summary_backward(grad, contents, lengths, ctx.kind), None, None, None
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Cut off, because a summary is linear wherever it is differentiable: only `grad` matters from here
        # on.
        leaf = contents.detach().requires_grad_()
        out = vectorised.summarise(leaf, lengths, ctx.kind)
        (to_contents,) = torch.autograd.grad(out, leaf, grad, create_graph=create_graph)
    return to_contents, None, None, None


_summary_op.register_autograd(_summary_gradient, setup_context=_save_summary)


@torch.library.custom_op("scrubjay::write_steps_", mutates_args=("contents", "summaries"))
def _write_in_place_op(
    contents: Tensor,
    summaries: Tensor,
    x: Tensor,
    time: Tensor,
    start: Tensor | None,
    kind: str,
    implementation: str,
) -> Tensor:
    return _write_in_place(contents, summaries, x, time, start, kind, implementation)  # pyright: ignore[reportArgumentType]


@_write_in_place_op.register_fake
def _(contents, summaries, x, time, start, kind, implementation):
    return time.new_empty(time.shape)


@torch.library.custom_op("scrubjay::write_steps", mutates_args=())
def _write_op(
    contents: Tensor,
    summaries: Tensor,
    x: Tensor,
    time: Tensor,
    start: Tensor | None,
    kind: str,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if implementation != "triton":
        written, summarised, after = _WRITES[implementation](contents, summaries, x, time, start, kind)
        return written.contiguous(), summarised.contiguous(), after
    contents = contents.clone(memory_format=torch.contiguous_format)
    summaries = summaries.clone(memory_format=torch.contiguous_format)
    after = _write_in_place(contents, summaries, x, time, start, kind, implementation)  # pyright: ignore[reportArgumentType]
    return contents, summaries, after


@_write_op.register_fake
def _(contents, summaries, x, time, start, kind, implementation):
    return (
        contents.new_empty(contents.shape),
        summaries.new_empty(summaries.shape),
        time.new_empty(time.shape),
    )


def _save_write(ctx, inputs, output) -> None:
    contents, summaries, x, time, start, ctx.kind, _ = inputs
    # Not the contents: they are as large as the store, and no derivative depends on them.
    ctx.chunks, ctx.length = contents.shape[1:3]
    ctx.save_for_backward(summaries, x, time, start)


def _write_gradient(ctx, grad_contents, grad_summaries, _):
    summaries, x, time, start = ctx.saved_tensors
    plan = vectorised.plan_writes(time, start, x.shape[1], ctx.chunks, ctx.length)
    rows = vectorised.rows_of(plan, ctx.chunks, ctx.length)
    flat = grad_contents.flatten(0, 2)
    to_contents = flat.index_fill(0, rows, 0).view(grad_contents.shape)
    to_x = vectorised.surviving(flat.index_select(0, rows).view(x.shape), plan)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = summaries.detach().requires_grad_(), x.detach().requires_grad_()
        index, new = vectorised.new_summaries(*leaves, plan, ctx.kind, ctx.length)
        after = leaves[0].scatter(1, index, new)
        to_summaries, through = torch.autograd.grad(after, leaves, grad_summaries, create_graph=create_graph)
    return to_contents, to_summaries, to_x + through, None, None, None, None


_write_op.register_autograd(_write_gradient, setup_context=_save_write)


def _view_flat(tensor: Tensor, first: int) -> Tensor:
    try:
        return tensor.view(*tensor.shape[:first], math.prod(tensor.shape[first:]))
    except RuntimeError as error:
        raise ValueError(
            f"in_place=True cannot write through strides {tensor.stride()} of shape {tuple(tensor.shape)}; "
            "make the trailing dimensions contiguous"
        ) from error


def _check_in_place(contents: Tensor, summaries: Tensor, x: Tensor) -> None:
    for name, tensor in (("contents", contents), ("summaries", summaries), ("x", x)):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires grad, which in_place=True would lose; use in_place=False or torch.no_grad()"
            )
    for name, tensor in (("contents", contents), ("summaries", summaries)):
        if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise ValueError(f"{name} is expanded, so in_place=True would write one place for many; clone it")


def _check_summary(contents: Tensor, lengths: Tensor | None, kind: str) -> None:
    _check_contents(contents, kind)
    if lengths is None:
        return
    _check_whole(lengths, "lengths")
    if lengths.shape != contents.shape[:2]:
        raise ValueError(f"lengths have shape {tuple(lengths.shape)}; expected {tuple(contents.shape[:2])}")


def _check_write(contents, summaries, x, time, start, kind) -> None:
    _check_contents(contents, kind)
    batch, chunks = contents.shape[:2]
    trailing = tuple(contents.shape[3:])
    if chunks == 0:
        raise ValueError(f"contents have shape {tuple(contents.shape)}; a ring needs at least 1 chunk")
    if summaries.shape != (batch, chunks, *trailing):
        raise ValueError(
            f"summaries have shape {tuple(summaries.shape)}; expected {(batch, chunks, *trailing)}"
        )
    if x.ndim < 3 or x.shape[0] != batch or x.shape[2:] != trailing:
        expected = ", ".join(map(str, (batch, "T", *trailing)))
        raise ValueError(f"x has shape {tuple(x.shape)}; expected [{expected}]")
    for name, tensor in (("summaries", summaries), ("x", x)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected a floating one")
    _check_whole(time, "time")
    if time.shape != (batch,):
        raise ValueError(f"time has shape {tuple(time.shape)}; expected ({batch},)")
    if start is None:
        return
    if start.dtype != torch.bool:
        raise TypeError(f"start has dtype {start.dtype}; expected torch.bool")
    if start.shape != x.shape[:2]:
        raise ValueError(f"start has shape {tuple(start.shape)}; expected {tuple(x.shape[:2])}")


def _check_contents(contents: Tensor, kind: str) -> None:
    if kind not in _KINDS:
        raise ValueError(f"kind={kind!r}; choose from {', '.join(_KINDS)}")
    if contents.ndim < 4 or contents.shape[2] == 0:
        raise ValueError(
            f"contents have shape {tuple(contents.shape)}; expected [B, M, C, ...] with C at least 1"
        )
    if not contents.is_floating_point():
        raise TypeError(f"contents have dtype {contents.dtype}; expected a floating one")


def _check_whole(tensor: Tensor, name: str) -> None:
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected torch.int32 or torch.int64")
