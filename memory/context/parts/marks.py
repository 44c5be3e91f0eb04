"""Marks: behind its value stands which token it is, and so a policy's own tensors tell what it keeps.

A policy moves values and drops them, and chooses by queries and keys; it need not know of marks, nor say
where it has put what. Behind a value's coordinates stand its token's place in the text as digits that all
precisions hold exactly, and a one if it is among the text's first tokens: of that coordinate a query reads
the share of its attention that these get.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FIRST = 4
"""Tokens at a text's beginning whose share of attention is told: as many as models are content with as sinks
(StreamingLLM, Xiao et al. 2023, arXiv 2309.17453)."""
_BASE = 256
"""Of the digits: whole numbers so far are exact in bfloat16."""
_DIGITS = 3
MARKS = _DIGITS + 1
"""Coordinates behind a value's own."""


class LayerKept(NamedTuple):
    """What one layer keeps of a text, by head and token."""

    held: Bool[Tensor, "batch key_heads tokens"]
    """Whether it can still be read, or fetched and read."""
    read: Bool[Tensor, "batch key_heads tokens"]
    """Whether the last token read it."""
    fetched: Bool[Tensor, "batch key_heads tokens"]
    """Whether it was chosen to be read, where others that are held were passed over."""
    to_first: Float[Tensor, "batch heads"]
    """The share of the last token's attention that the first tokens got."""


def marked(
    values: Float[Tensor, "batch key_heads length width"], time: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch key_heads length wider"]:
    """Return values with marks behind them, of padding (`time` below 0) zeros."""
    place = (time + 1).clamp(min=0)
    digits = [place // _BASE**digit % _BASE for digit in range(_DIGITS)]
    first = (time >= 0) & (time < FIRST)
    marks = torch.stack([*digits, first.long()], dim=-1).to(values.dtype)
    return torch.cat([values, marks[:, None].expand(-1, values.shape[1], -1, -1)], dim=-1)


def tokens_of(
    values: Float[Tensor, "batch key_heads columns wider"], count: int
) -> Bool[Tensor, "batch key_heads tokens"]:
    """Return which of a text's first `count` tokens are among marked values, zeros being none."""
    digits = values[..., -MARKS : -MARKS + _DIGITS].float().round().long()
    place = (digits * torch.tensor([_BASE**digit for digit in range(_DIGITS)], device=values.device)).sum(-1)
    # What was cropped may lie in spare room still.
    place = place.masked_fill(place > count, 0)
    found = torch.zeros(*place.shape[:2], count + 1, dtype=torch.bool, device=values.device)
    return found.scatter_(2, place, True)[..., 1:]
