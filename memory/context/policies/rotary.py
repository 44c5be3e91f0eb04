"""Rotate keys and queries of a language model exactly to the positions that a policy chooses.

Rotations compose (RoFormer, Su et al. 2021, arXiv 2104.09864): a rotation by the difference of two angles
moves a vector from one position to another. Models compute angles in float32. At position one million, the
error of an angle is up to 0.06 radians, and the error of an attention score is about one percent.
StreamingLLM reads texts that are even longer. This module takes the model's own float32 angle and computes
the difference to the exact target angle in float64. The stored keys are therefore exact.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

BLOCK = 256
"""Number of positions by which the precomputed rotation grows."""


@dataclass(frozen=True)
class PairLayout:
    """Order of the rotated coordinate pairs, which are the first coordinates of a head."""

    pairs: int
    """Number of coordinate pairs of a head that are rotated."""
    is_interleaved: bool = False
    """True if pair i has the coordinates 2 i and 2 i + 1, False if it has coordinates i and i + `pairs`."""

    def interleave(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Reorder the coordinates of `x` from the model's layout to interleaved rotary pairs."""
        return x if self.is_interleaved or not self.pairs else self._transpose_pairs(x, 2, self.pairs)

    def deinterleave(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Reorder the coordinates of `x` from interleaved rotary pairs to the model's layout."""
        return x if self.is_interleaved or not self.pairs else self._transpose_pairs(x, self.pairs, 2)

    def _transpose_pairs(self, x: Tensor, *sizes: int) -> Tensor:
        pairs = x[..., : 2 * self.pairs].unflatten(-1, sizes).mT.flatten(-2)
        return torch.cat([pairs, x[..., 2 * self.pairs :]], dim=-1)


class Rotation:
    """Rotation of vectors in the model's layout, with a separate angle for each pair of coordinates.

    Args:
        cos: Cosines of the angles.
        sin: Sines of the angles.
        layout: Layout of the pairs.
    """

    def __init__(
        self,
        cos: Float[Tensor, "batch heads length pairs"],
        sin: Float[Tensor, "batch heads length pairs"],
        layout: PairLayout,
    ) -> None:
        self._layout = layout
        self._cos, self._sin = self._expand_pairs(cos, cos), self._expand_pairs(-sin, sin)

    def expand_to_heads(self, counts: Sequence[int]) -> Rotation:
        """Return a rotation for a single token, with different angles for different groups of heads.

        Group i has the next `counts[i]` heads and gets the angles that this object has for token i.
        """
        own = copy.copy(self)
        own._cos, own._sin = (_expand_to_heads(x, counts) for x in (self._cos, self._sin))
        return own

    def __call__(
        self, x: Float[Tensor, "batch heads length width"]
    ) -> Float[Tensor, "batch heads length width"]:
        """Rotate the coordinate pairs of `x`; coordinates outside the pairs are unchanged."""
        pairs = self._layout.pairs
        if not pairs:
            return x
        cos, sin, paired_x = self._cos.to(x.dtype), self._sin.to(x.dtype), x[..., : 2 * pairs]
        if x.shape[2] == 1:
            # For one token the number of operations dominates, for many the temporary memory.
            partner = paired_x.roll(pairs, -1)
            if self._layout.is_interleaved:
                partner = paired_x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
            out = torch.addcmul(paired_x * cos, partner, sin)
        else:
            out = paired_x * cos
            (left, right), (down, up) = self._split_pairs(paired_x), self._split_pairs(sin)
            for half, other, by in zip(self._split_pairs(out), (right, left), (down, up), strict=True):
                half.addcmul_(other, by)
        return out if x.shape[-1] == 2 * pairs else torch.cat([out, x[..., 2 * pairs :]], dim=-1)

    def _split_pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first and the second coordinates of all pairs."""
        if self._layout.is_interleaved:
            return x[..., ::2], x[..., 1::2]
        pairs = self._layout.pairs
        return x[..., :pairs], x[..., pairs:]

    def _expand_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """Join the first and the second coordinates of all rotary pairs to a vector in the layout of a
        head."""
        if self._layout.is_interleaved:
            return torch.stack([first, second], dim=-1).flatten(-2)
        return torch.cat([first, second], dim=-1)


class PairedRotation:
    """Rotation of interleaved pairs, where each pair is one complex number.

    For many tokens this class is three times as fast as `Rotation`. Attention scores do not change if queries
    and keys are both interleaved.

    Args:
        by: Complex numbers of modulus 1 with the angles of the pairs.
        layout: The model's layout of pairs.
    """

    def __init__(self, by: Complex[Tensor, "*batch pairs"], layout: PairLayout) -> None:
        self._by, self._layout = by, layout

    def interleave_and_rotate(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Convert `x` from the model's layout to interleaved pairs, and rotate it."""
        pairs, is_interleaved = self._layout.pairs, self._layout.is_interleaved
        if is_interleaved or not pairs:
            return self(x)
        paired_x = x[..., : 2 * pairs].to(torch.promote_types(x.dtype, torch.float32))
        return self._rotate(torch.complex(paired_x[..., :pairs], paired_x[..., pairs:]), x)

    def __call__(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Rotate the interleaved pairs of `x`; coordinates outside the pairs are unchanged."""
        pairs = self._layout.pairs
        if not pairs:
            return x
        paired_x = x[..., : 2 * pairs].to(torch.promote_types(x.dtype, torch.float32))
        if x.shape[-1] % 2:  # complex views need an even offset
            paired_x = paired_x.contiguous()
        return self._rotate(torch.view_as_complex(paired_x.view(*x.shape[:-1], pairs, 2)), x)

    def slice_tokens(self, first: int, last: int) -> PairedRotation:
        """Return the rotation of the tokens from `first` to `last`, `last` excluded."""
        return PairedRotation(self._by[..., first:last, :], self._layout)

    def expand_to_heads(self, counts: Sequence[int]) -> PairedRotation:
        """Return a rotation for a single token, with different angles for different groups of heads.

        Group i has the next `counts[i]` heads and gets the angles that this object has for token i.
        """
        return PairedRotation(_expand_to_heads(self._by, counts), self._layout)

    def _rotate(self, complex_pairs: Complex[Tensor, "*batch pairs"], x: Tensor) -> Tensor:
        out = torch.view_as_real(complex_pairs * self._by).flatten(-2).to(x.dtype)
        if out.shape[-1] == x.shape[-1]:
            return out
        return torch.cat([out, x[..., out.shape[-1] :]], dim=-1)


def _expand_to_heads(angles: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the values of token i for the next `counts[i]` heads."""
    places = angles.unbind(dim=2)
    parts = [place.expand(-1, heads, -1) for place, heads in zip(places, counts, strict=True)]
    return torch.cat(parts, dim=1)[:, :, None]


class Rotary:
    """Rotary positions (RoPE) that one or more model layers share.

    Args:
        layout: Layout of the pairs; 0 pairs for layers without positions.
        frequencies: Function without arguments that returns the frequency of each pair, in radians per
            position. Each new rotation calls this function, since the model may move to another device.
        dtype: Data type of cosines and sines.
        sign: Direction of the rotation, 1 or -1; -1 for models that rotate the other way, such as NanoChat.
    """

    def __init__(
        self, layout: PairLayout, frequencies: Callable[[], Tensor], dtype: torch.dtype, sign: int = 1
    ) -> None:
        self.layout, self._sign = layout, sign
        self._frequencies, self._dtype = frequencies, dtype
        # The frequencies, the number of slots, and the rotation to the first positions.
        self._slots: tuple[Tensor, int, PairedRotation] | None = None

    def make_rotation(
        self, position_ids: Int[Tensor, "batch length"] | None, targets: Int[Tensor, "batch length"]
    ) -> Rotation:
        """Return the rotation from the model's `position_ids` to the positions `targets`.

        If `position_ids` is None, the rotation starts at position 0, where this class has put the vectors.
        """
        angle = self._angle_difference(position_ids, targets)[:, None]
        return Rotation(angle.cos().to(self._dtype), angle.sin().to(self._dtype), self.layout)

    def make_paired_rotation(
        self, position_ids: Int[Tensor, "batch length"] | None, targets: Int[Tensor, "batch length"]
    ) -> PairedRotation:
        """Return the rotation of `make_rotation` for interleaved pairs."""
        angle = self._angle_difference(position_ids, targets)[:, None]
        by = torch.polar(torch.ones_like(angle), angle)
        dtype = torch.complex128 if self._dtype == torch.float64 else torch.complex64
        return PairedRotation(by.to(dtype), self.layout)

    def make_slot_rotation(self, columns: int, device: torch.device) -> PairedRotation:
        """Return a precomputed rotation of `columns` keys that moves key i from position 0 to position i."""
        frequencies = self._frequencies()
        if self._slots is None or self._slots[0] is not frequencies or self._slots[1] < columns:
            count = -(-columns // BLOCK) * BLOCK
            # Tensors created in inference mode cannot take part in gradients outside of it.
            with torch.inference_mode(False):
                spin = self.make_paired_rotation(None, torch.arange(count, device=device)[None])
            self._slots = frequencies, count, spin
        return self._slots[2].slice_tokens(0, columns)

    def _angle_difference(
        self, position_ids: Int[Tensor, "batch length"] | None, targets: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length pairs"]:
        """Return the angles, in radians, of the rotation from positions `position_ids` to `targets`.

        The angles of `targets` are exact. The angles of `position_ids` are rounded as in the model, so that
        the rotation undoes the model's own rotation.
        """
        angles = self.compute_angles(targets)
        if position_ids is None:
            return angles
        # The model's own angle, in the model's precision.
        frequencies = self._frequencies().to(position_ids.device, torch.float32)
        return angles - self._sign * (position_ids[..., None].float() * frequencies).double()

    def compute_angles(self, position: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length pairs"]:
        """Return the rotary angles at `position` in radians, as float64."""
        frequencies = self._frequencies().to(position.device, torch.float64)
        return self._sign * position[..., None].double() * frequencies
