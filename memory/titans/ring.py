"""In-place steps of a `WindowAttention`, with keys and values in ring buffers.

A new step overwrites the step that leaves the window, in the same slot of every row. The buffer of each row
starts with the persistent tokens, so that one matrix product scores all keys. One more product computes all
projections, including the sine parts for rotary positions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.contract.base import State
from scrubjay.memory.incremental.window import WindowRingBuffer
from scrubjay.memory.parts.rotary import compute_cos_sin
from scrubjay.memory.titans.attention import WindowAttention


class WindowRing:
    """Ring buffers of keys and values of one attention layer.

    Args:
        attention: The attention layer.
        caches: Keys and values of the last steps, as in a state.
        age: Number of steps in each row's episode.
    """

    def __init__(self, attention: WindowAttention, caches: State, age: Int[Tensor, " batch"]) -> None:
        self.attention, self.frequencies = attention, attention.frequencies
        self.heads, self.width, self.window = attention.heads, attention.width, attention.window
        self.num_persistent, dtype = attention.num_persistent, caches["keys"].dtype
        batch = len(age)
        self.projections = torch.cat([attention.query_weights(), attention.key_value_weights()]).to(dtype)
        self.out = attention.out.weight.to(dtype).T.contiguous()
        # A step sees itself and the `window - 1` steps before it.
        self.ring = WindowRingBuffer(self.window - 1, age, dtype)
        self.keys, self.values = (
            torch.cat(
                [
                    persistent.transpose(1, 2),
                    caches[name].unflatten(2, (self.heads, self.width)).transpose(1, 2),
                    persistent.new_zeros(batch, self.heads, 1, self.width),
                ],
                dim=2,
            )
            for name, persistent in zip(("keys", "values"), attention.persistent(batch, dtype), strict=True)
        )

    def forget(self, rows: Int[Tensor, " some"]) -> None:
        """Clear the cached steps of these rows."""
        for part in (self.keys, self.values):
            part[:, :, self.num_persistent :].index_fill_(0, rows, 0)
        self.ring.clear(rows)

    def step(
        self, x: Tensor, normed_x: Float[Tensor, "batch dim"], time: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """Return `x` plus the attention output for the step with input `normed_x`."""
        self.ring.advance(None)
        position = self.num_persistent + self.ring.slot
        parts = functional.linear(normed_x, self.projections).view(-1, 5, self.heads, self.width)
        query, across_query, key, across_key, value = parts.unbind(1)
        cos, sin = (
            part[:, None] for part in compute_cos_sin(time, self.frequencies, self.width, parts.dtype)
        )
        query = torch.addcmul(query * cos, across_query, sin)
        self.keys[:, :, position] = torch.addcmul(key * cos, across_key, sin)
        self.values[:, :, position] = value
        scores = torch.matmul(query[:, :, None], self.keys.mT)[:, :, 0]
        scores[:, :, self.num_persistent :] += self.ring.mask
        weights = torch.softmax(scores, dim=-1)
        read = torch.matmul(weights[:, :, None], self.values)
        return torch.addmm(x, read.flatten(1), self.out)

    def caches(self) -> State:
        """Return keys and values of the last steps as state entries."""
        last = self.ring.recent_slots(self.window - 1) + self.num_persistent
        buffers = {"keys": self.keys, "values": self.values}
        return {
            name: cache.index_select(2, last).transpose(1, 2).flatten(2) for name, cache in buffers.items()
        }
