"""Moneta: a neural memory with an l_p loss whose weights are normalised by a q-norm.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3, equations 24 and 25:

    A_t = alpha_t A_{t-1} - eta_t gradient(|M(k_t) - v_t|_p^p),    W_t = A_t / norm_q(A_t)^(q - 2),

for each weight matrix separately; the paper uses p = 3 and q = 4. The larger A is, the less a step changes W.

Differences, besides those in `memory/miras/family.py`: with p = 2 there is no sign to smooth, and the
gradient is exact. Weights start with a norm of 1, where W = A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scrubjay.kernels import Learning, Power, QNorm
from scrubjay.memory.miras.family import Miras, MirasConfig


@dataclass(frozen=True)
class MonetaConfig(MirasConfig):
    """Configuration of `Moneta`. Raises ValueError on an invalid value."""

    exponent: float = 3.0
    """Exponent p of the errors in the loss."""
    sharpness: float = 10.0
    """Sharpness of the smooth sign of an error; unused at p = 2."""
    q: float = 4.0
    """Order q of the norm that divides the weights; 2 disables the division."""

    @property
    def learning(self) -> Learning:
        """Loss and weight parametrization of the networks."""
        return Learning("gelu", Power(self.exponent, self.sharpness), QNorm(self.q))

    def build_initial_weights(self) -> list[Tensor]:
        """Return the layers' untrained dual weights."""
        duals = [torch.randn(self.heads, a, b) for a, b in self.layer_widths]
        return [x / torch.linalg.vector_norm(x, self.q, dim=(-1, -2), keepdim=True) for x in duals]

    def build(self) -> Moneta:
        """Return a freshly initialised memory."""
        return Moneta(self)


class Moneta(Miras):
    """Stack of feed-forward layers and neural memories with norm-divided weights.

    State: the entries of `Miras`, for the dual weights.
    """
