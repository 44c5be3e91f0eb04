"""Full attention: nothing is dropped, and the cache grows with the text. What all policies are measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from scrubjay.memory.context.base import CacheShape, ContextPolicy, LayerMemory, Step
from scrubjay.memory.context.dense import causal_attention


@dataclass(frozen=True)
class FullPolicy(ContextPolicy):
    """Keep everything, at the positions the model gave."""

    can_crop: ClassVar[bool] = True

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return FullMemory()

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of all tokens' keys and values."""
        return tokens * shape.token_bytes


class FullMemory(LayerMemory):
    """State: `keys` and `values` of every column, and `valid` once a row has had padding."""

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scale: float) -> Tensor:
        """Return what the new tokens read of everything up to themselves."""
        self.compress(query, keys, values, step, scale)
        held = self.state
        return causal_attention(query, held["keys"], held["values"], held.get("valid"), scale)

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scale: float) -> None:
        """Append."""
        if "keys" in self.state:
            keys = torch.cat([self.state["keys"], keys], dim=2)
            values = torch.cat([self.state["values"], values], dim=2)
        if step.padded:
            old = self.state.get("valid")
            if old is None:
                old = torch.ones(len(step.time), step.seen, dtype=torch.bool, device=keys.device)
            self.state["valid"] = torch.cat([old, step.time >= 0], dim=1)
        self.state |= {"keys": keys, "values": values}

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Cut the last columns off."""
        for name, axis in (("keys", 2), ("values", 2), ("valid", 1)):
            if name in self.state:
                tensor = self.state[name]
                self.state[name] = tensor.narrow(axis, 0, tensor.shape[axis] - columns)
