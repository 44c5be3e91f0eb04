"""Moneta: a neural memory that minimises a power of its errors, and whose weights keep a norm in check.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3, equations 24 and 25:

    A_t = alpha_t A_{t-1} - eta_t gradient(|M(k_t) - v_t|_p^p),    W_t = A_t / norm_q(A_t)^(q - 2),

for each weight matrix by itself, p = 3 and q = 4 in its experiments. Where A grows its steps turn W the less.

Where it differs, beside what `memory/miras/family.py` says: with p = 2 there is no sign to be made smooth and
the gradient is exact; weights are born with a norm of 1, where W = A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scrubjay.kernels import Learning, Power, QNorm
from scrubjay.memory.miras.family import Miras, MirasConfig


@dataclass(frozen=True)
class MonetaConfig(MirasConfig):
    """Sizes of `Moneta`. Raises ValueError on one that cannot work."""

    exponent: float = 3.0
    """p, of the errors."""
    sharpness: float = 10.0
    """How soon the sign of an error is told, where p asks for it."""
    q: float = 4.0
    """Of the norm by which weights are divided; at 2 they are not."""

    @property
    def learning(self) -> Learning:
        """What a network minimises and its weights are."""
        return Learning("gelu", Power(self.exponent, self.sharpness), QNorm(self.q))

    def newborn(self) -> list[Tensor]:
        """Return what the layers' duals are before any training."""
        duals = [torch.randn(self.heads, a, b) for a, b in self.layer_widths]
        return [x / torch.linalg.vector_norm(x, self.q, dim=(-1, -2), keepdim=True) for x in duals]

    def build(self) -> Moneta:
        """Return a freshly initialised memory of these sizes."""
        return Moneta(self)


class Moneta(Miras):
    """Layers of neural memory whose weights are divided by a norm, and feed-forward.

    State: that of `Miras`, of the duals.
    """
