"""Plain sliding window over the last tokens, without sinks. This baseline fails on most models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerMemory
from scrubjay.memory.context.policies.sinks import StreamMemory


@dataclass(frozen=True)
class WindowPolicy(ContextPolicy):
    """Keep the last `budget` tokens."""

    budget: int = 1024
    """Number of tokens in the cache. A query reads all of them, its own token included."""

    moves_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget={self.budget}: must be at least 1, for the query's own token")

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return StreamMemory(self.budget, num_sinks=0)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the keys and values of at most `budget` tokens."""
        return min(tokens, self.budget) * shape.token_bytes
