"""Titans with memory as a gate: window attention and neural memory side by side.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), section 4.2, equations 26 to 28. Both branches see
the same normed inputs; a gate mixes what attention read with what the memory recalled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from scrubjay.memory.contract.base import State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.titans.attention import NARROWEST_HEAD, MemoryGate, WindowAttention
from scrubjay.memory.titans.lmm import Titans, TitansConfig, TitansLayer
from scrubjay.memory.titans.ring import WindowRing


@dataclass(frozen=True)
class WindowedTitansConfig(TitansConfig):
    """Sizes of a Titans with window attention. Raises ValueError on one that cannot work."""

    window: int = 32
    """Last steps that attention sees, the present one included; at least 2."""
    num_persistent: int = 4
    """Learned keys and values that attention always sees."""
    attention_heads: int | None = None
    """Attention heads, at least 4 wide; by default as many as divide `dim`, up to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 2:
            raise ValueError(f"window={self.window}: it counts the present step, so it must be at least 2")
        if self.num_persistent < 0:
            raise ValueError(f"num_persistent={self.num_persistent}: must not be negative")
        resolve_heads(self.dim, self.attention_heads, NARROWEST_HEAD, "attention_heads")


@dataclass(frozen=True)
class TitansMAGConfig(WindowedTitansConfig):
    """Sizes of `TitansMAG`. Raises ValueError on one that cannot work."""

    def build(self) -> TitansMAG:
        """Return a freshly initialised memory of these sizes."""
        return TitansMAG(self)


class WindowedLayer(TitansLayer):
    """A layer that has window attention too, with its state."""

    def __init__(self, config: WindowedTitansConfig) -> None:
        super().__init__(config)
        self.attention = WindowAttention(
            config.dim, config.attention_heads, config.num_persistent, config.window
        )

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return the layer's state at the birth of an episode."""
        attention = self.attention.initial_state(batch_size, dtype, device)
        return self.memory.initial_state(batch_size, dtype, device) | attention

    def attend(self, x, state, clock):
        """Return what every step of `x` `[batch, time, dim]` reads of the window, and the caches after."""
        return self.attention(x, state, clock)

    def opened(self, caches, age):
        """Return the caches in a ring."""
        return WindowRing(self.attention, caches, age)

    def closed(self, caches):
        """Return the ring's caches."""
        return caches.caches()

    def forget(self, caches, rows):
        """Empty these rows of the ring."""
        caches.forget(rows)


class _GateLayer(WindowedLayer):
    in_place = True

    def __init__(self, config: WindowedTitansConfig) -> None:
        super().__init__(config)
        self.gate = MemoryGate(config.dim)

    def step(self, x, state, time):
        normed = self.memory_norm(x)
        attended, caches = self.attend(normed[:, None], state, Clock.running(time))
        recalled, surprise, learned = self.memory.step(normed, state, time)
        return self.feed(x + self.gate(attended[:, 0], recalled)), surprise, learned | caches

    def segment(self, x, state, grid):
        normed = self.memory_norm(x)
        attended, caches = self.attend(normed, state, grid.clock)
        recalled, surprise, learned = self.memory.segment(normed, state, grid)
        return self.feed(x + self.gate(attended, recalled)), surprise, learned | caches

    def advance(self, x, memory, caches, time):
        normed = self.memory_norm(x)
        attended = caches.step(x.new_zeros(()), normed, time)
        return self.feed(x + self.gate(attended, memory.step(normed)))


class TitansMAG(Titans):
    """Layers of window attention mixed with neural memory by a gate, and feed-forward.

    State: that of `Titans`, and the caches of `WindowAttention` for every layer.
    """

    layer_class: ClassVar[type[TitansLayer]] = _GateLayer
