"""Attentional biases: losses that a neural memory minimises, by their gradient at the network's output.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.1. The error e is the
network's output for a key, less the key's value. Titans minimises |e|^2 / 2. The loss |e|_p^p has no factor
of 1 / 2, so at p = 2 its steps are twice as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

# Smoothing of the absolute value of an error near zero, as in the paper.
_SMOOTH = 1e-6


@dataclass(frozen=True)
class SquaredError:
    """Squared error |e|^2 / 2, the loss of Titans."""

    def gradient(
        self, error: Float[Tensor, "*tokens D"], threshold: Float[Tensor, "*tokens 1"] | None
    ) -> Float[Tensor, "*tokens D"]:
        """Return the error."""
        return error


@dataclass(frozen=True)
class Power:
    """Power loss |e|_p^p with the smoothed gradient p tanh(a e) (e^2 + 1e-6)^((p - 1) / 2).

    Raises ValueError if the exponent is below 1, the sharpness is not positive, or either is not finite.
    """

    exponent: float = 3.0
    """Exponent p."""
    sharpness: float = 10.0
    """Slope a of tanh(a e), which replaces the sign of the error; not used at p = 2."""

    def __post_init__(self) -> None:
        if not 1 <= self.exponent < math.inf:
            raise ValueError(f"exponent={self.exponent}: must be at least 1 and finite")
        if not 0 < self.sharpness < math.inf:
            raise ValueError(f"sharpness={self.sharpness}: must be positive and finite")

    def gradient(
        self, error: Float[Tensor, "*tokens D"], threshold: Float[Tensor, "*tokens 1"] | None
    ) -> Float[Tensor, "*tokens D"]:
        """Return the gradient, coordinate by coordinate."""
        if self.exponent == 2:
            return 2 * error
        sign, size = torch.tanh(self.sharpness * error), error.square() + _SMOOTH
        return self.exponent * sign * size ** ((self.exponent - 1) / 2)


@dataclass(frozen=True)
class Huber:
    """Huber loss: |e|^2 / 2 up to a threshold d per token, and linear beyond, so the gradient is at most d.

    Raises ValueError on an unknown measure.
    """

    measure: Literal["norm", "coordinate"] = "norm"
    """Quantity compared with the threshold: the norm of the error, or each coordinate."""

    def __post_init__(self) -> None:
        if self.measure not in ("norm", "coordinate"):
            raise ValueError(f"measure={self.measure!r}; choose from norm, coordinate")

    def gradient(
        self, error: Float[Tensor, "*tokens D"], threshold: Float[Tensor, "*tokens 1"] | None
    ) -> Float[Tensor, "*tokens D"]:
        """Return the error, clipped to its token's threshold."""
        assert threshold is not None
        if self.measure == "coordinate":
            return torch.minimum(torch.maximum(error, -threshold), threshold)
        # Errors below the threshold are not divided, because their norm may be zero.
        squared_norm = error.square().sum(-1, keepdim=True)
        exceeds = squared_norm > threshold.square()
        scale = torch.where(exceeds, threshold, 1) * torch.where(exceeds, squared_norm, 1).rsqrt()
        return torch.where(exceeds, scale, 1) * error


Bias = SquaredError | Power | Huber
