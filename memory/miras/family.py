"""Base class of the three Miras memories: their network inside the layers of Titans.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3. Each memory is
`kernels.neural_memory` with its own loss and mirror map and without momentum, in the layer of
`memory/titans/neural.py`, whose docstring applies here as well.

The paper's network is M(x) = x + LN(W_1 GELU(W_2 x)) with a hidden layer 4 times as wide: `depth=2,
residual=True, norm=True`. The default is a matrix, as in Titans here. On small recall tasks the matrix
learned in half the updates, and each update took a third of the time.

Differences of all three from the paper: gates are per head, not per channel by matrices of low rank. The
inner norm has no weights. Steps are bounded as in Titans, and clipped by the error that they remove, unless
`bound_steps` is False. Weights decay towards the learned initial weights, not towards zero, where a network
of two layers would stay for ever.
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
    """Base configuration of the Miras memories. Raises ValueError on an invalid value."""

    hidden_ratio: int = 4
    """Hidden width of a head's network, in units of the head's width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.learning

    @property
    @abstractmethod
    def learning(self) -> Learning:
        """Loss and weight parametrization of the networks."""

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates. A gate has one value per head and token."""
        return "step", "forgetting"

    def build_initial_weights(self) -> list[Tensor]:
        """Return the layers' untrained weights.

        They are not zero with `norm`, which cannot standardise a zero output.
        """
        if not self.norm:
            return super().build_initial_weights()
        return [torch.randn(self.heads, a, b) * a**-0.5 for a, b in self.layer_widths]


class Miras(Titans):
    """Stack of neural memory and feed-forward layers.

    State: the entries of `Titans` without `momentum`.
    """
