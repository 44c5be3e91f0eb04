"""Moneta: a neural memory with an l_p loss whose weights are normalized by a q-norm.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3, equations 24 and 25:

    A_t = alpha_t A_{t-1} - eta_t gradient(|M(k_t) - v_t|_p^p),    W_t = A_t / norm_q(A_t)^(q - 2),

for each weight matrix separately. k_t and v_t are the key and value of step t, M is the network with the
weights W, alpha_t is the retention gate and eta_t the step size. A are the dual weights, which accumulate the
steps. The larger A is, the less a step changes W. The paper uses p = 3 and q = 4.

Besides the differences in `memory/miras/family.py`, there are two. First, the gradient is exact for p = 2.
For any other p, a smooth function replaces the sign of each error, as in the paper. Second, initial dual
weights have a q-norm of 1, so W = A at the start.
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
    """Slope of the smooth function that replaces the sign of an error; unused if `exponent` is 2."""
    q: float = 4.0
    """Order q of the norm. The accumulated weights are divided by their q-norm to the power q - 2; 2 disables
    the division."""

    @property
    def learning(self) -> Learning:
        """Learning rule: loss of the networks, and map from accumulated gradient steps to weights."""
        return Learning("gelu", Power(self.exponent, self.sharpness), QNorm(self.q))

    def build_initial_weights(self) -> list[Tensor]:
        """Return the untrained initial dual weights of the layers of a head's network."""
        duals = [torch.randn(self.heads, a, b) for a, b in self.layer_widths]
        return [x / torch.linalg.vector_norm(x, self.q, dim=(-1, -2), keepdim=True) for x in duals]

    def build(self) -> Moneta:
        """Return a newly initialized memory."""
        return Moneta(self)


class Moneta(Miras):
    """Stack of feed-forward layers and neural memories whose weights are divided by a power of their norm.

    State: the entries of `Miras`, with the dual weights in place of the weights.
    """
