"""BASED: linear attention that sees everything, coarsely, and a window that sees a little, exactly.

Arora et al. 2024 (arXiv 2402.18668, section 4): a stack of `memory/linear/taylor.py` and behind it attention
to a window, which is `memory/sink.py`.

Where it differs: layers of convolutions, which the paper's models have between these two, are left out;
positions are those of `sink`, which may be told to keep first steps, too; and what the two files say.
"""

from __future__ import annotations

from dataclasses import dataclass

from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.linear.taylor import TaylorConfig
from scrubjay.memory.sink import SinkConfig
from scrubjay.memory.stack import Stack, StackConfig


@dataclass(frozen=True)
class BasedConfig(MemoryConfig):
    """Sizes of `Based`. Raises ValueError on one that cannot work."""

    num_layers: int = 1
    """Pairs of a linear part and a window."""
    num_heads: int | None = None
    """Heads of each linear part; by default as few as make them 8 to 64 wide, else 1."""
    feature_width: int = 16
    """Width d of a head's queries and keys, of which 1 + 2 d + d (d - 1) / 2 features are made."""
    window: int = 64
    """Last steps that each window sees, the present one included; at least 2."""
    num_sinks: int = 0
    """First steps of an episode that stay visible beside the window."""
    feed_forward_ratio: int = 2
    """Width of each feed-forward part's hidden layer, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers < 1:
            raise ValueError(f"num_layers={self.num_layers}: must be at least 1")
        self.stack()

    def stack(self) -> StackConfig:
        """Return what the memory is made of. Raises ValueError on a size that cannot work."""
        ratio = self.feed_forward_ratio
        linear = TaylorConfig(self.dim, self.num_heads, self.feature_width, ratio)
        window = SinkConfig(self.dim, self.num_sinks, self.window, num_layers=1, feed_forward_ratio=ratio)
        return StackConfig(self.dim, (linear, window) * self.num_layers, residual=False)

    def build(self) -> Based:
        """Return a freshly initialised memory of these sizes."""
        return Based(self)


class Based(Stack):
    """Pairs of linear attention of the second order and a window, one after the other.

    State: that of every part i, linear ones at even places, names preceded by `i.`.
    """

    def __init__(self, config: BasedConfig) -> None:
        super().__init__(config.stack())
        self.config = config
