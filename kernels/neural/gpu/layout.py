"""What the kernels read and what they leave, and where each of it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from scrubjay.kernels.neural.network import NetworkShape, NeuralState


class Inputs(NamedTuple):
    """What the kernels read: tokens `[B, T, H, D]` in their own dtype, all else float32 and contiguous."""

    query: Tensor
    key: Tensor
    value: Tensor
    rule: Tensor
    """Of every chunk `[R, N, .]`: step sizes and coefficients, as `_rule` lays them out."""
    weights: tuple[Tensor, ...]
    state: NeuralState
    borders: Borders


class Borders(NamedTuple):
    """What happens at the border of each chunk, `[B, N]`: bits, and the chunk whose first delta is the anchor, or -1.

    1 fresh; 2 fresh or cut; 4 its last token is skipped, so it leaves the anchor where it was; 8 its own
    anchor was left so; 16 the chunk before it left it so (for chunk 0, always); 32 the next chunk is fresh.
    """

    flags: Tensor
    source: Tensor


class Kept(NamedTuple):
    """What a forward pass leaves for its gradient: one tensor for many, so that kernels hold few addresses.

    States `[R, N + 1, 2, P]` are delta and momentum at the beginnings of chunks, then those after the last.
    """

    states: Tensor
    chunks: Tensor
    """Of every chunk `[R, N, .]`: what `Layout.kept` names."""


@dataclass(frozen=True)
class Layout:
    """Where things lie in what is kept and owed of a chunk of `length` tokens: the offset and width of each."""

    shape: NetworkShape
    length: int

    @property
    def kept(self) -> dict[str, tuple[int, int]]:
        """The hidden units' products with keys, their deltas, their products with queries; then of each token."""
        inner, width = self.shape.layers[-1]
        hidden = inner * (len(self.shape.layers) - 1)
        return self._places(
            product=hidden,
            inner=hidden,
            read=hidden,
            error=width,
            taken=1,
            squared=1,
            x_squared=1,
            inner_squared=1,
        )

    @property
    def owed(self) -> dict[str, tuple[int, int]]:
        """What reads owe, then the gradients by the hidden units' slopes and products."""
        inner, width = self.shape.layers[-1]
        hidden = inner * (len(self.shape.layers) - 1)
        return self._places(
            x_owed=inner,
            error_owed=width,
            key_owed=width,
            inner_owed=hidden,
            read_grad=hidden,
            slope_grad=hidden,
            product_grad=hidden,
        )

    @property
    def mixed(self) -> int:
        """The place of the C x C coefficients among a chunk's."""
        return _padded(6 * self.length + 3)

    def sizes(self) -> dict[str, int]:
        """Return the numbers of a chunk's rule, of what is kept of it, and of what is owed to it."""
        return {
            "RULE": _padded(self.mixed + self.length**2),
            "KEPT": _padded(_end(self.kept, self.length)),
            "OWED": _padded(_end(self.owed, self.length)),
        }

    def view(self, whole: Tensor, name: str) -> Tensor:
        """Return `[R, N, C, width]` of what is kept or owed, without a copy."""
        offset, width = (self.kept | self.owed)[name]
        return whole[..., offset : offset + self.length * width].unflatten(-1, (self.length, width))

    def _places(self, **widths: int) -> dict[str, tuple[int, int]]:
        places, offset = {}, 0
        for name, width in widths.items():
            places[name] = offset, width
            offset = _padded(offset + self.length * width)
        return places


def _end(places: dict[str, tuple[int, int]], length: int) -> int:
    return max(offset + length * width for offset, width in places.values())


def _padded(size: int) -> int:
    """Return the next multiple of 16, at which loads are aligned."""
    return -(-size // 16) * 16


def new_kept(inputs: Inputs, layout: Layout) -> Kept:
    """Return room for what a forward pass leaves."""
    rows, count, _ = inputs.rule.shape
    new = inputs.rule.new_empty
    return Kept(new(rows, count + 1, 2, layout.shape.size), new(rows, count, layout.sizes()["KEPT"]))
