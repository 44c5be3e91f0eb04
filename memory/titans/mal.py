"""Titans with memory as a layer: window attention over the outputs of neural memory.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), section 4.3, equations 29 to 31. Memory,
attention and feed-forward layers are pre-norm with residual connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.titans.lmm import Titans, TitansLayer
from scrubjay.memory.titans.window_base import WindowedLayer, WindowedTitansConfig


@dataclass(frozen=True)
class TitansMALConfig(WindowedTitansConfig):
    """Configuration of `TitansMAL`. Raises ValueError on an invalid value."""

    def build(self) -> TitansMAL:
        """Return a newly initialized memory."""
        return TitansMAL(self)


class _StackedLayer(WindowedLayer):
    in_place = True

    def __init__(self, config: WindowedTitansConfig) -> None:
        super().__init__(config)
        self.attention_norm = nn.LayerNorm(config.dim)

    def step(self, x, state, time):
        recalls, surprise, memory_state = self.memory.step(self.memory_norm(x), state, time)
        x = x + recalls
        attention_out, caches = self.attend(self.attention_norm(x)[:, None], state, Clock.from_age(time))
        return self.feed(x + attention_out[:, 0]), surprise, memory_state | caches

    def attention_reads(self, x, state, time):
        recalls, _, _ = self.memory.step(self.memory_norm(x), state, time)
        return self.window_read(self.attention_norm(x + recalls), state, time)

    def segment(self, x, state, grid):
        recalls, surprise, memory_state = self.memory.segment(self.memory_norm(x), state, grid)
        x = x + recalls
        attention_out, caches = self.attend(self.attention_norm(x), state, grid.clock)
        return self.feed(x + attention_out), surprise, memory_state | caches

    def advance(self, x, memory, caches, time):
        x = x + memory.step(self.memory_norm(x))
        return self.feed(caches.step(x, self.attention_norm(x), time))


class TitansMAL(Titans):
    """Stack of neural memory, window attention and feed-forward layers.

    State: the entries of `Titans`, and the caches of `WindowAttention` for every layer.
    """

    layer_class: ClassVar[type[TitansLayer]] = _StackedLayer
