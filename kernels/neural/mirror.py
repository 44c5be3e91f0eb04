"""From what steps add up in to the weights that a neural memory's network has: the mirror of its descent.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.2. What is learned adds up in
a dual theta, a memory is born with a learned one, and its weights are mirror(theta), of each matrix by
itself. Inside a chunk they move as theta does, W = mirror(anchor) + theta - anchor, which keeps a chunk's
closed form; at its end they are mirrored anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Identity:
    """Weights are what adds up, as in Titans."""

    def weights(self, dual: Float[Tensor, "*heads In Out"]) -> Float[Tensor, "*heads In Out"]:
        """Return the dual as it is."""
        return dual


@dataclass(frozen=True)
class QNorm:
    """W = theta / norm_q(theta)^(q - 2), so that norm_q(W) = norm_q(theta)^(3 - q).

    Raises ValueError on a q below 2 or without an end.
    """

    q: float = 4.0

    def __post_init__(self) -> None:
        if not 2 <= self.q < math.inf:
            raise ValueError(f"q={self.q}: must be at least 2, and finite")

    def weights(self, dual: Float[Tensor, "*heads In Out"]) -> Float[Tensor, "*heads In Out"]:
        """Return the dual divided."""
        if self.q == 2:
            return dual
        # Powers of what is at most 1: those of large weights would overflow. Nothing is left as it is.
        largest = dual.detach().abs().amax((-1, -2), keepdim=True)
        largest = torch.where(largest > 0, largest, 1)
        powers = (dual / largest).abs().pow(self.q).sum((-1, -2), keepdim=True)
        norm = largest * torch.where(powers > 0, powers, 1).pow(1 / self.q)
        return dual * norm.pow(2 - self.q)


@dataclass(frozen=True)
class Simplex:
    """W = c softmax(n theta / c) over the n that lead to one output: positive weights that sum up to c.

    So theta is c / n of the weights' logarithms, and where these are alike it moves them as far as itself.

    Raises ValueError on a total that is not positive and finite, or an unknown word.
    """

    total: float = 1.0
    """c."""
    forgets_to: Literal["born", "uniform"] = "born"
    """Where weights go that are not written: to those a memory was born with, or to equal ones."""

    def __post_init__(self) -> None:
        if not 0 < self.total < math.inf:
            raise ValueError(f"total={self.total}: must be positive, and finite")
        if self.forgets_to not in ("born", "uniform"):
            raise ValueError(f"forgets_to={self.forgets_to!r}; choose from born, uniform")

    def weights(self, dual: Float[Tensor, "*heads In Out"]) -> Float[Tensor, "*heads In Out"]:
        """Return the distributions, times c."""
        return self.total * torch.softmax(dual * (dual.shape[-2] / self.total), dim=-2)


Mirror = Identity | QNorm | Simplex


def forgets_all(mirror: Mirror) -> bool:
    """Return whether the whole dual fades, and not only what was learned on top of the newborn's."""
    return isinstance(mirror, Simplex) and mirror.forgets_to == "uniform"
