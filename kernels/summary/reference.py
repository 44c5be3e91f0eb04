"""The definition of chunk summaries: one chunk, and of a ring one step, at a time.

Letters as in `chunk_summary`.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Kind = Literal["mean", "last", "max"]


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype in which steps are added: theirs, or float32 if that is wider."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _larger(best: Tensor, other: Tensor) -> Tensor:
    """Return the maximum, the first of equals or of NaN."""
    return torch.where((other > best) | (other.isnan() & ~best.isnan()), other, best)


def summarise(
    contents: Float[Tensor, "B M C D"], lengths: Int[Tensor, "B M"] | None, kind: Kind
) -> Float[Tensor, "B M D"]:
    """Return the summaries, one chunk at a time."""
    batch, chunks, length, width = contents.shape
    steps = contents.to(accumulation_dtype(contents))
    out = []
    for b in range(batch):
        for m in range(chunks):
            count = length if lengths is None else max(0, min(int(lengths[b, m]), length))
            summary = steps.new_zeros(width)
            for c in range(count):
                step = steps[b, m, c]
                if kind == "mean":
                    summary = summary + step / count
                elif kind == "last" or c == 0:
                    summary = step
                else:
                    summary = _larger(summary, step)
            out.append(summary)
    if not out:
        return contents.new_zeros(batch, chunks, width)
    return torch.stack(out).view(batch, chunks, width).to(contents.dtype)


def write(
    contents: Float[Tensor, "B M C D"],
    summaries: Float[Tensor, "B M D"],
    x: Float[Tensor, "B T D"],
    time: Int[Tensor, " B"],
    start: Bool[Tensor, "B T"] | None,
    kind: Kind,
) -> tuple[Float[Tensor, "B M C D"], Float[Tensor, "B M D"], Int[Tensor, " B"]]:
    """Return contents, summaries and time after the steps `x`, written one at a time.

    Args:
        contents: The ring's chunks.
        summaries: Of each of them.
        x: The steps to write, in the dtype of `contents`.
        time: Steps of the episode written before.
        start: Where a step begins an episode.
        kind: What a summary is.
    """
    batch, chunks, length, _ = contents.shape
    dtype = accumulation_dtype(contents, summaries)
    places = [[list(chunk.unbind()) for chunk in row.unbind()] for row in contents.unbind()]
    summary = [list(row.to(dtype).unbind()) for row in summaries.unbind()]
    clock = time.tolist()
    for b in range(batch):
        for t in range(x.shape[1]):
            if start is not None and start[b, t]:
                clock[b] = 0
            slot, offset = clock[b] // length % chunks, clock[b] % length
            places[b][slot][offset] = x[b, t]
            step, old = x[b, t].to(dtype), summary[b][slot]
            if offset == 0 or kind == "last":
                summary[b][slot] = step
            elif kind == "mean":
                summary[b][slot] = (old * offset + step) / (offset + 1)
            else:
                summary[b][slot] = _larger(old, step)
            clock[b] += 1
    if batch == 0:
        return contents.clone(), summaries.clone(), time.clone()
    written = torch.stack([torch.stack([torch.stack(chunk) for chunk in row]) for row in places])
    summarised = torch.stack([torch.stack(row) for row in summary]).to(summaries.dtype)
    return written, summarised, torch.tensor(clock, dtype=time.dtype, device=time.device)
