"""BASED: approximate linear attention to the whole episode, followed by exact sliding-window attention.

Arora et al. 2024 (arXiv 2402.18668, section 4): a stack that alternates linear attention
(`memory/linear/taylor.py`) and window attention (`memory/sink.py`).

Deviations from the paper: there are no convolution layers. Window attention encodes positions as in
`memory/sink.py`, and its cache can also retain the first steps of an episode. The docstrings of the two files
list further deviations.
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

    paper_values = "the published stack also has layers of convolution"

    num_layers: int = 1
    """Number of pairs, each of one linear attention part and one window attention part."""
    num_heads: int | None = None
    """Heads of each linear part. Default: the smallest number whose heads are 8 to 64 wide; 1 if there is
    none."""
    feature_width: int = 16
    """Width d of a head's queries and keys. The feature map has 1 + 2 d + d (d - 1) / 2 features."""
    window: int = 64
    """Size of each window in steps, including the present one; at least 2."""
    num_sinks: int = 0
    """Number of first steps of an episode that stay visible in addition to the window."""
    feed_forward_ratio: int = 2
    """Width of each feed-forward part's hidden layer, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_layers < 1:
            raise ValueError(f"num_layers={self.num_layers}: must be at least 1")
        self.stack()

    def stack(self) -> StackConfig:
        """Return the config of the `Stack` of alternating parts. Raises ValueError on an invalid size."""
        ratio = self.feed_forward_ratio
        linear = TaylorConfig(self.dim, self.num_heads, self.feature_width, ratio)
        window = SinkConfig(self.dim, self.num_sinks, self.window, num_layers=1, feed_forward_ratio=ratio)
        return StackConfig(self.dim, (linear, window) * self.num_layers, residual=False)

    def build(self) -> Based:
        """Return a newly initialized memory of these sizes."""
        return Based(self)


class Based(Stack):
    """Alternating second-order linear attention and window attention.

    State: the entries of every part i (from 0), prefixed with `i.`. Parts with an even i are the linear ones.
    """

    def __init__(self, config: BasedConfig) -> None:
        super().__init__(config.stack())
        self.config = config
