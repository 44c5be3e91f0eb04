"""BASED: approximate linear attention to the whole episode, followed by exact sliding-window attention.

Arora et al. 2024 (arXiv 2402.18668, section 4): a stack of `memory/linear/taylor.py` and window attention,
which is `memory/sink.py`.

Deviations from the paper: there are no convolution layers between the two. Positions are those of `sink`,
which can also retain the first steps. The two files list further deviations.
"""

from __future__ import annotations

from dataclasses import dataclass

from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.linear.taylor import TaylorConfig
from scrubjay.memory.sink import SinkConfig
from scrubjay.memory.stack import Stack, StackConfig


@dataclass(frozen=True)
class BasedConfig(MemoryConfig):
    """Sizes of `Based`. Raises ValueError on an invalid size."""

    num_layers: int = 1
    """Pairs of a linear part and a window."""
    num_heads: int | None = None
    """Heads of each linear part; by default the smallest number with a head width from 8 to 64, else 1."""
    feature_width: int = 16
    """Width d of a head's queries and keys, of which 1 + 2 d + d (d - 1) / 2 features are made."""
    window: int = 64
    """Size of each window in steps, including the present one; at least 2."""
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
        """Return the config of the stack. Raises ValueError on an invalid size."""
        ratio = self.feed_forward_ratio
        linear = TaylorConfig(self.dim, self.num_heads, self.feature_width, ratio)
        window = SinkConfig(self.dim, self.num_sinks, self.window, num_layers=1, feed_forward_ratio=ratio)
        return StackConfig(self.dim, (linear, window) * self.num_layers, residual=False)

    def build(self) -> Based:
        """Return a newly initialized memory of these sizes."""
        return Based(self)


class Based(Stack):
    """Alternating second-order linear attention and window attention.

    State: the entries of every part i, prefixed with `i.`; linear parts have even numbers.
    """

    def __init__(self, config: BasedConfig) -> None:
        super().__init__(config.stack())
        self.config = config
