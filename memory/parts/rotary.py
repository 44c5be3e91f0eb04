"""Rotary positions (Su et al. 2021, arXiv 2104.09864): the time rotates pairs of a head's coordinates."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor


def rotary_frequencies(width: int) -> Float[Tensor, " {width//2}"]:
    """Return the angle, in radians per step, of each coordinate pair; `width` must be even."""
    exponent = torch.arange(width // 2, dtype=torch.float64) * (-2 / max(width, 1))
    return torch.exp(exponent * math.log(10_000.0))


def rotate(
    x: Float[Tensor, "batch time heads width"],
    time: Int[Tensor, "#batch time"],
    frequencies: Float[Tensor, " pairs"],
) -> Float[Tensor, "batch time heads width"]:
    """Return `x` with coordinate pairs (i, i + width / 2) rotated by `time` steps."""
    # float64, since a float32 angle has an error of 0.1 after a million steps.
    angle = time[..., None].double() * frequencies.double()
    cos, sin = angle.cos().to(x.dtype)[:, :, None], angle.sin().to(x.dtype)[:, :, None]
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, left * sin + right * cos], dim=-1)


def build_sine_weights(
    weight: Float[Tensor, "heads width dim"], rotary_dim: int
) -> Float[Tensor, "heads width dim"]:
    """Return projection weights for the sine term of `rotate`.

    A rotated projection is the sum of two products: the projection by `weight` times the cosines, and the
    projection by the returned weights times the sines. `rotary_dim` coordinates of each head are rotated.
    """
    left, right, still = weight.split([rotary_dim // 2, rotary_dim // 2, weight.shape[1] - rotary_dim], dim=1)
    return torch.cat([-right, left, torch.zeros_like(still)], dim=1)


def compute_cos_sin(
    time: Int[Tensor, "*batch"], frequencies: Float[Tensor, " pairs"], width: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "*batch {width}"], Float[Tensor, "*batch {width}"]]:
    """Return the cosine and sine of each coordinate of a head; coordinates without rotation get 1 and 0."""
    angle = time[..., None].double() * frequencies.double()
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    still = (*time.shape, width - 2 * len(frequencies))
    return torch.cat([cos, cos, cos.new_ones(still)], -1), torch.cat([sin, sin, sin.new_zeros(still)], -1)


def interleave_pairs(
    heads: int, width: int, rotary_dim: int
) -> tuple[Int[Tensor, " dim"], Int[Tensor, " dim"]]:
    """Return the permutation that places rotating pairs next to each other, and its inverse.

    In this layout `rotate_pairs` rotates heads of an even width with one complex multiplication.
    """
    place, half = torch.arange(width), rotary_dim // 2
    pair_order = torch.stack([place[:half], place[half:rotary_dim]], dim=1).flatten()
    within = torch.cat([pair_order, place[rotary_dim:]])
    pairs = (torch.arange(heads)[:, None] * width + within).flatten()
    return pairs, pairs.argsort()


def build_complex_rotations(
    pairs: Int[Tensor, " dim"], cos: Float[Tensor, "*times width"], sin: Float[Tensor, "*times width"]
) -> Complex[Tensor, "*times half"]:
    """Return the complex rotation factors of pairs from the cosines and sines of one head."""
    first = pairs[: cos.shape[-1] : 2]
    return torch.complex(cos[..., first], sin[..., first])


def rotate_pairs(
    x: Float[Tensor, "*steps width"],
    rotation: Complex[Tensor, "*times half"],
    out: Float[Tensor, "*steps width"],
) -> None:
    """Rotate the interleaved coordinate pairs of `x`, and write the result to `out`."""
    x, out = (torch.view_as_complex(part.unflatten(-1, (-1, 2))) for part in (x, out))
    torch.mul(x, rotation, out=out)
