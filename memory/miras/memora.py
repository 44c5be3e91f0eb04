"""Memora: a neural memory whose weights are probability distributions.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3, equations 21 and 27: the
loss is that of Titans, and retention is the divergence from the previous weights plus their entropy. This
gives

    W_t = c softmax(alpha_t log W_{t-1} - eta_t gradient)

for all weights into one output: they are positive and always sum to c. Parameters and state hold their
logarithms, times c / n for n weights into an output.

Differences, besides those in `memory/miras/family.py`: logarithms decay towards their learned initial values.
In the equation they decay towards zero (`forgets_to="uniform"`); all outputs then become equal, and a network
of two layers cannot separate them again. eta is n / c times the token's step size, so that a weight of c / n
moves as far as in Titans. c is the root of a head's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scrubjay.kernels import Learning, Simplex
from scrubjay.memory.miras.family import Miras, MirasConfig


@dataclass(frozen=True)
class MemoraConfig(MirasConfig):
    """Configuration of `Memora`. Raises ValueError on an invalid value."""

    total: float | None = None
    """Sum c of the weights into one output; by default the root of a head's width."""
    forgets_to: Literal["born", "uniform"] = "born"
    """Target of the decay: the learned initial weights (`born`) or equal weights (`uniform`)."""

    @property
    def learning(self) -> Learning:
        """Loss and weight parametrization of the networks."""
        total = (self.dim / self.heads) ** 0.5 if self.total is None else self.total
        return Learning("gelu", mirror=Simplex(total, self.forgets_to))

    def build(self) -> Memora:
        """Return a freshly initialised memory."""
        return Memora(self)


class Memora(Miras):
    """Stack of feed-forward layers and neural memories whose weights are distributions.

    State: the entries of `Miras`, for the logarithms of the weights.
    """
