"""Base class of the three Miras memories, which use the layers of Titans.

Miras (Behrouz, Razaviyayn, Zhong & Mirrokni 2025, arXiv 2504.13173), section 5.3. Each memory is
`kernels.neural_memory` without momentum, with its own loss and its own map from accumulated steps to weights
(mirror map). The layer is that of `memory/titans/neural.py`, whose docstring applies here as well.

The paper's network is M(x) = x + LN(W_1 GELU(W_2 x)), where LN is a layer norm and the hidden layer is 4
times as wide as x. Set `depth=2, residual=True, norm=True` to use this network. The default is a single
matrix, as in `titans`. On small recall tasks, the matrix needed half as many updates, and each update took a
third of the time.

Differences of all three memories from the paper: a gate has one value per head. In the paper, it has one
value per channel, computed by low-rank matrices. The norm LN has no weights. Steps are bounded as in Titans,
and clipped so that a step does not overshoot the error that it removes. `bound_steps=False` disables both the
bounds and the clip. Weights decay towards the learned initial weights, not towards zero. In a network of two
layers, weights of zero would have a gradient of zero, so they would stay zero.
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
    """Width of the hidden layers of a head's network, in units of the head's width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.learning

    @property
    @abstractmethod
    def learning(self) -> Learning:
        """Learning rule: loss of the networks, and map from accumulated gradient steps to weights."""

    @property
    def gates(self) -> tuple[str, ...]:
        """Names of the gates. A gate has one value per head and token."""
        return "step", "forgetting"

    def build_initial_weights(self) -> list[Tensor]:
        """Return the untrained initial weights of the layers of a head's network.

        With `norm`, no weights are zero, because a zero output cannot be standardized.
        """
        if not self.norm:
            return super().build_initial_weights()
        return [torch.randn(self.heads, a, b) * a**-0.5 for a, b in self.layer_widths]


class Miras(Titans):
    """Stack of neural memory and feed-forward layers.

    State: the entries of `Titans` without `momentum`.
    """
