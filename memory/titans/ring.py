"""The steps of a `WindowAttention`: its keys and values in a ring that all rows go round together.

A step writes over what leaves the window. Persistent tokens stand before the ring, once for every row, so
that one product serves all; projections, and what turns queries and keys, are one product, too.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.contract.base import State
from scrubjay.memory.parts.rotary import turns
from scrubjay.memory.stepping.window import Ring
from scrubjay.memory.titans.attention import WindowAttention


class WindowRing:
    """One layer's rows.

    Args:
        attention: What is stepped.
        caches: Its keys and values.
        age: Steps that rows have taken in their episodes.
    """

    def __init__(self, attention: WindowAttention, caches: State, age: Int[Tensor, " batch"]) -> None:
        self.attention, self.frequencies = attention, attention.frequencies
        self.heads, self.width, self.window = attention.heads, attention.width, attention.window
        self.still, dtype = attention.num_persistent, caches["keys"].dtype
        batch = len(age)
        self.projections = torch.cat([attention.turned_query(), attention.both()]).to(dtype)
        self.out = attention.out.weight.to(dtype).T.contiguous()
        # It sees itself and those before it.
        self.ring = Ring(self.window - 1, age, dtype)
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
        """Empty these rows."""
        for part in (self.keys, self.values):
            part[:, :, self.still :].index_fill_(0, rows, 0)
        self.ring.forget(rows)

    def step(
        self, x: Tensor, normed: Float[Tensor, "batch dim"], time: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """Return what one step reads, added to `x` where it is given; `normed` is the input."""
        self.ring.advance(None)
        here = self.still + self.ring.place
        parts = functional.linear(normed, self.projections).view(-1, 5, self.heads, self.width)
        query, across_query, key, across_key, value = parts.unbind(1)
        cos, sin = (part[:, None] for part in turns(time, self.frequencies, self.width, parts.dtype))
        query = torch.addcmul(query * cos, across_query, sin)
        self.keys[:, :, here] = torch.addcmul(key * cos, across_key, sin)
        self.values[:, :, here] = value
        scores = torch.matmul(query[:, :, None], self.keys.mT)[:, :, 0]
        scores[:, :, self.still :] += self.ring.unseen
        weights = torch.softmax(scores, dim=-1)
        read = torch.matmul(weights[:, :, None], self.values)
        return torch.addmm(x, read.flatten(1), self.out)

    def caches(self) -> State:
        """Return keys and values as a state has them."""
        last = self.ring.last(self.window - 1) + self.still
        found = {"keys": self.keys, "values": self.values}
        return {name: held.index_select(2, last).transpose(1, 2).flatten(2) for name, held in found.items()}
