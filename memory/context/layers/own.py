"""A layer whose model lets it see no more than its last tokens, or its chunk: what it sees is all it keeps.

No policy has a say in it: the window is the model's own, tokens stay where the model put them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scrubjay.memory.context.parts.dense import BLOCK, masked_attention
from scrubjay.memory.context.parts.room import writable
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerMemory, Step


@dataclass(frozen=True)
class OwnWindow(ContextPolicy):
    """What a model sees in one of its layers that do not see everything."""

    window: int
    """Columns that a token sees, its own included; or of a chunk."""
    chunked: bool = False
    """Whether a token sees its chunk of the text as far as itself, as in Llama 4, else the last columns."""

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return OwnWindowMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of at most `window` columns' keys, values and times."""
        return min(tokens, self.window) * (shape.token_bytes + shape.layers * shape.batch * 8)


class OwnWindowMemory(LayerMemory):
    """State: `keys`, `values` and `time` of the last columns, a ring once it is full."""

    def __init__(self, policy: OwnWindow) -> None:
        super().__init__()
        self.policy = policy
        self._oldest = 0  # where in a full ring

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return what the new tokens read: of its ring, or of a band."""
        if step.length > 1 or torch.is_grad_enabled() or not self._full:
            return self._attend_to_band(query, keys, values, step, scoring)
        self.state = writable(self.state)
        here, window = self._oldest, self.policy.window
        for name, new in (("keys", keys), ("values", values)):
            self.state[name][:, :, here : here + 1] = new
        self.state["time"][:, here : here + 1] = step.time
        self._oldest = (here + 1) % window
        mask = None
        if step.padded or self.policy.chunked:
            own = torch.arange(window, device=keys.device) == here
            mask = self._sees(step.time, self.state["time"]) | own
        return masked_attention(query, self.state["keys"], self.state["values"], mask, scoring)

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Do nothing: `attend` keeps what it has read."""

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Forget the last columns, while none has been dropped."""
        if self._full:
            raise ValueError(
                f"crop: the model's own window of {self.policy.window} has dropped tokens that would be read "
                "again; save the cache before you try something, and load it"
            )
        kept = self.state["time"].shape[1] - columns
        self.state = {
            name: tensor[:, :kept] if name == "time" else tensor[:, :, :kept]
            for name, tensor in self.state.items()
        }

    def saved(self) -> dict[str, Tensor]:
        """Return the state in order."""
        return self._in_order()

    @property
    def _full(self) -> bool:
        return bool(self.state) and self.state["time"].shape[1] == self.policy.window

    def _in_order(self) -> dict[str, Tensor]:
        if not self._oldest:
            return self.state
        return {name: x.roll(-self._oldest, 1 if name == "time" else 2) for name, x in self.state.items()}

    def _attend_to_band(
        self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring
    ) -> Tensor:
        time, window = step.time, self.policy.window
        if self.state:
            held = self._in_order()
            keys, values = torch.cat([held["keys"], keys], dim=2), torch.cat([held["values"], values], dim=2)
            time = torch.cat([held["time"], time], dim=1)
        columns = time.shape[1]
        column, out = torch.arange(columns, device=keys.device), []
        for first in range(columns - step.length, columns, BLOCK):
            last = min(first + BLOCK, columns)
            seen = slice(max(first - window + 1, 0), last)
            age = column[first:last, None] - column[seen]
            mask = self._sees(time[:, first:last], time[:, seen]) & (age >= 0) & (age < window)
            rows = slice(first - columns + step.length, last - columns + step.length)
            part = (query[:, :, rows], keys[:, :, seen], values[:, :, seen])
            out.append(masked_attention(*part, mask | (age == 0), scoring))
        kept = slice(-window, None)
        self.state = {"keys": keys[:, :, kept], "values": values[:, :, kept], "time": time[:, kept]}
        if columns > window or columns == step.length:
            # The rest is freed, and what the model made is not written to later.
            self.state = {name: tensor.clone() for name, tensor in self.state.items()}
        self._oldest = 0
        return torch.cat(out, dim=2)

    def _sees(
        self, query: Int[Tensor, "batch rows"], keys: Int[Tensor, "batch columns"]
    ) -> Bool[Tensor, "batch rows columns"]:
        """Return which columns are none of padding, and of the same chunk where there are chunks."""
        seen = (keys >= 0)[:, None].expand(-1, query.shape[1], -1)
        if not self.policy.chunked:
            return seen
        size = self.policy.window
        return seen & (query[:, :, None] // size == keys[:, None] // size)
