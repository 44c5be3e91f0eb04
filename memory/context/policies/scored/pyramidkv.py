"""PyramidKV: SnapKV with larger budgets in lower layers.

Cai et al. 2024 (arXiv 2406.02069, section 4): attention is spread over many tokens in lower layers and
concentrated on few in upper ones. Budgets fall linearly from the first to the last layer, and their mean is
`budget`. The last layer keeps 1 / `steepness` of the mean budget besides the window.

Differences from the authors' code: query heads that share a key head select together, sinks are kept, pooling
is wider (see `kernel`), and generated tokens are compressed too. If a prompt is shorter than the budget of a
lower layer, the authors shift the rest to upper layers. This policy shifts nothing.

Memory: the sum of the budgets of the layers, close to `budget` times their number. Use it as SnapKV, with
small budgets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from scrubjay.memory.context.policies.base import CacheShape
from scrubjay.memory.context.policies.scored.snapkv import SnapKVPolicy


@dataclass(frozen=True)
class PyramidKVPolicy(SnapKVPolicy):
    """SnapKV with larger budgets in lower layers."""

    steepness: float = 20.0
    """Mean budget divided by the budget of the last layer, both without the window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.steepness >= 1:
            raise ValueError(f"steepness={self.steepness}: must be at least 1")

    def for_layer(self, index: int, count: int) -> SnapKVPolicy:
        """Return SnapKV with the budget of layer `index` of `count` layers."""
        mean = self.num_tokens - self.window
        last = max(int(mean / self.steepness), self.num_sinks)
        first = 2 * mean - last
        own = round(first - (first - last) * index / max(count - 1, 1)) if count > 1 else mean
        return SnapKVPolicy(
            own + self.window, self.window, self.num_sinks, self.heads, self.safeguard, kernel=self.kernel
        )

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of all layers."""
        layer = replace(shape, layers=1)
        policies = (self.for_layer(index, shape.layers) for index in range(shape.layers))
        return sum(policy.nbytes(tokens, layer, at_once) for policy in policies)
