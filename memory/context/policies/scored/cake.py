"""CAKE: layers share a budget by the spread and the change of their attention.

Qin et al. 2025 (arXiv 2503.12491, sections 4.2 and 4.3): the weight of a layer is its attention's entropy to
the power 1 / `tau_entropy`, times its variance over the queries to the power 1 / `tau_variance`. A joint
budget is divided in proportion to these weights. The score of a token is the mean of its attention weights
plus `gamma` times their variance over the last queries.

Differences from the authors' code: query heads that share a key head select together, sinks can be kept,
remainders of the division are rounded by Webster's method, and the rows of a batch share budgets. The authors
publish temperatures for some models; the default is 1.

Memory: the budget times the number of layers. While a prompt is read, one more layer stores it whole. Use it
for one question at the end of a long prompt, if the layers of the model differ in their attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from scrubjay.memory.context.policies.base import CacheShape, LayerStats
from scrubjay.memory.context.policies.budget import split_budget
from scrubjay.memory.context.policies.scored.snapkv import SnapKVPolicy


@dataclass(frozen=True)
class CAKEPolicy(SnapKVPolicy):
    """SnapKV with variance in its scores and a joint budget of all layers."""

    num_sinks: int = 0
    """Number of first tokens that are always kept. The paper has none."""
    kernel: int = 5
    """Number of neighboring tokens over which scores are averaged; must be odd."""
    tau_entropy: float = 1.0
    """Temperature of the entropy in a layer's weight."""
    tau_variance: float = 1.0
    """Temperature of the variance in a layer's weight."""
    gamma: float = 200.0
    """Factor of the variance in a token's score."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_tokens <= self.window + self.num_sinks:
            raise ValueError(
                f"budget={self.num_tokens}: must be at least {self.window + self.num_sinks + 1}, since every "
                "layer keeps the window, the sinks and one more token"
            )
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma={self.gamma}: must be finite and not negative")
        for name in ("tau_entropy", "tau_variance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")

    def rate(self, weights: Float[Tensor, "batch key_heads shared window tokens"]) -> Tensor:
        """Return the mean plus `gamma` times the variance of each token's weights over the last queries."""
        variance = (
            weights.var(dim=3)
            if weights.shape[3] > 1
            else weights.new_zeros(()).expand_as(weights[:, :, :, 0])
        )
        return (weights.mean(dim=3) + self.gamma * variance).mean(dim=2)

    def prefer(self, weights: Float[Tensor, "batch heads window tokens"]) -> Float[Tensor, " batch"]:
        """Return the layer's weight from the attention to the tokens before the window."""
        prefix = weights[..., : max(weights.shape[-1] - self.window, 0)]
        if not prefix.numel() or weights.shape[2] < 2:
            return weights.new_ones(len(weights))
        entropy = -(prefix * (prefix + 1e-10).log()).sum(dim=(1, 2, 3))
        variance = prefix.var(dim=2).sum(dim=(1, 2))
        return entropy.clamp(min=0) ** (1 / self.tau_entropy) * variance ** (1 / self.tau_variance)

    def allocate(self, stats: Sequence[LayerStats], shape: CacheShape) -> Sequence[int]:
        """Divide the budget of all layers among the layers that have read the prompt so far."""
        least = self.num_sinks + 1
        total = (self.num_tokens - self.window) * shape.layers
        columns = [max(one.columns - self.window, 0) for one in stats]
        shares = split_budget(total, [one.preference for one in stats], columns, least)
        return [share + self.window for share in shares]
