"""Policy and memory of a model layer with its own sliding window or chunked attention.

The layer retains only the tokens that later tokens can read. The user's policy does not apply, because the
window is part of the model. Tokens keep their positions in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from scrubjay.memory.context.layers.layer_types import LayerType
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerMemory, Step
from scrubjay.memory.context.policies.buffers import compact, make_writable
from scrubjay.memory.context.policies.dense import BLOCK, Scoring, masked_attention


@dataclass(frozen=True)
class LocalWindowPolicy(ContextPolicy):
    """Policy of a model layer with a sliding window or chunked attention."""

    window: int
    """Number of tokens in a window, including the query's own token; with `is_chunked`, in a chunk."""
    is_chunked: bool = False
    """Use chunked attention, as in Llama 4: a token reads the tokens of its own chunk up to itself."""

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return LocalWindowMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the cache size in bytes: keys, values and text indices of at most `window` tokens."""
        return min(tokens, self.window) * (shape.token_bytes + shape.layers * shape.batch * 8)


class LocalWindowMemory(LayerMemory):
    """Memory of one layer with a sliding window or chunked attention.

    State: `keys`, `values` and `time` (index in the text) of the last tokens. Once the window is full, these
    tensors are ring buffers.
    """

    state_names = frozenset(("keys", "values", "time"))

    def __init__(self, policy: LocalWindowPolicy) -> None:
        super().__init__()
        self.policy = policy
        self._oldest = 0  # column in a full ring buffer

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return the attention output of the new tokens, and store their keys and values.

        A single new token reads a ring buffer of the last tokens. Several new tokens read past and new tokens
        under a window mask.
        """
        if step.length > 1 or torch.is_grad_enabled() or not self._full:
            return self._attend_to_band(query, keys, values, step, scoring)
        self.state = make_writable(self.state)
        here, window = self._oldest, self.policy.window
        for name, new in (("keys", keys), ("values", values)):
            self.state[name][:, :, here : here + 1] = new
        self.state["time"][:, here : here + 1] = step.time
        self._oldest = (here + 1) % window
        mask = None
        if step.padded or self.policy.is_chunked:
            own = torch.arange(window, device=keys.device) == here
            mask = self._sees(step.time, self.state["time"]) | own
        return masked_attention(query, self.state["keys"], self.state["values"], mask, scoring)

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Do nothing: `attend` has already stored the new tokens."""

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens.

        Raises ValueError if the window is full. A full window may have dropped tokens that the shorter text
        needs.
        """
        if self._full:
            raise ValueError(
                f"crop: the model's own window of {self.policy.window} tokens has dropped tokens that the "
                "shorter text needs; save the cache before you add tokens, and load it instead of cropping"
            )
        columns_left = self.state["time"].shape[1] - columns
        self.state = {
            name: compact(tensor[:, :columns_left] if name == "time" else tensor[:, :, :columns_left])
            for name, tensor in self.state.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, with the tokens in the order of the text."""
        if not self._oldest:
            return self.state
        return {name: x.roll(-self._oldest, 1 if name == "time" else 2) for name, x in self.state.items()}

    @property
    def _full(self) -> bool:
        return bool(self.state) and self.state["time"].shape[1] == self.policy.window

    def _attend_to_band(
        self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring
    ) -> Tensor:
        time, window = step.time, self.policy.window
        if self.state:
            past = self.state_dict()
            keys, values = torch.cat([past["keys"], keys], dim=2), torch.cat([past["values"], values], dim=2)
            time = torch.cat([past["time"], time], dim=1)
        columns = time.shape[1]
        column, out = torch.arange(columns, device=keys.device), []
        for first in range(columns - step.length, columns, BLOCK):
            last = min(first + BLOCK, columns)
            visible = slice(max(first - window + 1, 0), last)
            age = column[first:last, None] - column[visible]
            mask = self._sees(time[:, first:last], time[:, visible]) & (age >= 0) & (age < window)
            rows = slice(first - columns + step.length, last - columns + step.length)
            part = (query[:, :, rows], keys[:, :, visible], values[:, :, visible])
            out.append(masked_attention(*part, mask | (age == 0), scoring))
        last_columns = slice(-window, None)
        self.state = {
            "keys": keys[:, :, last_columns],
            "values": values[:, :, last_columns],
            "time": time[:, last_columns],
        }
        if columns > window or columns == step.length:
            # Copies free the remaining memory and protect the model's tensors from later in-place writes.
            self.state = {name: tensor.clone() for name, tensor in self.state.items()}
        self._oldest = 0
        return torch.cat(out, dim=2)

    def _sees(
        self, query: Int[Tensor, "batch rows"], keys: Int[Tensor, "batch columns"]
    ) -> Bool[Tensor, "batch rows columns"]:
        """Return a mask: True if a key is not padding and, in chunked attention, is in the query's chunk."""
        visible = (keys >= 0)[:, None].expand(-1, query.shape[1], -1)
        if not self.policy.is_chunked:
            return visible
        size = self.policy.window
        return visible & (query[:, :, None] // size == keys[:, None] // size)


def select_policies(policy: ContextPolicy, layer_types: Sequence[LayerType]) -> list[ContextPolicy | None]:
    """Return the policy of each layer; None for a layer without attention."""
    count = sum(layer.attends and layer.window is None for layer in layer_types)
    policies: list[ContextPolicy | None] = []
    index = 0
    for layer in layer_types:
        if not layer.attends:
            policies.append(None)
        elif layer.window is not None:
            policies.append(LocalWindowPolicy(layer.window, layer.is_chunked))
        else:
            policies.append(policy.for_layer(index, count))
            index += 1
    return policies
