"""Full attention: nothing is dropped, and the cache grows with the text.

What all policies are measured against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.memory.context.parts.dense import causal_attention
from scrubjay.memory.context.parts.room import append, columns_of_room, shrink
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerMemory, Step


@dataclass(frozen=True)
class FullPolicy(ContextPolicy):
    """Keep everything, at the positions the model gave."""

    can_crop: ClassVar[bool] = True

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return FullMemory()

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of all tokens' keys and values, and of the room for the next ones."""
        return columns_of_room(tokens) * shape.token_bytes


class FullMemory(LayerMemory):
    """State: room for `keys` and `values`, of which the first `columns` are held.

    `valid` once a row has had padding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.columns = 0

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return what the new tokens read of everything up to themselves."""
        self.compress(query, keys, values, step, scoring)
        return causal_attention(
            query, self.held("keys"), self.held("values"), self.state.get("valid"), scoring
        )

    def held(self, name: str) -> Float[Tensor, "batch key_heads columns width"]:
        """Return the columns held of `keys` or `values`."""
        return self.state[name][:, :, : self.columns]

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Append."""
        for name, new in (("keys", keys), ("values", values)):
            self.state[name] = append(self.state.get(name), self.columns, new)
        self.columns += step.length
        if step.padded:
            old = self.state.get("valid")
            if old is None:
                old = torch.ones(len(step.time), step.seen, dtype=torch.bool, device=keys.device)
            self.state["valid"] = torch.cat([old, step.time >= 0], dim=1)

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Cut the last columns off."""
        self.columns -= columns
        for name in ("keys", "values"):
            self.state[name] = shrink(self.state[name], self.columns)
        if "valid" in self.state:
            self.state["valid"] = self.state["valid"][:, : self.columns]

    def saved(self) -> dict[str, Tensor]:
        """Return the state without the spare room."""
        return self.state | {name: self.held(name) for name in ("keys", "values") if name in self.state}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take up what `saved` returned, and make room for more."""
        self.state = dict(saved)
        if "keys" in saved:
            self.columns = saved["keys"].shape[2]
            self.state |= {name: append(None, 0, saved[name]) for name in ("keys", "values")}
