"""Baseline without memory. It must fail on tasks that need a memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.parts.layers import feed_forward


@dataclass(frozen=True)
class NoMemoryConfig(MemoryConfig):
    """Sizes of `NoMemory`."""

    paper_values = "it has no paper"

    def build(self) -> NoMemory:
        """Return a newly initialized feed-forward layer."""
        return NoMemory(self)


class NoMemory(Memory):
    """One residual feed-forward layer, applied to each input independently; the state is empty."""

    def __init__(self, config: NoMemoryConfig) -> None:
        super().__init__(config)
        self.feed_forward = feed_forward(self.dim, 2 * self.dim)

    def initial_state(self, batch_size: int) -> State:
        """Return the empty state."""
        return {}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the layer's output and the empty state."""
        return x + self.feed_forward(x), {}

    def segment(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Return the outputs of all steps and the empty state."""
        return x + self.feed_forward(x), {}
