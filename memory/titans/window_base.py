"""Base classes of the Titans architectures with window attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scrubjay.memory.contract.base import Read, State
from scrubjay.memory.parts.chunks import last_steps
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.titans.attention import NARROWEST_HEAD, WindowAttention
from scrubjay.memory.titans.lmm import TitansConfig, TitansLayer
from scrubjay.memory.titans.ring import WindowRing


@dataclass(frozen=True)
class WindowedTitansConfig(TitansConfig):
    """Base configuration of Titans with window attention. Raises ValueError on an invalid value."""

    window: int = 32
    """Number of steps to which a step attends, including the step itself; at least 2."""
    num_persistent: int = 4
    """Number of persistent tokens: learned keys and values that every step sees. 0 disables them."""
    attention_heads: int | None = None
    """Attention heads, each at least 4 wide. Default: the largest allowed divisor of `dim` up to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 2:
            raise ValueError(
                f"window={self.window}: must be at least 2, because the window includes the present step"
            )
        if self.num_persistent < 0:
            raise ValueError(f"num_persistent={self.num_persistent}: must not be negative")
        resolve_heads(self.dim, self.attention_heads, NARROWEST_HEAD, "attention_heads")


class WindowedLayer(TitansLayer):
    """Base class of Titans layers with window attention."""

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
        """Return the window attention outputs for `x` `[batch, time, dim]`, and the next caches."""
        return self.attention(x, state, clock)

    def window_read(self, x, state, time):
        """Return the window attention weights of one step with the normed input `x`."""
        weights = self.attention.weigh(x, state, time)
        return {"window": Read.from_weights(last_steps(time, weights.shape[-1] - 1), weights.mean(1))}

    def open_caches(self, caches, age):
        """Return ring buffers with the contents of the caches."""
        return WindowRing(self.attention, caches, age)

    def close_caches(self, caches):
        """Return the contents of the ring buffers as state entries."""
        return caches.caches()

    def forget(self, caches, rows):
        """Clear the cached steps of these rows."""
        caches.forget(rows)
