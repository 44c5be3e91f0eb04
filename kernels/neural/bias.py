"""Attentional biases: the losses that a neural memory minimizes. Each class computes a loss gradient.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.1. The error e is the
network's output for a key, minus the key's value. Titans minimizes |e|^2 / 2. The loss |e|_p^p has no factor
of 1 / 2, so at p = 2 its steps are twice as long as those of Titans.
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
        self, error: Float[Tensor, "*tokens D"], threshold: Float[Tensor, "*tokens #D"] | None
    ) -> Float[Tensor, "*tokens D"]:
        """Return the gradient of the loss, which is the error itself."""
        return error


@dataclass(frozen=True)
class Power:
    """Power loss |e|_p^p of the error e, with a smoothed gradient.

    With exponent p and sharpness a, the gradient is p tanh(a e) (e^2 + 1e-6)^((p - 1) / 2).

    Raises:
        ValueError: If the exponent is below 1, the sharpness is not positive, or either is not finite.
    """

    exponent: float = 3.0
    """Exponent p of the loss."""
    sharpness: float = 10.0
    """Slope a of tanh(a e), which replaces the sign of the error e; not used at p = 2."""

    def __post_init__(self) -> None:
        if not 1 <= self.exponent < math.inf:
            raise ValueError(f"exponent={self.exponent}: must be at least 1 and finite")
        if not 0 < self.sharpness < math.inf:
            raise ValueError(f"sharpness={self.sharpness}: must be positive and finite")

    def gradient(
        self, error: Float[Tensor, "*tokens D"], threshold: Float[Tensor, "*tokens #D"] | None
    ) -> Float[Tensor, "*tokens D"]:
        """Return the gradient of the loss, computed separately for each coordinate of the error."""
        if self.exponent == 2:
            return 2 * error
        sign, size = torch.tanh(self.sharpness * error), error.square() + _SMOOTH
        return self.exponent * sign * size ** ((self.exponent - 1) / 2)


@dataclass(frozen=True)
class Huber:
    """Huber loss of the error e: |e|^2 / 2 up to a threshold per token, and linear beyond it.

    So the gradient is at most the threshold.

    Raises:
        ValueError: On an unknown `measure`.
    """

    measure: Literal["norm", "coordinate"] = "norm"
    """Quantity compared with the threshold: the norm of the error, or each coordinate."""

    def __post_init__(self) -> None:
        if self.measure not in ("norm", "coordinate"):
            raise ValueError(f"measure={self.measure!r}; choose from norm, coordinate")

    def gradient(
        self, error: Float[Tensor, "*tokens D"], threshold: Float[Tensor, "*tokens #D"] | None
    ) -> Float[Tensor, "*tokens D"]:
        """Return the gradient of the loss: the error, clipped to the threshold of its token."""
        assert threshold is not None
        if self.measure == "coordinate":
            return torch.minimum(torch.maximum(error, -threshold), threshold)
        # Errors below the threshold are not divided, because their norm may be zero.
        squared_norm = error.square().sum(-1, keepdim=True)
        exceeds = squared_norm > threshold.square()
        scale = torch.where(exceeds, threshold, 1) * torch.where(exceeds, squared_norm, 1).rsqrt()
        return torch.where(exceeds, scale, 1) * error


Bias = SquaredError | Power | Huber
