"""Layers one after the other as one memory, and the number of heads that a layer has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.nested import named, part_of

_WIDEST_HEAD, _NARROWEST_HEAD = 64, 8


@runtime_checkable
class Layer(Protocol):
    """What a memory of layers is made of: a module with a state of its own."""

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the state of a layer that knows nothing."""
        ...

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one input and the state after."""
        ...

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the state after."""
        ...


L = TypeVar("L", bound=Layer)


class LayeredMemory(Memory, Generic[L]):
    """A memory of layers, each of which reads what the one before it gave.

    State: that of every layer l, names followed by `_l`.
    """

    def __init__(self, config: MemoryConfig, layers: Sequence[L]) -> None:
        super().__init__(config)
        self.layers = cast("list[L]", nn.ModuleList(cast("Any", layers)))

    def initial_state(self, batch_size: int) -> State:
        """Return a state that knows nothing."""
        state: State = {}
        for index, layer in enumerate(self.layers):
            state |= named(layer.initial_state(batch_size, self.state_dtype), suffix=f"_{index}")
        return state

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance every row by one input."""
        after: State = {}
        for index, layer in enumerate(self.layers):
            x, found = layer.step(x, part_of(state, suffix=f"_{index}"))
            after |= named(found, suffix=f"_{index}")
        return x, after

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment, layer by layer."""
        after: State = {}
        for index, layer in enumerate(self.layers):
            x, found = layer.segment(x, part_of(state, suffix=f"_{index}"), start)
            after |= named(found, suffix=f"_{index}")
        return x, after


def count_heads(dim: int, num_heads: int | None) -> int:
    """Return `num_heads`, by default as few as make heads of 8 to 64, else 1.

    Raises ValueError if the heads do not divide the width.
    """
    if num_heads is not None:
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        return num_heads
    widths = range(min(_WIDEST_HEAD, dim), _NARROWEST_HEAD - 1, -1)
    return next((dim // width for width in widths if dim % width == 0), 1)
