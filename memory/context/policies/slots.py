"""Attention at slot positions: the tokens that are read get consecutive positions (slots) without gaps.

Stored keys are rotated to position 0. Every read rotates the keys from position 0 to their slots, so rounding
errors do not accumulate. In a text of any length, no distance exceeds the number of tokens read
(StreamingLLM, Xiao et al. 2023, arXiv 2309.17453).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.memory.context.policies.base import Step
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.rotary import PairedRotation


def rotate_to_origin(x: Float[Tensor, "batch heads length width"], step: Step) -> Tensor:
    """Rotate new keys or queries to position 0; the result has interleaved pairs."""
    origin = step.compute_once(
        "origin",
        lambda: step.rotary.make_paired_rotation(step.position_ids, torch.zeros_like(step.position_ids)),
    )
    return origin.interleave_and_rotate(x)


def rotate_to_slots(
    keys: Float[Tensor, "batch key_heads columns width"], slots: Int[Tensor, "batch columns"], step: Step
) -> Tensor:
    """Rotate keys from position 0 to the positions `slots`.

    Every layer must pass the same tensor object as `slots`, because all layers share one rotation. A negative
    position marks a token that is not read.
    """

    def make_rotation() -> PairedRotation:
        if _has_gaps(slots, step):
            return step.rotary.make_paired_rotation(None, slots.clamp(min=0))
        return step.rotary.make_slot_rotation(slots.shape[1], slots.device)

    return step.compute_once("move", make_rotation)(keys)


def rotate_new_to_slots(x: Float[Tensor, "batch heads length width"], slots: Tensor, step: Step) -> Tensor:
    """Rotate new keys or queries to the last positions in `slots`; the result has interleaved pairs."""
    new = slots[:, -step.length :]
    return step.compute_once(
        "place", lambda: step.rotary.make_paired_rotation(step.position_ids, new.clamp(min=0))
    ).interleave_and_rotate(x)


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
    """Return the attention output and the attention weights of the new tokens.

    The new tokens are the last ones in `keys`, `values` and `slots`.

    Args:
        query: Queries of the new tokens, rotated to their positions in `slots`, with interleaved pairs.
        keys: Keys of all tokens, rotated to the positions `slots`, with interleaved pairs.
        values: Values of all tokens.
        slots: Positions of all tokens, negative for tokens that are not read. Every layer must pass the same
            tensor object.
        step: Sizes and positions of the new tokens, shared by all layers.
        scoring: The model's scale, soft cap and learned sinks.
    """
    batch, heads, length, width = query.shape
    groups, columns = keys.shape[1:3]
    grouped_query = query.reshape(batch * groups, -1, width)
    products = torch.bmm(grouped_query, keys.flatten(0, 1).mT).view(
        batch, groups, heads // groups, length, columns
    )
    hidden = None
    if length > 1 or _has_gaps(slots, step):
        hidden = step.compute_once("hidden", lambda: _hidden(slots, slots[:, -length:]))
    weights = scoring.compute_weights(products, hidden)
    out = torch.bmm(weights.to(values.dtype).reshape(batch * groups, -1, columns), values.flatten(0, 1))
    return out.view(batch, heads, length, -1), weights


def _has_gaps(slots: Int[Tensor, "batch columns"], step: Step) -> bool:
    return step.padded and step.compute_once("gaps", lambda: bool((slots < 0).any()))


def _hidden(slots: Int[Tensor, "batch columns"], new: Int[Tensor, "batch length"]) -> Tensor:
    """Return the mask of tokens that each new token does not read.

    A padding token reads itself, since a softmax needs at least one token.
    """
    hidden = (slots[:, None, :] > new[:, :, None]) | (slots < 0)[:, None, :]
    column = torch.arange(slots.shape[1], device=slots.device)
    own = column == column[-new.shape[1] :, None]
    return (hidden & ~own)[:, None, None]


def contiguous_slice(valid: Bool[Tensor, " tokens"]) -> slice | None:
    """Return the slice of the valid tokens if they are contiguous, otherwise None."""
    positions = valid.nonzero().flatten()
    first, last = (int(positions[0]), int(positions[-1]) + 1) if len(positions) else (0, 0)
    return slice(first, last) if last - first == len(positions) else None
