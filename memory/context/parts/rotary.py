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
from jaxtyping import Complex, Float, Int
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

    def together(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return `x` with each pair's coordinates side by side."""
        return x if self.neighbours or not self.pairs else self._swapped(x, 2, self.pairs)

    def apart(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return `x`, whose pairs lie side by side, as the model lays them."""
        return x if self.neighbours or not self.pairs else self._swapped(x, self.pairs, 2)

    def _swapped(self, x: Tensor, *sizes: int) -> Tensor:
        moved = x[..., : 2 * self.pairs].unflatten(-1, sizes).mT.flatten(-2)
        return torch.cat([moved, x[..., 2 * self.pairs :]], dim=-1)


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


class Spin:
    """What turns tokens whose pairs of coordinates are to lie side by side: each pair is a complex number.

    So many tokens are turned three times as fast as where a pair's coordinates lie apart; and what only meets
    what was brought together alike, as queries and keys do, may lie so.

    Args:
        by: Numbers of modulus 1, whose angles are those of pairs.
        layout: How pairs lie in what the model gives.
    """

    def __init__(self, by: Complex[Tensor, "*batch pairs"], layout: Layout) -> None:
        self._by, self._layout = by, layout

    def together(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return `x`, as the model gives it, turned, and its pairs brought together."""
        pairs, neighbours = self._layout.pairs, self._layout.neighbours
        if neighbours or not pairs:
            return self(x)
        moved = x[..., : 2 * pairs].to(torch.promote_types(x.dtype, torch.float32))
        return self._turned(torch.complex(moved[..., :pairs], moved[..., pairs:]), x)

    def __call__(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return `x`, whose pairs lie together, turned; the other coordinates stay."""
        pairs = self._layout.pairs
        if not pairs:
            return x
        moved = x[..., : 2 * pairs].to(torch.promote_types(x.dtype, torch.float32))
        if x.shape[-1] % 2:  # no view has complex numbers that begin anywhere
            moved = moved.contiguous()
        return self._turned(torch.view_as_complex(moved.view(*x.shape[:-1], pairs, 2)), x)

    def part(self, first: int, last: int) -> Spin:
        """Return what turns tokens from `first` to `last`."""
        return Spin(self._by[..., first:last, :], self._layout)

    def by_heads(self, counts: Sequence[int]) -> Spin:
        """Return what turns one token's heads: the first so many as the first token was, and so on."""
        places = self._by.unbind(dim=2)
        parts = [place.expand(-1, heads, -1) for place, heads in zip(places, counts, strict=True)]
        return Spin(torch.cat(parts, dim=1)[:, :, None], self._layout)

    def _turned(self, moved: Complex[Tensor, "*batch pairs"], x: Tensor) -> Tensor:
        turned = torch.view_as_real(moved * self._by).flatten(-2).to(x.dtype)
        if turned.shape[-1] == x.shape[-1]:
            return turned
        return torch.cat([turned, x[..., turned.shape[-1] :]], dim=-1)


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
        # Of which frequencies, how many, and what moves to the first positions.
        self._slots: tuple[Tensor, int, Spin] | None = None

    def turn(self, given: Int[Tensor, "batch length"], wanted: Int[Tensor, "batch length"]) -> Turn:
        """Return what moves tokens that the model put at positions `given` to `wanted`."""
        return self._turn(self._on_from(given, wanted))

    def move(self, by: Int[Tensor, "batch length"]) -> Turn:
        """Return what moves tokens that lie at exact positions `by` positions on."""
        return self._turn(self.angle(by))

    def spin(self, given: Int[Tensor, "batch length"], wanted: Int[Tensor, "batch length"]) -> Spin:
        """Return what moves as `turn` does, and brings pairs together."""
        return self._spin(self._on_from(given, wanted))

    def spin_by(self, by: Int[Tensor, "batch length"]) -> Spin:
        """Return what moves as `move` does tokens whose pairs lie together."""
        return self._spin(self.angle(by))

    def in_order(self, columns: int, device: torch.device) -> Spin:
        """Return what moves columns from position 0 to slots in order, made in advance."""
        made_of = self._frequencies()
        if self._slots is None or self._slots[0] is not made_of or self._slots[1] < columns:
            made = -(-columns // BLOCK) * BLOCK
            # What is made in inference mode no gradient may meet outside of it.
            with torch.inference_mode(False):
                spin = self.spin_by(torch.arange(made, device=device)[None])
            self._slots = made_of, made, spin
        return self._slots[2].part(0, columns)

    def _turn(self, angle: Float[Tensor, "batch length pairs"]) -> Turn:
        cos, sin = angle.cos()[:, None].to(self._dtype), angle.sin()[:, None].to(self._dtype)
        return Turn(cos, sin, self.layout)

    def _spin(self, angle: Float[Tensor, "batch length pairs"]) -> Spin:
        by = torch.polar(torch.ones_like(angle), angle)[:, None]
        return Spin(by.to(torch.complex128 if self._dtype == torch.float64 else torch.complex64), self.layout)

    def _on_from(self, given: Int[Tensor, "batch length"], wanted: Int[Tensor, "batch length"]) -> Tensor:
        """Return the angles from where the model put tokens to where they are wanted."""
        # As the model does it, in the model's precision.
        taken = given[..., None].float() * self._frequencies().to(given.device, torch.float32)
        return self.angle(wanted) - taken.double()

    def angle(self, position: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length pairs"]:
        """Return the exact angles of positions."""
        return position[..., None].double() * self._frequencies().to(position.device, torch.float64)
