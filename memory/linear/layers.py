"""Base class of memories made of stacked layers, and the default number of heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, MemoryConfig, State, add_affixes, select_part

_WIDEST_HEAD, _NARROWEST_HEAD = 64, 8


@runtime_checkable
class RecurrentLayer(Protocol):
    """Interface of a layer of `LayeredMemory`: a module with its own recurrent state."""

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the initial state of the layer."""
        ...

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state."""
        ...

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state."""
        ...


L = TypeVar("L", bound=RecurrentLayer)


class LayeredMemory(Memory, Generic[L]):
    """Memory made of stacked layers.

    State: the entries of every layer l, with the suffix `_l`.
    """

    def __init__(self, config: MemoryConfig, layers: Sequence[L]) -> None:
        super().__init__(config)
        self.layers = cast("list[L]", nn.ModuleList(cast("Any", layers)))

    def initial_state(self, batch_size: int) -> State:
        """Return the initial state of all layers."""
        state: State = {}
        for index, layer in enumerate(self.layers):
            state |= add_affixes(layer.initial_state(batch_size, self.state_dtype), suffix=f"_{index}")
        return state

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Process one step of every row, layer by layer."""
        after: State = {}
        for index, layer in enumerate(self.layers):
            x, layer_state = layer.step(x, select_part(state, suffix=f"_{index}"))
            after |= add_affixes(layer_state, suffix=f"_{index}")
        return x, after

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment of every row, layer by layer."""
        after: State = {}
        for index, layer in enumerate(self.layers):
            x, layer_state = layer.segment(x, select_part(state, suffix=f"_{index}"), start)
            after |= add_affixes(layer_state, suffix=f"_{index}")
        return x, after


def count_heads(dim: int, num_heads: int | None) -> int:
    """Return `num_heads`, or the default number of heads if it is None.

    The default is the smallest number whose heads are 8 to 64 wide. It is 1 if no number has such heads.

    Raises ValueError if `num_heads` does not divide `dim`.
    """
    if num_heads is not None:
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}; choose a divisor of {dim}")
        return num_heads
    widths = range(min(_WIDEST_HEAD, dim), _NARROWEST_HEAD - 1, -1)
    return next((dim // width for width in widths if dim % width == 0), 1)
