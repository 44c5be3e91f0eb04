"""Titans with memory as a gate: window attention and neural memory side by side.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), section 4.2, equations 26 to 28. Both branches see
the same normed inputs; a gate mixes what attention read with what the memory recalled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from scrubjay.memory.contract.base import LATER
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.titans.attention import GateKind, MemoryGate, check_gate
from scrubjay.memory.titans.lmm import Titans, TitansLayer
from scrubjay.memory.titans.windowed import WindowedLayer, WindowedTitansConfig


@dataclass(frozen=True)
class TitansMAGConfig(WindowedTitansConfig):
    """Sizes of `TitansMAG`. Raises ValueError on one that cannot work."""

    gate: GateKind = field(default="mix", metadata=LATER)
    """How what was read and what is recalled become one: mixed, or multiplied, as equation 28 has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gate(self.gate)

    def build(self) -> TitansMAG:
        """Return a freshly initialised memory of these sizes."""
        return TitansMAG(self)


class _GateLayer(WindowedLayer):
    in_place = True

    def __init__(self, config: TitansMAGConfig) -> None:
        super().__init__(config)
        self.gate = MemoryGate(config.dim, config.gate)

    def step(self, x, state, time):
        normed = self.memory_norm(x)
        attended, caches = self.attend(normed[:, None], state, Clock.running(time))
        recalled, surprise, learned = self.memory.step(normed, state, time)
        return self.feed(x + self.gate(attended[:, 0], recalled)), surprise, learned | caches

    def reads(self, x, state, time):
        return self.window_read(self.memory_norm(x), state, time)

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
