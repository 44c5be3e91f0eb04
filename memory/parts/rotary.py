"""Rotary positions (Su et al. 2021, arXiv 2104.09864): a head's coordinates, in pairs, turned by the time."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor


def rotary_frequencies(width: int) -> Float[Tensor, " {width//2}"]:
    """Return the angle per step of each pair of `width` coordinates, an even number."""
    exponent = torch.arange(width // 2, dtype=torch.float64) * (-2 / max(width, 1))
    return torch.exp(exponent * math.log(10_000.0))


def rotate(
    x: Float[Tensor, "batch time heads width"],
    time: Int[Tensor, "#batch time"],
    frequencies: Float[Tensor, " pairs"],
) -> Float[Tensor, "batch time heads width"]:
    """Return `x` with coordinate pairs (i, i + width / 2) turned by `time` steps."""
    # float64, since at a million steps a float32 angle is off by a tenth.
    angle = time[..., None].double() * frequencies.double()
    cos, sin = angle.cos().to(x.dtype)[:, :, None], angle.sin().to(x.dtype)[:, :, None]
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


def across(weight: Float[Tensor, "heads width dim"], rotated: int) -> Float[Tensor, "heads width dim"]:
    """Return the weights of what the sine of the time is multiplied with; `rotated` places of a head turn.

    A product with these beside that with `weight` gives both parts of `rotate` at once.
    """
    left, right, still = weight.split([rotated // 2, rotated // 2, weight.shape[1] - rotated], dim=1)
    return torch.cat([-right, left, torch.zeros_like(still)], dim=1)


def turns(
    time: Int[Tensor, "*batch"], frequencies: Float[Tensor, " pairs"], width: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "*batch {width}"], Float[Tensor, "*batch {width}"]]:
    """Return cosines and sines of a time for every place of a head of `width`; still places have 1 and 0."""
    angle = time[..., None].double() * frequencies.double()
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    still = (*time.shape, width - 2 * len(frequencies))
    return torch.cat([cos, cos, cos.new_ones(still)], -1), torch.cat([sin, sin, sin.new_zeros(still)], -1)


def in_pairs(heads: int, width: int, rotated: int) -> tuple[Int[Tensor, " dim"], Int[Tensor, " dim"]]:
    """Return where coordinates come from if those that turn together lie side by side, and the way back.

    So laid out, `heads` of an even width are turned by one complex product, `turn_pairs`.
    """
    place, half = torch.arange(width), rotated // 2
    turned = torch.stack([place[:half], place[half:rotated]], dim=1).flatten()
    within = torch.cat([turned, place[rotated:]])
    pairs = (torch.arange(heads)[:, None] * width + within).flatten()
    return pairs, pairs.argsort()


def complex_turns(
    pairs: Int[Tensor, " dim"], cos: Float[Tensor, "*times width"], sin: Float[Tensor, "*times width"]
) -> Complex[Tensor, "*times half"]:
    """Return what turns pairs, of what `turns` returns for one head."""
    first = pairs[: cos.shape[-1] : 2]
    return torch.complex(cos[..., first], sin[..., first])


def turn_pairs(
    x: Float[Tensor, "*steps width"], turn: Complex[Tensor, "*times half"], out: Float[Tensor, "*steps width"]
) -> None:
    """Write `x`, in pairs, turned."""
    x, out = (torch.view_as_complex(part.unflatten(-1, (-1, 2))) for part in (x, out))
    torch.mul(x, turn, out=out)
