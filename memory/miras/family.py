"""What the three memories of Miras share: their network, and Titans' layers around it.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3. Each memory is
`kernels.neural_memory` with a loss and a mirror of its own and without momentum, in the layer of
`memory/titans/neural.py`, whose docstring says what holds here, too.

The paper's network is M(x) = x + LN(W_1 GELU(W_2 x)), four times as wide inside: `depth=2, residual=True,
norm=True`. By default it is a matrix, as that of Titans here: on small recall tasks it learned in half the
updates, each a third of the time.

Where all three differ from the paper: gates are of a head, not of a channel by matrices of low rank; the
norm inside has no weights of its own; steps are bounded as Titans' are, and clipped by the error that they
take away, unless `bound_steps` is False; what is forgotten goes back to the learned weights, not to zero,
where a network of two layers would stay for ever.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scrubjay.kernels import Learning
from scrubjay.memory.titans.lmm import Titans, TitansConfig


@dataclass(frozen=True)
class MirasConfig(TitansConfig):
    """Sizes of a memory of the family. Raises ValueError on one that cannot work."""

    hidden_ratio: int = 4
    """Width between the layers, in units of a head's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.learning

    @property
    @abstractmethod
    def learning(self) -> Learning:
        """What a network minimises and its weights are."""

    @property
    def gates(self) -> tuple[str, ...]:
        """What each token decides of each head."""
        return "step", "forgetting"

    def newborn(self) -> list[Tensor]:
        """Return what the layers' weights are before any training; a norm cannot standardise nothing."""
        if not self.norm:
            return super().newborn()
        return [torch.randn(self.heads, a, b) * a**-0.5 for a, b in self.layer_widths]


class Miras(Titans):
    """Layers of a neural memory of the family, and feed-forward.

    State: that of `Titans` without `momentum`.
    """
