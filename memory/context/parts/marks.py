"""Token marks: extra coordinates of a value vector that identify the token of the vector.

A policy needs no code for marks. It moves and evicts whole value vectors, and it selects tokens only by
queries and keys. So the marks in a policy's tensors show which tokens the policy retains.

The first marks are the token's index in the text, as digits that are exact in every precision. The last mark
is 1 for the first tokens of the text and 0 for all other tokens. The attention output at the last mark is the
share of attention that the first tokens receive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FIRST = 4
"""Number of first tokens whose share of attention is measured: enough sinks for most models (StreamingLLM,
Xiao et al. 2023, arXiv 2309.17453)."""
_BASE = 256
"""Base of the digits: integers up to 256 are exact in bfloat16."""
_DIGITS = 3
MARKS = _DIGITS + 1
"""Number of coordinates added to a value."""


class RetainedTokens(NamedTuple):
    """Masks of the tokens that one layer retains, by head and token."""

    stored_mask: Bool[Tensor, "batch key_heads tokens"]
    """Tokens that can still be read, offloaded ones included."""
    read_mask: Bool[Tensor, "batch key_heads tokens"]
    """Tokens that the last token attended to."""
    fetched_mask: Bool[Tensor, "batch key_heads tokens"]
    """Tokens that the policy selected by score for the last token; all False without such a selection."""
    first_share: Float[Tensor, "batch heads"]
    """Share of the last token's attention that the first 4 tokens of the text received."""


def add_marks(
    values: Float[Tensor, "batch key_heads length width"], time: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch key_heads length wider"]:
    """Append to each value vector the extra coordinates (marks) that identify its token.

    The marks of padding (`time` below 0) are zeros.
    """
    place = (time + 1).clamp(min=0)
    digits = [place // _BASE**digit % _BASE for digit in range(_DIGITS)]
    first = (time >= 0) & (time < FIRST)
    marks = torch.stack([*digits, first.long()], dim=-1).to(values.dtype)
    return torch.cat([values, marks[:, None].expand(-1, values.shape[1], -1, -1)], dim=-1)


def find_tokens(
    values: Float[Tensor, "batch key_heads columns wider"], count: int
) -> Bool[Tensor, "batch key_heads tokens"]:
    """Return a mask of the first `count` tokens of a text, for each key head.

    The mask is True for a token if a vector in `values` belongs to the token. The last coordinates of a
    vector are the marks from `add_marks`, which identify its token. A zero vector belongs to no token.
    """
    digits = values[..., -MARKS : -MARKS + _DIGITS].float().round().long()
    place = (digits * torch.tensor([_BASE**digit for digit in range(_DIGITS)], device=values.device)).sum(-1)
    # Cropped tokens may remain in unused capacity.
    place = place.masked_fill(place > count, 0)
    is_present = torch.zeros(*place.shape[:2], count + 1, dtype=torch.bool, device=values.device)
    return is_present.scatter_(2, place, True)[..., 1:]
