"""Attention at slot positions: what is read stands in one row without gaps, whatever lay between in the text.

Keys are kept turned to position 0 and are turned to their slots when they are read, so no error adds up and
no distance exceeds what is read, however long the text (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import Held, Step


def unturn(keys: Float[Tensor, "batch key_heads length width"], step: Step) -> Tensor:
    """Return new keys turned to position 0."""
    return step.once("origin", lambda: step.rotary.turn(step.given, torch.zeros_like(step.given)))(keys)


def attend_at_slots(
    query: Float[Tensor, "batch heads length width"],
    keys: Float[Tensor, "batch key_heads length width"],
    values: Float[Tensor, "batch key_heads length value_width"],
    held: Held | None,
    slots: Int[Tensor, "batch columns"],
    step: Step,
    scoring: Scoring,
) -> tuple[
    Float[Tensor, "batch heads length value_width"], Float[Tensor, "batch key_heads shared length columns"]
]:
    """Return what new tokens read of `held`, whose keys are unturned, and of themselves; and their weights.

    Args:
        query: Of the new tokens, as the model turned them.
        keys: Theirs.
        values: Theirs.
        held: What is kept; None for nothing.
        slots: Of held and new columns, negative for what nobody reads, the same object in every layer.
        step: The new tokens as a step.
        scoring: What the model does to scores.
    """
    count = 0 if held is None else held.keys.shape[2]
    new = slots[:, count:]
    place = step.once("place", lambda: step.rotary.turn(step.given, new.clamp(min=0)))
    query, keys = place(query), place(keys)
    if held is not None:
        move = step.once("move", lambda: step.rotary.move(slots[:, :count].clamp(min=0)))
        keys = torch.cat([move(held.keys), keys], dim=2)
        values = torch.cat([held.values, values], dim=2)
    batch, heads, length, width = query.shape
    groups = keys.shape[1]
    products = (query.reshape(batch, groups, -1, width) @ keys.mT).unflatten(2, (heads // groups, length))
    hidden = None
    if length > 1 or step.once("any hidden", lambda: bool((slots < 0).any())):
        hidden = step.once("hidden", lambda: _hidden(slots, new))
    weights = scoring.weights(products, hidden)
    out = weights.to(values.dtype).flatten(2, 3) @ values
    return out.unflatten(2, (heads // groups, length)).flatten(1, 2), weights


def _hidden(slots: Int[Tensor, "batch columns"], new: Int[Tensor, "batch length"]) -> Tensor:
    """Return which columns each new token does not read.

    Padding reads itself, as a softmax must read something.
    """
    hidden = (slots[:, None, :] > new[:, :, None]) | (slots < 0)[:, None, :]
    column = torch.arange(slots.shape[1], device=slots.device)
    own = column == column[-new.shape[1] :, None]
    return (hidden & ~own)[:, None, None]
