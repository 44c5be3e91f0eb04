"""Titans with memory as a gate: window attention and neural memory in parallel.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), section 4.2, equations 26 to 28. Attention and
memory have the same normed inputs, and a gate combines their outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.titans.attention import GateKind, MemoryGate, check_gate
from scrubjay.memory.titans.lmm import Titans, TitansLayer
from scrubjay.memory.titans.window_base import WindowedLayer, WindowedTitansConfig


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
    in_place = True

    def __init__(self, config: TitansMAGConfig) -> None:
        super().__init__(config)
        self.gate = MemoryGate(config.dim, config.gate)

    def step(self, x, state, time):
        normed_x = self.memory_norm(x)
        attention_out, caches = self.attend(normed_x[:, None], state, Clock.from_age(time))
        recalls, surprise, memory_state = self.memory.step(normed_x, state, time)
        return self.feed(x + self.gate(attention_out[:, 0], recalls)), surprise, memory_state | caches

    def attention_reads(self, x, state, time):
        return self.window_read(self.memory_norm(x), state, time)

    def segment(self, x, state, grid):
        normed_x = self.memory_norm(x)
        attention_out, caches = self.attend(normed_x, state, grid.clock)
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

    layer_class: ClassVar[type[TitansLayer]] = _GateLayer
