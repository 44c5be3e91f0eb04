"""Chunk summaries in vectorised torch, and where the steps of a segment go in a ring.

Letters as in `chunk_summary`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.summary.reference import Kind, accumulation_dtype


def summarise(contents: Tensor, lengths: Tensor | None, kind: Kind) -> Tensor:
    """Return the summaries `[B, M, D]` of contents `[B, M, C, D]`."""
    inside = None
    if lengths is not None:
        inside = torch.arange(contents.shape[2], device=contents.device) < lengths[..., None]
    return _summary_of(contents, inside, kind).to(contents.dtype)


def _summary_of(
    steps: Float[Tensor, "*batch W D"],
    inside: Bool[Tensor, "*batch W"] | None,
    kind: Kind,
    count: Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch D"]:
    """Summarise the steps `inside`, all of them for None. A mean's sum is divided by `count` if given."""
    dtype = accumulation_dtype(steps)
    if kind == "mean":
        if inside is None:
            return steps.mean(dim=-2, dtype=dtype)
        count = inside.sum(dim=-1) if count is None else count
        total = torch.where(inside[..., None], steps, 0).sum(dim=-2, dtype=dtype)
        return total / count.clamp(min=1)[..., None]
    if kind == "max":
        masked = steps if inside is None else steps.masked_fill(~inside[..., None], -math.inf)
        # Not amax, which shares the gradient among equal maxima.
        summary = masked.max(dim=-2).values
    elif inside is None:
        summary = steps.select(-2, -1).clone()
    else:
        position = torch.arange(steps.shape[-2], device=steps.device)
        final = torch.where(inside, position, 0).amax(dim=-1)[..., None, None]
        summary = steps.gather(-2, final.expand(*steps.shape[:-2], 1, steps.shape[-1])).squeeze(-2)
    summary = summary.to(dtype)
    return summary if inside is None else torch.where(inside.any(dim=-1, keepdim=True), summary, 0)


class Plan(NamedTuple):
    """Where the steps of a segment go, and which slots they touch."""

    time: Int[Tensor, "B"]
    """Steps of the episode after the segment."""
    slot: Int[Tensor, "B T"]
    offset: Int[Tensor, "B T"]
    touched: Int[Tensor, "B N"]
    """Distinct slots, among them every one that is written to."""
    last: Int[Tensor, "B N"]
    """The last step written to each, -1 for none. The slot's present chunk is the one this step belongs
    to."""
    end: Int[Tensor, "B N"]
    """The offset of that step."""
    source: Int[Tensor, "B N C"] | None
    """The step that ends in each place of the touched slots, -1 for none; None if T is 1."""
    survives: Bool[Tensor, "B T"] | None
    """Whether no later step is written over this one; None if all survive."""


def plan_writes(time: Tensor, start: Tensor | None, steps: int, chunks: int, length: int) -> Plan:
    """Return where `steps` steps go that follow `time` in a ring of `chunks` chunks of `length`."""
    if steps == 1:
        clock = time[:, None] if start is None else torch.where(start, 0, time[:, None])
        clock = clock.long()
        slot, offset, after = clock // length % chunks, clock % length, (clock[:, 0] + 1).to(time.dtype)
        return Plan(after, slot, offset, slot, torch.zeros_like(slot), offset, None, None)
    batch = time.shape[0]
    step = torch.arange(steps, device=time.device).expand(batch, steps)
    clock = time.long()[:, None] + step
    if start is not None:
        # The step each episode of the segment was born at, instead of cummax, which ONNX lacks.
        episode = start.long().cumsum(dim=1)
        births = step.new_zeros(batch, steps + 1).scatter(1, torch.where(start, episode, 0), step)
        clock = torch.where(episode == 0, clock, step - births.gather(1, episode))
    slot, offset = clock // length % chunks, clock % length
    none = torch.full((1, 1), -1, device=time.device)
    # The steps before the first start touch a run of slots, all later ones together a run from slot 0 on.
    most = min(chunks, steps, (steps + 2 * length - 3) // length + 1)
    last, touched = (
        none.expand(batch, chunks).scatter_reduce(1, slot, step, "amax").topk(most, dim=1, sorted=False)
    )
    entries = torch.arange(most, device=time.device).expand(batch, most)
    entry = slot.new_zeros(batch, chunks).scatter(1, touched, entries).gather(1, slot)
    place = entry * length + offset
    source = none.expand(batch, most * length).scatter_reduce(1, place, step, "amax")
    survives = source.gather(1, place) == step
    end = offset.gather(1, last.clamp(min=0))
    after = (clock[:, -1] + 1).to(time.dtype)
    return Plan(after, slot, offset, touched, last, end, source.unflatten(1, (most, length)), survives)


def write(
    contents: Tensor, summaries: Tensor, x: Tensor, time: Tensor, start: Tensor | None, kind: Kind
) -> tuple[Tensor, Tensor, Tensor]:
    """Return contents, summaries and time after a segment.

    Args: those of `reference.write`.
    """
    chunks, length = contents.shape[1:3]
    plan = plan_writes(time, start, x.shape[1], chunks, length)
    rows = rows_of(plan, chunks, length)
    # Filled and added to, not copied to: of several steps for one place all but the last add zero, and the
    # derivative is a gather.
    written = contents.flatten(0, 2).index_fill(0, rows, 0)
    written = written.index_add_(0, rows, surviving(x, plan).flatten(0, 1))
    index, new = new_summaries(summaries, x, plan, kind, length)
    return written.view(contents.shape), summaries.scatter(1, index, new), plan.time


def rows_of(plan: Plan, chunks: int, length: int) -> Int[Tensor, " places"]:
    """Return each step's row in the contents seen as one table of steps."""
    batch = torch.arange(plan.slot.shape[0], device=plan.slot.device)[:, None]
    return ((batch * chunks + plan.slot) * length + plan.offset).flatten()


def surviving(x: Tensor, plan: Plan) -> Tensor:
    """Return the steps, with zeros for those that a later one is written over."""
    return x if plan.survives is None else torch.where(plan.survives[..., None], x, 0)


def new_summaries(
    summaries: Tensor, x: Tensor, plan: Plan, kind: Kind, length: int
) -> tuple[Int[Tensor, "B N D"], Float[Tensor, "B N D"]]:
    """Return the touched slots and their summaries after the segment."""
    steps, width = x.shape[1:]
    index = plan.touched[..., None].expand(-1, -1, width)
    old = summaries.gather(1, index)
    window = min(steps, length)
    step = plan.last[..., None] + torch.arange(1 - window, 1, device=x.device)
    inside = (step >= (plan.last - plan.end).clamp(min=0)[..., None]) & (plan.last >= 0)[..., None]
    fetched = x.gather(1, step.clamp(min=0).flatten(1)[..., None].expand(-1, -1, width))
    fetched = fetched.unflatten(1, (-1, window))
    # Steps of a slot's present chunk that were written before this segment: their summary stands for them.
    carried = (plan.end - plan.last).clamp(min=0)
    dtype = accumulation_dtype(x, summaries)
    before = old.to(dtype) * carried[..., None] if kind == "mean" else old.to(dtype)
    steps_seen = torch.cat([before[:, :, None], fetched.to(dtype)], dim=2)
    inside = torch.cat([(carried > 0)[..., None], inside], dim=2)
    new = _summary_of(steps_seen, inside, kind, plan.end + 1).to(summaries.dtype)
    return index, torch.where((plan.last >= 0)[..., None], new, old)
