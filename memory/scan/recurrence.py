"""Base class of memories on `kernels.scan`: h_t = a_t h_{t-1} + b_t, with a and b of the input alone."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels import scan
from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.stepper import Stepper

W = TypeVar("W")


class ScanUpdate(NamedTuple):
    """State update computed from inputs, in the dtype of the state."""

    decay: Tensor
    """Decay factors of the channels: one per step, or one for all steps."""
    value: Tensor
    """Values added to the channels."""
    read_inputs: tuple[Tensor, ...]
    """Tensors of the inputs that `read` needs."""


class ScanMemory(Memory, Generic[W]):
    """Memory of channels with an input-dependent decay and input.

    State: `hidden` `[batch, *shape]`, with `pairs` real and imaginary parts in the last dimension.

    Args:
        config: Configuration of the memory.
        shape: State shape of one batch row.
        pairs: True for complex channels.
    """

    def __init__(self, config: MemoryConfig, shape: tuple[int, ...], pairs: bool = False) -> None:
        super().__init__(config)
        self.shape, self.pairs = shape, pairs

    @abstractmethod
    def fold_weights(self) -> W:
        """Return weights derived from the parameters alone; computed once for many steps."""

    @abstractmethod
    def write(self, x: Float[Tensor, "*batch dim"], weights: W) -> ScanUpdate:
        """Return the state update of inputs."""

    @abstractmethod
    def read(
        self, hidden: Tensor, read_inputs: tuple[Tensor, ...], weights: W
    ) -> Float[Tensor, "*batch dim"]:
        """Return the outputs for the states after inputs `x`; `read_inputs` comes from `write(x)`."""

    def initial_state(self, batch_size: int) -> State:
        """Return a zero state."""
        shape = (batch_size, *self.shape)
        return {"hidden": torch.zeros(shape, dtype=self.state_dtype, device=self.device)}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance every row by one step."""
        weights = self.fold_weights()
        decay, value, read_inputs = self.write(x, weights)
        hidden = advance(decay, value, state["hidden"], self.pairs)
        return self.read(hidden, read_inputs, weights), {"hidden": hidden}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment."""
        weights = self.fold_weights()
        decay, value, read_inputs = self.write(x, weights)
        states, after = scan(decay, value, state["hidden"], start=start, pairs=self.pairs)
        # A copy: a view would keep the whole segment alive.
        return self.read(states, read_inputs, weights), {"hidden": after.clone()}

    def stepper(self, state: State) -> Stepper:
        """Return a stepper that advances these rows and folds the weights once."""
        return (
            _ScanStepper(self, state) if self.can_use_stepper(ScanMemory, state) else super().stepper(state)
        )


def advance(decay: Tensor, value: Tensor, hidden: Tensor, pairs: bool) -> Tensor:
    """Return the states after one step."""
    if not pairs:
        return torch.addcmul(value, decay, hidden)
    real, imaginary = (part[..., None] for part in decay.unbind(-1))
    times_i = torch.stack([-hidden[..., 1], hidden[..., 0]], dim=-1)
    return torch.addcmul(torch.addcmul(value, real, hidden), imaginary, times_i)


class _ScanStepper(Stepper):
    """Stepper of a `ScanMemory` that folds the weights once."""

    @torch.no_grad()
    def __init__(self, memory: ScanMemory[Any], state: State) -> None:
        self.memory, self.weights = memory, memory.fold_weights()
        self.hidden = state["hidden"].clone(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the output of one step of every row."""
        hidden = self.hidden
        if start is not None:
            hidden = hidden.index_fill(0, start.nonzero()[:, 0], 0)
        decay, value, read_inputs = self.memory.write(x, self.weights)
        # Not in place: the outputs may be the states themselves.
        if self.memory.pairs:
            complexes = (torch.view_as_complex(part) for part in (value, decay, hidden))
            self.hidden = torch.view_as_real(torch.addcmul(*complexes))
        else:
            self.hidden = torch.addcmul(value, decay, hidden)
        return self.memory.read(self.hidden, read_inputs, self.weights)

    def state(self, rows: Tensor | None = None) -> State:
        """Return the state of `rows`, by default of all rows."""
        return {"hidden": self.hidden.clone() if rows is None else self.hidden.index_select(0, rows)}
