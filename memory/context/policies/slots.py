"""Attention at slot positions: what is read stands in one row without gaps, whatever lay between in the text.

Keys are kept turned to position 0 and are turned to their slots when they are read, so no error adds up and
no distance exceeds what is read, however long the text (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.memory.context.parts.rotary import Turn
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import Step


def unturn(keys: Float[Tensor, "batch key_heads length width"], step: Step) -> Tensor:
    """Return new keys turned to position 0."""
    return step.once("origin", lambda: step.rotary.turn(step.given, torch.zeros_like(step.given)))(keys)


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
        query: Of the new tokens, as the model turned them.
        keys: Of all columns, turned to position 0.
        values: Theirs.
        slots: Of all columns, negative for what nobody reads, the same object in every layer.
        step: The new tokens as a step.
        scoring: What the model does to scores.
    """
    new = slots[:, -step.length :]
    query = step.once("place", lambda: step.rotary.turn(step.given, new.clamp(min=0)))(query)
    gaps = step.once("gaps", lambda: bool((slots < 0).any()))
    keys = step.once("move", lambda: _moved(slots, gaps, step))(keys)
    batch, heads, length, width = query.shape
    groups, columns = keys.shape[1:3]
    grouped = query.reshape(batch * groups, -1, width)
    products = torch.bmm(grouped, keys.flatten(0, 1).mT).view(batch, groups, heads // groups, length, columns)
    hidden = None
    if length > 1 or gaps:
        hidden = step.once("hidden", lambda: _hidden(slots, new))
    weights = scoring.weights(products, hidden)
    out = torch.bmm(weights.to(values.dtype).reshape(batch * groups, -1, columns), values.flatten(0, 1))
    return out.view(batch, heads, length, -1), weights


def _moved(slots: Int[Tensor, "batch columns"], gaps: bool, step: Step) -> Turn:
    """Return what moves columns to their slots, which are one after the other where none has no slot."""
    if gaps:
        return step.rotary.move(slots.clamp(min=0))
    return step.rotary.in_order(slots.shape[1], slots.device)


def _hidden(slots: Int[Tensor, "batch columns"], new: Int[Tensor, "batch length"]) -> Tensor:
    """Return which columns each new token does not read.

    Padding reads itself, as a softmax must read something.
    """
    hidden = (slots[:, None, :] > new[:, :, None]) | (slots < 0)[:, None, :]
    column = torch.arange(slots.shape[1], device=slots.device)
    own = column == column[-new.shape[1] :, None]
    return (hidden & ~own)[:, None, None]
