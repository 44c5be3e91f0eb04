"""Base classes of the Titans architectures with window attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scrubjay.memory.contract.base import State
from scrubjay.memory.contract.recall import Read
from scrubjay.memory.parts.chunks import last_steps
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.titans.attention import NARROWEST_HEAD, WindowAttention
from scrubjay.memory.titans.lmm import TitansConfig, TitansLayer
from scrubjay.memory.titans.ring import WindowRing


@dataclass(frozen=True)
class WindowedTitansConfig(TitansConfig):
    """Base configuration of Titans with window attention. Raises ValueError on an invalid value."""

    window: int = 32
    """Steps that attention sees, including the present one; at least 2."""
    num_persistent: int = 4
    """Learned keys and values that attention can always see; 0 disables them."""
    attention_heads: int | None = None
    """Attention heads, at least 4 wide; by default the largest divisor of `dim` up to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 2:
            raise ValueError(f"window={self.window}: it counts the present step, so it must be at least 2")
        if self.num_persistent < 0:
            raise ValueError(f"num_persistent={self.num_persistent}: must not be negative")
        resolve_heads(self.dim, self.attention_heads, NARROWEST_HEAD, "attention_heads")


class WindowedLayer(TitansLayer):
    """Titans layer with window attention and its state."""

    def __init__(self, config: WindowedTitansConfig) -> None:
        super().__init__(config)
        self.attention = WindowAttention(
            config.dim, config.attention_heads, config.num_persistent, config.window
        )

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return the layer's state at the start of an episode."""
        attention = self.attention.initial_state(batch_size, dtype, device)
        return self.memory.initial_state(batch_size, dtype, device) | attention

    def attend(self, x, state, clock):
        """Return the window attention of every step of `x` `[batch, time, dim]`, and the next caches."""
        return self.attention(x, state, clock)

    def window_read(self, x, state, time):
        """Return the window attention weights of a normed step."""
        weights = self.attention.weigh(x, state, time)
        return {"window": Read.from_weights(last_steps(time, weights.shape[-1] - 1), weights.mean(1))}

    def open_caches(self, caches, age):
        """Return the caches in a ring buffer."""
        return WindowRing(self.attention, caches, age)

    def close_caches(self, caches):
        """Return the state entries of the ring buffer."""
        return caches.caches()

    def forget(self, caches, rows):
        """Clear these rows of the ring buffer."""
        caches.forget(rows)
