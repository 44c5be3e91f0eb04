"""What architectures of Titans with window attention share: sizes, and a layer's attention and its ring."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scrubjay.memory.contract.base import State
from scrubjay.memory.contract.recalled import Read
from scrubjay.memory.parts.chunks import last_steps
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.titans.attention import NARROWEST_HEAD, WindowAttention
from scrubjay.memory.titans.lmm import TitansConfig, TitansLayer
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

    def window_read(self, x, state, time):
        """Return what a step, normed, reads of the window."""
        weights = self.attention.weigh(x, state, time)
        return {"window": Read.of(last_steps(time, weights.shape[-1] - 1), weights.mean(1))}

    def opened(self, caches, age):
        """Return the caches in a ring."""
        return WindowRing(self.attention, caches, age)

    def closed(self, caches):
        """Return the ring's caches."""
        return caches.caches()

    def forget(self, caches, rows):
        """Empty these rows of the ring."""
        caches.forget(rows)
