"""Titans with window attention: memory as a gate (MAG) and memory as a layer (MAL).

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663). In MAG (section 4.2, equations 26 to 28), attention
and memory run in parallel. They have the same normed inputs, and a gate combines their outputs. In MAL
(section 4.3, equations 29 to 31), attention runs over the outputs of memory. Memory, attention and
feed-forward layers are then pre-norm with residual connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from scrubjay.memory.contract.base import Read, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.chunks import last_steps
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.titans.attention import (
    NARROWEST_HEAD,
    GateKind,
    MemoryGate,
    WindowAttention,
    WindowRing,
    check_gate,
)
from scrubjay.memory.titans.lmm import Titans, TitansConfig, TitansLayer

_MAX_SEGMENT = 1024
"""Longest segment at once: after an episode start, the attention scores all pairs of steps of a segment."""


@dataclass(frozen=True)
class WindowedTitansConfig(TitansConfig):
    """Base configuration of Titans with window attention. Raises ValueError on an invalid value."""

    paper_values = "in the paper, persistent tokens are also written to the memory before the first step"

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

    def window_read(self, x, state, time):
        """Return the window attention weights of one step with the normed input `x`."""
        weights = self.attention.weigh(x, state, time)
        return {"window": Read.from_weights(last_steps(time, weights.shape[-1] - 1), weights.mean(1))}

    def open_caches(self, state, age):
        """Return ring buffers with the contents of the caches."""
        return WindowRing(self.attention, state, age)


@dataclass(frozen=True)
class TitansMAGConfig(WindowedTitansConfig):
    """Configuration of `TitansMAG`. Raises ValueError on an invalid value."""

    gate: GateKind = "mix"
    """Combination of attention and memory: interpolated (`mix`) or multiplied (`product`, equation 28)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gate(self.gate)

    def build(self) -> TitansMAG:
        """Return a newly initialized memory."""
        return TitansMAG(self)


class _GateLayer(WindowedLayer):
    def __init__(self, config: TitansMAGConfig) -> None:
        super().__init__(config)
        self.gate = MemoryGate(config.dim, config.gate)

    def step(self, x, state, time):
        normed_x = self.memory_norm(x)
        attention_out, caches = self.attention.attend(normed_x[:, None], state, Clock.from_age(time))
        recalls, surprise, memory_state = self.memory.step(normed_x, state, time)
        return self.feed(x + self.gate(attention_out[:, 0], recalls)), surprise, memory_state | caches

    def attention_reads(self, x, state, time):
        return self.window_read(self.memory_norm(x), state, time)

    def segment(self, x, state, grid):
        normed_x = self.memory_norm(x)
        attention_out, caches = self.attention.attend(normed_x, state, grid.clock)
        recalls, surprise, memory_state = self.memory.segment(normed_x, state, grid)
        return self.feed(x + self.gate(attention_out, recalls)), surprise, memory_state | caches

    def advance(self, x, memory, caches, time):
        normed_x = self.memory_norm(x)
        attention_out = caches.step(x.new_zeros(()), normed_x, time)
        return self.feed(x + self.gate(attention_out, memory.step(normed_x)))


class TitansMAG(Titans):
    """Stack of layers: window attention and neural memory, combined by a gate, then feed-forward.

    State: the entries of `Titans`, and the caches of `WindowAttention` for every layer.
    """

    max_segment = _MAX_SEGMENT
    layer_class: ClassVar[type[TitansLayer]] = _GateLayer


@dataclass(frozen=True)
class TitansMALConfig(WindowedTitansConfig):
    """Configuration of `TitansMAL`. Raises ValueError on an invalid value."""

    def build(self) -> TitansMAL:
        """Return a newly initialized memory."""
        return TitansMAL(self)


class _StackedLayer(WindowedLayer):
    def __init__(self, config: WindowedTitansConfig) -> None:
        super().__init__(config)
        self.attention_norm = nn.LayerNorm(config.dim)

    def step(self, x, state, time):
        recalls, surprise, memory_state = self.memory.step(self.memory_norm(x), state, time)
        x = x + recalls
        attention_out, caches = self.attention.attend(
            self.attention_norm(x)[:, None], state, Clock.from_age(time)
        )
        return self.feed(x + attention_out[:, 0]), surprise, memory_state | caches

    def attention_reads(self, x, state, time):
        recalls, _, _ = self.memory.step(self.memory_norm(x), state, time)
        return self.window_read(self.attention_norm(x + recalls), state, time)

    def segment(self, x, state, grid):
        recalls, surprise, memory_state = self.memory.segment(self.memory_norm(x), state, grid)
        x = x + recalls
        attention_out, caches = self.attention.attend(self.attention_norm(x), state, grid.clock)
        return self.feed(x + attention_out), surprise, memory_state | caches

    def advance(self, x, memory, caches, time):
        x = x + memory.step(self.memory_norm(x))
        return self.feed(caches.step(x, self.attention_norm(x), time))


class TitansMAL(Titans):
    """Stack of neural memory, window attention and feed-forward layers.

    State: the entries of `Titans`, and the caches of `WindowAttention` for every layer.
    """

    max_segment = _MAX_SEGMENT
    layer_class: ClassVar[type[TitansLayer]] = _StackedLayer
