"""Mirror maps of neural memories: from the dual, which accumulates the steps, to the network's weights.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.2. The steps accumulate in a
dual theta, whose initial value is a trained parameter. The weights are W = mirror(theta), for each matrix
separately. Inside a chunk W = mirror(anchor) + theta - anchor, where the anchor is theta at the chunk's
start. This keeps the closed form of a chunk. At the end of the chunk, the mirror map is applied again.
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
    """Identity map: the weights are the dual, as in Titans."""

    def weights(self, dual: Float[Tensor, "*heads In Out"]) -> Float[Tensor, "*heads In Out"]:
        """Return the dual itself as the weights."""
        return dual


@dataclass(frozen=True)
class QNorm:
    """Map from the dual theta to W = theta / norm_q(theta)^(q - 2), so norm_q(W) = norm_q(theta)^(3 - q).

    Raises:
        ValueError: If q is below 2 or not finite.
    """

    q: float = 4.0

    def __post_init__(self) -> None:
        if not 2 <= self.q < math.inf:
            raise ValueError(f"q={self.q}: must be at least 2 and finite")

    def weights(self, dual: Float[Tensor, "*heads In Out"]) -> Float[Tensor, "*heads In Out"]:
        """Return the dual, divided by norm_q(dual)^(q - 2)."""
        if self.q == 2:
            return dual
        # Scaled to at most 1 first, because powers of large weights would overflow. A dual of zeros stays
        # zero.
        largest = dual.detach().abs().amax((-1, -2), keepdim=True)
        largest = torch.where(largest > 0, largest, 1)
        powers = (dual / largest).abs().pow(self.q).sum((-1, -2), keepdim=True)
        norm = largest * torch.where(powers > 0, powers, 1).pow(1 / self.q)
        return dual * norm.pow(2 - self.q)


@dataclass(frozen=True)
class Simplex:
    """Map from the dual theta to positive weights W = c softmax(n theta / c), which sum to c.

    The softmax runs over the n inputs of each output. So theta is c / n times the log of W, up to a constant.
    If the weights of an output are equal, a small change of theta changes W by the same amount, minus the
    mean of the change over the inputs.

    Raises:
        ValueError: If `total` is not positive and finite, or on an unknown `forgets_to`.
    """

    total: float = 1.0
    """Sum c of the weights of one output."""
    forgets_to: Literal["born", "uniform"] = "born"
    """Limit of the weights under forgetting: the initial weights ("born"), or equal weights ("uniform")."""

    def __post_init__(self) -> None:
        if not 0 < self.total < math.inf:
            raise ValueError(f"total={self.total}: must be positive and finite")
        if self.forgets_to not in ("born", "uniform"):
            raise ValueError(f"forgets_to={self.forgets_to!r}; choose from born, uniform")

    def weights(self, dual: Float[Tensor, "*heads In Out"]) -> Float[Tensor, "*heads In Out"]:
        """Return W = c softmax(n dual / c), with the softmax over the n inputs and c = `total`."""
        return self.total * torch.softmax(dual * (dual.shape[-2] / self.total), dim=-2)


Mirror = Identity | QNorm | Simplex


def forgets_all(mirror: Mirror) -> bool:
    """Return True if retention decays the whole dual, not only its difference from the initial dual."""
    return isinstance(mirror, Simplex) and mirror.forgets_to == "uniform"
