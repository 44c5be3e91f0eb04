"""What a neural memory minimises, told by its gradient at the network's output: the attentional bias.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.1, where e is what the network
says of a key less the key's value. Titans squares it, with a half; here |e|_p^p comes without one, so that at
p = 2 its steps are twice as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

# Below this an error's absolute value is no longer its own: the smooth one of the paper.
_SMOOTH = 1e-6


@dataclass(frozen=True)
class Squared:
    """|e|^2 / 2."""

    def gradient(
        self, error: Float[Tensor, "*tokens D"], threshold: Float[Tensor, "*tokens 1"] | None
    ) -> Float[Tensor, "*tokens D"]:
        """Return the error as it is."""
        return error


@dataclass(frozen=True)
class Power:
    """|e|_p^p, smooth where an odd p is not: p tanh(a e) (e^2 + 1e-6)^((p - 1) / 2).

    Raises ValueError on an exponent below 1 or a sharpness that is not positive, or on one without an end.
    """

    exponent: float = 3.0
    """p."""
    sharpness: float = 10.0
    """a, which says how soon the sign of an error is told; at p = 2, where there is none, of no use."""

    def __post_init__(self) -> None:
        if not 1 <= self.exponent < math.inf:
            raise ValueError(f"exponent={self.exponent}: must be at least 1, and finite")
        if not 0 < self.sharpness < math.inf:
            raise ValueError(f"sharpness={self.sharpness}: must be positive, and finite")

    def gradient(
        self, error: Float[Tensor, "*tokens D"], threshold: Float[Tensor, "*tokens 1"] | None
    ) -> Float[Tensor, "*tokens D"]:
        """Return the gradient, of each coordinate by itself."""
        if self.exponent == 2:
            return 2 * error
        sign, size = torch.tanh(self.sharpness * error), error.square() + _SMOOTH
        return self.exponent * sign * size ** ((self.exponent - 1) / 2)


@dataclass(frozen=True)
class Huber:
    """|e|^2 / 2 up to a threshold d of the token, and linear beyond: no token pulls harder than d.

    Raises ValueError on an unknown measure.
    """

    measure: Literal["norm", "coordinate"] = "norm"
    """What is held against the threshold: the error's length, or each coordinate."""

    def __post_init__(self) -> None:
        if self.measure not in ("norm", "coordinate"):
            raise ValueError(f"measure={self.measure!r}; choose from norm, coordinate")

    def gradient(
        self, error: Float[Tensor, "*tokens D"], threshold: Float[Tensor, "*tokens 1"] | None
    ) -> Float[Tensor, "*tokens D"]:
        """Return the error, shortened to its token's threshold."""
        assert threshold is not None
        if self.measure == "coordinate":
            return torch.minimum(torch.maximum(error, -threshold), threshold)
        # Where an error is not shortened nothing is divided, by a length of zero or of infinity.
        squared = error.square().sum(-1, keepdim=True)
        beyond = squared > threshold.square()
        shortened = torch.where(beyond, threshold, 1) * torch.where(beyond, squared, 1).rsqrt()
        return torch.where(beyond, shortened, 1) * error


Bias = Squared | Power | Huber
