"""Attention at slot positions: what is read stands in a row without gaps, whatever lay between in the text.

Keys are kept at exact positions and are turned to their slots when they are read, so no error adds up and no
distance exceeds what is read, however long the text (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import Step


def unturn(x: Float[Tensor, "batch heads length width"], step: Step) -> Tensor:
    """Return new keys or queries turned to position 0, their pairs of coordinates side by side."""
    origin = step.once("origin", lambda: step.rotary.spin(step.given, torch.zeros_like(step.given)))
    return origin.together(x)


def to_slots(
    keys: Float[Tensor, "batch key_heads columns width"], slots: Int[Tensor, "batch columns"], step: Step
) -> Tensor:
    """Return keys of position 0 at their slots, which are one after the other where none has no slot.

    `slots` is the same object in every layer, and negative for what nobody reads.
    """
    if not _gaps(slots, step):
        return step.once("move", lambda: step.rotary.in_order(slots.shape[1], slots.device))(keys)
    return step.once("move", lambda: step.rotary.spin_by(slots.clamp(min=0)))(keys)


def place(x: Float[Tensor, "batch heads length width"], slots: Tensor, step: Step) -> Tensor:
    """Return new keys or queries at their slots, the last of `slots`, their pairs side by side."""
    new = slots[:, -step.length :]
    return step.once("place", lambda: step.rotary.spin(step.given, new.clamp(min=0))).together(x)


def attend_at_slots(
    query: Float[Tensor, "batch heads length width"],
    keys: Float[Tensor, "batch key_heads columns width"],
    values: Float[Tensor, "batch key_heads columns value_width"],
    slots: Int[Tensor, "batch columns"],
    step: Step,
    scoring: Scoring,
) -> tuple[
    Float[Tensor, "batch heads length value_width"], Float[Tensor, "batch key_heads shared length columns"]
]:
    """Return what new tokens read of what is kept and of themselves, the last columns; and their weights.

    Args:
        query: Of the new tokens, at their slots, pairs of coordinates side by side.
        keys: Of all columns, likewise.
        values: Theirs.
        slots: Of all columns, negative for what nobody reads, the same object in every layer.
        step: The new tokens as a step.
        scoring: What the model does to scores.
    """
    batch, heads, length, width = query.shape
    groups, columns = keys.shape[1:3]
    grouped = query.reshape(batch * groups, -1, width)
    products = torch.bmm(grouped, keys.flatten(0, 1).mT).view(batch, groups, heads // groups, length, columns)
    hidden = None
    if length > 1 or _gaps(slots, step):
        hidden = step.once("hidden", lambda: _hidden(slots, slots[:, -length:]))
    weights = scoring.weights(products, hidden)
    out = torch.bmm(weights.to(values.dtype).reshape(batch * groups, -1, columns), values.flatten(0, 1))
    return out.view(batch, heads, length, -1), weights


def _gaps(slots: Int[Tensor, "batch columns"], step: Step) -> bool:
    return step.padded and step.once("gaps", lambda: bool((slots < 0).any()))


def _hidden(slots: Int[Tensor, "batch columns"], new: Int[Tensor, "batch length"]) -> Tensor:
    """Return which columns each new token does not read.

    Padding reads itself, as a softmax must read something.
    """
    hidden = (slots[:, None, :] > new[:, :, None]) | (slots < 0)[:, None, :]
    column = torch.arange(slots.shape[1], device=slots.device)
    own = column == column[-new.shape[1] :, None]
    return (hidden & ~own)[:, None, None]
