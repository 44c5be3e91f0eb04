"""Deprecated: chunk summaries, and a ring buffer that updates the summaries of its chunks.

A ring buffer has M slots with a chunk of C steps each. Step p of an episode is in slot `p // C % M` at offset
`p % C`. The summary of a chunk is the mean, the last or the maximum of the steps that were written to it.
The package no longer uses these functions. The mean of a complete chunk is `contents.mean(dim=2)`.

Letters: B batch, T steps written, M slots, C chunk length, D width (any trailing dims).
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import Implementation

Kind = Literal["mean", "last", "max"]


def chunk_summary(
    contents: Float[Tensor, "B M C *D"],
    lengths: Int[Tensor, "B M"] | None = None,
    *,
    kind: Kind = "mean",
    implementation: Implementation = "auto",
) -> Float[Tensor, "B M *D"]:
    """Return the summary of the first `lengths` steps of every chunk; of all C steps by default.

    Deprecated: use `contents.mean(dim=2)`. The summary is zero where a length is 0; a length beyond C counts
    as C. Steps beyond the length are ignored, even if they are NaN. If several steps have the maximum, the
    first of them gets the gradient. `implementation` has no effect.

    Raises ValueError on mismatched shapes or an unknown `kind`.
    """
    _deprecate("chunk_summary", "contents.mean(dim=2)")
    _check_kind(kind)
    if contents.ndim < 4 or (lengths is not None and lengths.shape != contents.shape[:2]):
        lengths_shape = "None" if lengths is None else tuple(lengths.shape)
        shape = tuple(contents.shape)
        raise ValueError(
            f"contents have shape {shape}, lengths {lengths_shape}; expected [batch, slots, steps, ...] "
            "and [batch, slots]"
        )
    trailing, contents = contents.shape[3:], contents.flatten(3)
    steps = contents.to(torch.promote_types(contents.dtype, torch.float32))
    size = steps.shape[2]
    count = (
        torch.full(steps.shape[:2], size, device=steps.device) if lengths is None else lengths.clamp(0, size)
    )
    inside = (torch.arange(size, device=steps.device) < count[..., None])[..., None]
    if kind == "mean":
        summary = torch.where(inside, steps, 0).sum(dim=2) / count.clamp(min=1)[..., None]
    elif kind == "max":
        summary = steps.masked_fill(~inside, -math.inf).max(dim=2).values  # amax would share the gradient
    else:
        last = (count - 1).clamp(min=0)[..., None, None]
        summary = steps.gather(2, last.expand(*steps.shape[:2], 1, steps.shape[3])).squeeze(2)
    summary = torch.where((count > 0)[..., None], summary, 0)
    return summary.to(contents.dtype).unflatten(2, trailing)


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
    """Write T steps of every batch row into its ring buffer; return the new contents, summaries and time.

    Deprecated without a replacement function: index into the buffer instead. `time` counts the steps of the
    current episode that are already written. At a `start`, a new episode begins at slot 0. The first step of
    a chunk replaces the summary of its slot, so a summary never mixes two chunks. Other slots do not change.

    Args:
        contents: Ring buffer of M chunks of C steps.
        summaries: Summaries of its chunks.
        x: T steps to write; rounded to the dtype of `contents`.
        time: Number of steps of the current episode that are already written, for each batch row.
        start: Mask of the steps that begin an episode; none by default.
        kind: "mean", "last" or "max".
        in_place: Overwrite `contents` and `summaries`; not differentiable.
        implementation: No effect; there is one implementation.

    Raises ValueError on mismatched shapes, an unknown `kind`, or an in-place call that would lose a gradient.
    """
    _deprecate("write_steps", "indexing into the buffer")
    _check_kind(kind)
    batch, chunks, length = contents.shape[:3]
    shapes = (summaries.shape, x.shape[:1] + x.shape[2:], time.shape)
    if shapes != (contents.shape[:2] + contents.shape[3:], contents.shape[:1] + contents.shape[3:], (batch,)):
        raise ValueError(
            f"contents {tuple(contents.shape)}, summaries {tuple(summaries.shape)}, x {tuple(x.shape)} "
            f"and time {tuple(time.shape)} do not match; expected [batch, slots, steps, ...], "
            "[batch, slots, ...], [batch, time, ...] and [batch]"
        )
    if in_place and torch.is_grad_enabled() and any(t.requires_grad for t in (contents, summaries, x)):
        raise ValueError("in_place=True would lose a gradient; use torch.no_grad(), or pass in_place=False")
    dtype = torch.promote_types(torch.promote_types(contents.dtype, summaries.dtype), torch.float32)
    store, table, steps = contents.flatten(3), summaries.flatten(2).to(dtype), x.flatten(2).to(contents.dtype)
    slots, places = (torch.arange(count, device=x.device) for count in (chunks, length))
    clock = time
    for t in range(x.shape[1]):
        clock = clock if start is None else torch.where(start[:, t], 0, clock)
        slot, offset = clock // length % chunks, clock % length
        here, step = slots == slot[:, None], steps[:, t, None]
        there = here[:, :, None] & (places == offset[:, None])[:, None]
        store = torch.where(there[..., None], step[:, None], store)
        is_first, before = (offset == 0)[:, None, None], offset[:, None, None]
        if kind == "mean":
            new = (table * before + step.to(dtype)) / (before + 1)
        elif kind == "max":
            new = torch.where((step > table) | (step.isnan() & ~table.isnan()), step.to(dtype), table)
        else:
            new = step.to(dtype).expand_as(table)
        table = torch.where(here[..., None], torch.where(is_first, step.to(dtype), new), table)
        clock = clock + 1
    store, table = store.view(contents.shape), table.to(summaries.dtype).view(summaries.shape)
    if in_place:
        return contents.copy_(store), summaries.copy_(table), clock
    return (store, table, clock) if x.shape[1] else (store.clone(), table.clone(), clock.clone())


def _check_kind(kind: str) -> None:
    if kind not in ("mean", "last", "max"):
        raise ValueError(f"kind={kind!r}; choose from mean, last, max")


def _deprecate(name: str, instead: str) -> None:
    message = f"kernels.{name} is deprecated and will be removed in the next release; use {instead}"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
