"""Rotary positions of a language model, put exactly where a policy wants them.

Rotations compose (RoFormer, Su et al. 2021, arXiv 2104.09864), so what a model has turned to one position is
turned to another by the difference. A model takes angles in float32: at a million tokens they are off by up
to
0.06, and scores by a per cent (StreamingLLM's streams are longer). Here the difference to the wanted angle is
taken in float64, from the very float32 angle that the model took, so that what a policy stores is exact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 256
"""Slots by which what is made of them in advance grows."""


@dataclass(frozen=True)
class Layout:
    """Which of a head's first coordinates are turned together."""

    pairs: int
    """How many pairs there are."""
    neighbours: bool = False
    """Whether a pair is (2 i, 2 i + 1), else (i, i + pairs)."""


class Turn:
    """What turns tokens, each of a head's pairs of coordinates by an angle of its own.

    Args:
        cos: Of the angles.
        sin: Of the angles.
        layout: Which coordinates are turned.
    """

    def __init__(
        self,
        cos: Float[Tensor, "batch heads length pairs"],
        sin: Float[Tensor, "batch heads length pairs"],
        layout: Layout,
    ) -> None:
        self._layout = layout
        self._cos, self._sin = self._by_coordinate(cos, cos), self._by_coordinate(-sin, sin)

    @property
    def length(self) -> int:
        """Tokens that it turns."""
        return self._cos.shape[2]

    def first(self, length: int) -> Turn:
        """Return what turns the first tokens."""
        own = copy.copy(self)
        own._cos, own._sin = self._cos[:, :, :length], self._sin[:, :, :length]
        return own

    def by_heads(self, counts: Sequence[int]) -> Turn:
        """Return what turns one token's heads: the first so many as the first of `length` was, and so on."""
        own = copy.copy(self)
        for name in ("_cos", "_sin"):
            places = getattr(self, name).unbind(dim=2)
            parts = [place.expand(-1, heads, -1) for place, heads in zip(places, counts, strict=True)]
            setattr(own, name, torch.cat(parts, dim=1)[:, :, None])
        return own

    def __call__(
        self, x: Float[Tensor, "batch heads length width"]
    ) -> Float[Tensor, "batch heads length width"]:
        """Return `x` with its pairs of coordinates turned; the others stay."""
        pairs = self._layout.pairs
        if not pairs:
            return x
        cos, sin, moved = self._cos.to(x.dtype), self._sin.to(x.dtype), x[..., : 2 * pairs]
        if x.shape[2] == 1:
            # Of one token calls are what costs, of many it is the memory that is taken for a moment.
            partner = moved.roll(pairs, -1)
            if self._layout.neighbours:
                partner = moved.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
            turned = torch.addcmul(moved * cos, partner, sin)
        else:
            turned = moved * cos
            (left, right), (down, up) = self._halves(moved), self._halves(sin)
            for half, other, by in zip(self._halves(turned), (right, left), (down, up), strict=True):
                half.addcmul_(other, by)
        return turned if x.shape[-1] == 2 * pairs else torch.cat([turned, x[..., 2 * pairs :]], dim=-1)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return pairs' first and second coordinates."""
        if self._layout.neighbours:
            return x[..., ::2], x[..., 1::2]
        pairs = self._layout.pairs
        return x[..., :pairs], x[..., pairs:]

    def _by_coordinate(self, first: Tensor, second: Tensor) -> Tensor:
        """Return numbers of pairs' first and second coordinates as these lie in a head."""
        if self._layout.neighbours:
            return torch.stack([first, second], dim=-1).flatten(-2)
        return torch.cat([first, second], dim=-1)


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
        # Of which frequencies, and what moves to the first positions.
        self._slots: tuple[Tensor, Turn] | None = None

    def turn(self, given: Int[Tensor, "batch length"], wanted: Int[Tensor, "batch length"]) -> Turn:
        """Return what moves tokens that the model put at positions `given` to `wanted`."""
        # As the model does it, in the model's precision.
        taken = given[..., None].float() * self._frequencies().to(given.device, torch.float32)
        angle = self.angle(wanted) - taken.double()
        return self._turn(angle)

    def move(self, by: Int[Tensor, "batch length"]) -> Turn:
        """Return what moves tokens that lie at exact positions `by` positions on."""
        return self._turn(self.angle(by))

    def in_order(self, columns: int, device: torch.device) -> Turn:
        """Return what moves tokens from position 0 to slots in order, made in advance."""
        made_of = self._frequencies()
        if self._slots is None or self._slots[0] is not made_of or self._slots[1].length < columns:
            places = torch.arange(-(-columns // BLOCK) * BLOCK, device=device)
            self._slots = made_of, self.move(places[None])
        return self._slots[1].first(columns)

    def _turn(self, angle: Tensor) -> Turn:
        cos, sin = angle.cos()[:, None].to(self._dtype), angle.sin()[:, None].to(self._dtype)
        return Turn(cos, sin, self.layout)

    def angle(self, position: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length pairs"]:
        """Return the exact angles of positions."""
        return position[..., None].double() * self._frequencies().to(position.device, torch.float64)
