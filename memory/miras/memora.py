"""Memora: a neural memory whose weights are distributions.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3, equations 21 and 27: the
loss is Titans', and retention is the divergence from the weights before and their entropy, which makes

    W_t = c softmax(alpha_t log W_{t-1} - eta_t gradient)

of all weights that lead to one output: they are positive and sum up to c for ever. What is learned and kept
are their logarithms, times c / n where n lead to an output.

Where it differs, beside what `memory/miras/family.py` says: logarithms fade towards those that a memory was
born with, which are learned. Towards zero, as in the equation, all outputs become alike, and a network of two
layers cannot tell them apart again; that is `forgets_to="uniform"`. Of an eta that is n / c of what the token
asks for a weight of c / n moves as far as one of Titans would. c is the root of a head's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scrubjay.kernels import Learning, Simplex
from scrubjay.memory.miras.family import Miras, MirasConfig


@dataclass(frozen=True)
class MemoraConfig(MirasConfig):
    """Sizes of `Memora`. Raises ValueError on one that cannot work."""

    total: float | None = None
    """c, what the weights to one output sum up to; by default the root of a head's width."""
    forgets_to: Literal["born", "uniform"] = "born"
    """Where weights go that are not written: to those a memory was born with, or to equal ones."""

    @property
    def learning(self) -> Learning:
        """What a network minimises and its weights are."""
        total = (self.dim / self.heads) ** 0.5 if self.total is None else self.total
        return Learning("gelu", mirror=Simplex(total, self.forgets_to))

    def build(self) -> Memora:
        """Return a freshly initialised memory of these sizes."""
        return Memora(self)


class Memora(Miras):
    """Layers of neural memory whose weights are distributions, and feed-forward.

    State: that of `Miras`, of their logarithms.
    """
