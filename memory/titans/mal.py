"""Titans with memory as a layer: window attention over what neural memory recalled.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), section 4.3, equations 29 to 31. As everywhere
here, each part reads a normed input and adds to a residual stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.titans.lmm import Titans, TitansLayer
from scrubjay.memory.titans.windowed import WindowedLayer, WindowedTitansConfig


@dataclass(frozen=True)
class TitansMALConfig(WindowedTitansConfig):
    """Sizes of `TitansMAL`. Raises ValueError on one that cannot work."""

    def build(self) -> TitansMAL:
        """Return a freshly initialised memory of these sizes."""
        return TitansMAL(self)


class _StackedLayer(WindowedLayer):
    in_place = True

    def __init__(self, config: WindowedTitansConfig) -> None:
        super().__init__(config)
        self.attention_norm = nn.LayerNorm(config.dim)

    def step(self, x, state, time):
        recalled, surprise, learned = self.memory.step(self.memory_norm(x), state, time)
        x = x + recalled
        attended, caches = self.attend(self.attention_norm(x)[:, None], state, Clock.running(time))
        return self.feed(x + attended[:, 0]), surprise, learned | caches

    def reads(self, x, state, time):
        recalled, _, _ = self.memory.step(self.memory_norm(x), state, time)
        return self.window_read(self.attention_norm(x + recalled), state, time)

    def segment(self, x, state, grid):
        recalled, surprise, learned = self.memory.segment(self.memory_norm(x), state, grid)
        x = x + recalled
        attended, caches = self.attend(self.attention_norm(x), state, grid.clock)
        return self.feed(x + attended), surprise, learned | caches

    def advance(self, x, memory, caches, time):
        x = x + memory.step(self.memory_norm(x))
        return self.feed(caches.step(x, self.attention_norm(x), time))


class TitansMAL(Titans):
    """Layers of neural memory, window attention and feed-forward, one after the other.

    State: that of `Titans`, and the caches of `WindowAttention` for every layer.
    """

    layer_class: ClassVar[type[TitansLayer]] = _StackedLayer
