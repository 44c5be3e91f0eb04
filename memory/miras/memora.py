"""Memora: a neural memory whose weights are probability distributions.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3, equations 21 and 27: the
loss is that of Titans. Retention is the divergence from the previous weights plus an entropy term. The
weights after step t are

    W_t = c softmax(alpha_t log W_{t-1} - eta_t gradient)

for the n weights W of one output, with the retention gate alpha and the step size eta. The weights are
positive and always sum to c, by default the square root of a head's width. The parameters and the state hold
(c / n) log W.

Besides the differences in `memory/miras/family.py`, there are two. First, log W decays towards its learned
initial value. In the equation, log W decays towards zero (`forgets_to="uniform"`). All outputs of a layer
then become equal, and a network of two layers cannot separate them again. Second, eta is n / c times the step
size of the token. A weight of c / n therefore moves as far as in Titans.
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
    """Sum of the weights into each output unit of the network. Default: the square root of a head's width."""
    forgets_to: Literal["born", "uniform"] = "born"
    """Target of the decay: the learned initial weights (`born`) or equal weights (`uniform`)."""

    @property
    def learning(self) -> Learning:
        """Learning rule: loss of the networks, and map from accumulated gradient steps to weights."""
        total = (self.dim / self.heads) ** 0.5 if self.total is None else self.total
        return Learning("gelu", mirror=Simplex(total, self.forgets_to))

    def build(self) -> Memora:
        """Return a newly initialized memory."""
        return Memora(self)


class Memora(Miras):
    """Stack of feed-forward layers and neural memories whose weights are distributions.

    State: the entries of `Miras`, with scaled logarithms of the weights in place of the weights.
    """
