"""What memories on `kernels.scan` share: h_t = a_t h_{t-1} + b_t, with a and b of the input alone."""

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


class Written(NamedTuple):
    """What inputs do to the state, in its dtype."""

    decay: Tensor
    """By what channels fade, at every step or at all alike."""
    value: Tensor
    """What is added to them."""
    aside: tuple[Tensor, ...]
    """What reading wants of the inputs."""


class ScanMemory(Memory, Generic[W]):
    """A memory of channels, each of which fades and is written to as the input says.

    State: `hidden` `[batch, *shape]`, with `pairs` real and imaginary parts in the last dimension.

    Args:
        config: The memory's sizes.
        shape: Of one row's state.
        pairs: Whether channels are complex.
    """

    def __init__(self, config: MemoryConfig, shape: tuple[int, ...], pairs: bool = False) -> None:
        super().__init__(config)
        self.shape, self.pairs = shape, pairs

    @abstractmethod
    def folded(self) -> W:
        """Return what follows from parameters alone, formed once for many steps."""

    @abstractmethod
    def write(self, x: Float[Tensor, "*batch dim"], weights: W) -> Written:
        """Return what inputs do to the state."""

    @abstractmethod
    def read(self, hidden: Tensor, aside: tuple[Tensor, ...], weights: W) -> Float[Tensor, "*batch dim"]:
        """Return outputs for the states after inputs, and for what writing put aside."""

    def initial_state(self, batch_size: int) -> State:
        """Return zeros."""
        shape = (batch_size, *self.shape)
        return {"hidden": torch.zeros(shape, dtype=self.state_dtype, device=self.device)}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance every row by one input."""
        weights = self.folded()
        decay, value, aside = self.write(x, weights)
        hidden = advance(decay, value, state["hidden"], self.pairs)
        return self.read(hidden, aside, weights), {"hidden": hidden}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment."""
        weights = self.folded()
        decay, value, aside = self.write(x, weights)
        states, after = scan(decay, value, state["hidden"], start=start, pairs=self.pairs)
        # A copy: a view would keep the whole segment alive.
        return self.read(states, aside, weights), {"hidden": after.clone()}

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows, whose weights are folded once."""
        return _ScanStepper(self, state) if self.steps_as(ScanMemory, state) else super().stepper(state)


def advance(decay: Tensor, value: Tensor, hidden: Tensor, pairs: bool) -> Tensor:
    """Return the states one step later."""
    if not pairs:
        return torch.addcmul(value, decay, hidden)
    real, imaginary = (part[..., None] for part in decay.unbind(-1))
    turned = torch.stack([-hidden[..., 1], hidden[..., 0]], dim=-1)
    return torch.addcmul(torch.addcmul(value, real, hidden), imaginary, turned)


class _ScanStepper(Stepper):
    """Advances rows of a `ScanMemory`, whose parameters are folded once."""

    @torch.no_grad()
    def __init__(self, memory: ScanMemory[Any], state: State) -> None:
        self.memory, self.weights = memory, memory.folded()
        self.hidden = state["hidden"].clone(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the outputs of one input each."""
        hidden = self.hidden
        if start is not None:
            hidden = hidden.index_fill(0, start.nonzero()[:, 0], 0)
        decay, value, aside = self.memory.write(x, self.weights)
        # Not in place, for what was read may be the states themselves.
        if self.memory.pairs:
            complexes = (torch.view_as_complex(part) for part in (value, decay, hidden))
            self.hidden = torch.view_as_real(torch.addcmul(*complexes))
        else:
            self.hidden = torch.addcmul(value, decay, hidden)
        return self.memory.read(self.hidden, aside, self.weights)

    def state(self, rows: Tensor | None = None) -> State:
        """Return the state of these rows, by default of all."""
        return {"hidden": self.hidden.clone() if rows is None else self.hidden.index_select(0, rows)}
