"""Rotary positions of a language model, put exactly where a policy wants them.

Rotations compose (RoFormer, Su et al. 2021, arXiv 2104.09864), so what a model has turned to one position is
turned to another by the difference. A model takes angles in float32: at a million tokens they are off by up
to
0.06, and scores by a per cent (StreamingLLM's streams are longer). Here the difference to the wanted angle is
taken in float64, from the very float32 angle that the model took, so that what a policy stores is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which of a head's first coordinates are turned together."""

    pairs: int
    """How many pairs there are."""
    neighbours: bool = False
    """Whether a pair is (2 i, 2 i + 1), else (i, i + pairs)."""


class Turn(NamedTuple):
    """Cosines and sines by which tokens are turned, in each of a head's pairs of coordinates."""

    cos: Float[Tensor, "batch 1 length pairs"]
    sin: Float[Tensor, "batch 1 length pairs"]
    layout: Layout

    def __call__(
        self, x: Float[Tensor, "batch heads length width"]
    ) -> Float[Tensor, "batch heads length width"]:
        """Return `x` with its pairs of coordinates turned; the others stay."""
        if not self.layout.pairs:
            return x
        moved, still = x.split([2 * self.layout.pairs, x.shape[-1] - 2 * self.layout.pairs], dim=-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        left, right = (
            moved.unflatten(-1, (-1, 2)).unbind(-1) if self.layout.neighbours else moved.chunk(2, dim=-1)
        )
        turned = [torch.addcmul(left * cos, right, sin, value=-1), torch.addcmul(right * cos, left, sin)]
        if self.layout.neighbours:
            turned = [torch.stack(turned, dim=-1).flatten(-2)]
        return torch.cat([*turned, still] if still.shape[-1] else turned, dim=-1)


class Rotary:
    """The rotary positions of a model's layers that are turned alike.

    Args:
        layout: Which coordinates are turned; none at all in layers without positions.
        frequencies: Returns the angles of one position, "pairs", as they are now: a model may be moved.
        dtype: Of what turns.
    """

    def __init__(self, layout: Layout, frequencies: Callable[[], Tensor], dtype: torch.dtype) -> None:
        self.layout = layout
        self._frequencies, self._dtype = frequencies, dtype

    def turn(self, given: Int[Tensor, "batch length"], wanted: Int[Tensor, "batch length"]) -> Turn:
        """Return what moves tokens that the model put at positions `given` to `wanted`."""
        # As the model does it, in the model's precision.
        taken = given[..., None].float() * self._frequencies().to(given.device, torch.float32)
        angle = self.angle(wanted) - taken.double()
        return self._turn(angle)

    def move(self, by: Int[Tensor, "batch length"]) -> Turn:
        """Return what moves tokens that lie at exact positions `by` positions on."""
        return self._turn(self.angle(by))

    def _turn(self, angle: Tensor) -> Turn:
        cos, sin = angle.cos()[:, None].to(self._dtype), angle.sin()[:, None].to(self._dtype)
        return Turn(cos, sin, self.layout)

    def angle(self, position: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length pairs"]:
        """Return the exact angles of positions."""
        return position[..., None].double() * self._frequencies().to(position.device, torch.float64)
