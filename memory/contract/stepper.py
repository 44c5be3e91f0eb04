"""Rows that go on step by step without gradients, as a collecting policy does, by what is quickest for them.

A state is a value, so a step that is a function of it copies what it hardly changed, and forms anew at every
step what follows from weights alone. A stepper is made once for many steps under the same weights, keeps rows
of its own that it overwrites, and hands out values again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Stepper(ABC):
    """Advances rows under the weights it was made with; what it was made of it leaves alone.

    Outputs and states are those of `Memory.step`, to rounding, whatever starts.
    """

    def step(self, x: Float[Tensor, "batch dim"], start: Bool[Tensor, " batch"] | None = None) -> Tensor:
        """Return the outputs `[batch, dim]` of one input each; `start` marks those that begin an episode.

        Raises ValueError if the shape or dtype of `start` is wrong.
        """
        # Numbers would be taken for masks here and for rows there.
        if start is not None and (start.dtype != torch.bool or start.shape != x.shape[:1]):
            given = f"{start.dtype} {tuple(start.shape)}"
            raise ValueError(f"start is {given}; expected torch.bool {tuple(x.shape[:1])}")
        return self._advance(x, start)

    @abstractmethod
    def _advance(self, x: Float[Tensor, "batch dim"], start: Bool[Tensor, " batch"] | None) -> Tensor:
        """Do so with what is known to fit."""

    @abstractmethod
    def state(self, rows: Int[Tensor, " some"] | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all, in memory that no later step changes."""


class PlainStepper(Stepper):
    """Takes the steps of a memory one after the other, and nothing else."""

    def __init__(
        self,
        step: Callable[[Tensor, dict[str, Tensor], Tensor | None], tuple[Tensor, dict[str, Tensor]]],
        state: dict[str, Tensor],
    ) -> None:
        self._step, self._state = step, state

    @torch.no_grad()
    def _advance(self, x: Float[Tensor, "batch dim"], start: Bool[Tensor, " batch"] | None) -> Tensor:
        """Return the outputs of one input each."""
        y, self._state = self._step(x[:, None], self._state, None if start is None else start[:, None])
        return y[:, 0]

    def state(self, rows: Int[Tensor, " some"] | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        if rows is None:
            return dict(self._state)
        return {name: value.index_select(0, rows) for name, value in self._state.items()}


def can_fold(device: torch.device, dtype: torch.dtype, state: dict[str, Tensor]) -> bool:
    """Return whether weights of this dtype may be multiplied beforehand, and rows overwritten.

    Not in half precision, where every product has a rounding of its own, and on a CPU alone, where it can be
    asked for nothing which rows begin an episode. Of no rows there is nothing to overwrite.
    """
    same = all(value.dtype == dtype for value in state.values() if value.is_floating_point())
    fit = same and all(len(value) for value in state.values())
    return fit and device.type == "cpu" and dtype.itemsize >= 4 and not torch.is_autocast_enabled("cpu")
