"""Fast step-by-step inference without gradients, for example to collect rollouts.

`Memory.step` must not modify its arguments. It therefore copies even state entries that hardly change, and it
multiplies the same weight matrices with each other at every step. A stepper is created once for many steps
with the same weights. It has its own buffers, overwrites them in place, and returns a state on request.

Steppers and other fast paths of memories are imported at their first use. A memory is defined without them.
"""

from __future__ import annotations

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_FAST_PATHS = {
    "gtrxl stepper": "scrubjay.memory.incremental.gtrxl:GTrXLStepper",
    "hcam stepper": "scrubjay.memory.incremental.hcam:HCAMStepper",
    "sink stepper": "scrubjay.memory.incremental.sink:SinkStepper",
    "window segment": "scrubjay.memory.parts.relative:SegmentReader",
}
"""Registry of fast paths: the module and class of each name."""


@functools.cache
def load_fast_path(name: str) -> Any:
    """Return the class of a fast path."""
    module, _, class_name = _FAST_PATHS[name].partition(":")
    return getattr(importlib.import_module(module), class_name)


class Stepper(ABC):
    """Step-by-step inference. The initial state is not modified.

    A stepper is valid as long as the weights do not change. After a change, create a new stepper.

    Outputs and states equal those of `Memory.step` up to rounding, for any `start`.
    """

    def step(self, x: Float[Tensor, "batch dim"], start: Bool[Tensor, " batch"] | None = None) -> Tensor:
        """Return the outputs `[batch, dim]` of one input per row; `start` marks rows that begin an episode.

        Raises ValueError if the shape or dtype of `start` is wrong.
        """
        # Some steppers would treat numbers as masks, others as row indices.
        if start is not None and (start.dtype != torch.bool or start.shape != x.shape[:1]):
            actual = f"dtype {start.dtype} and shape {tuple(start.shape)}"
            raise ValueError(f"start has {actual}; expected dtype torch.bool and shape {tuple(x.shape[:1])}")
        if not torch.is_grad_enabled():
            return self._advance(x, start)
        with torch.no_grad():
            return self._advance(x, start)

    @abstractmethod
    def _advance(self, x: Float[Tensor, "batch dim"], start: Bool[Tensor, " batch"] | None) -> Tensor:
        """Advance one step; inputs are already validated and gradients are disabled."""

    @abstractmethod
    def state(self, rows: Int[Tensor, " some"] | None = None) -> dict[str, Tensor]:
        """Return a copy of the state of the batch rows `rows`, or of all rows if `rows` is None.

        Later steps do not change the copy.
        """


class PlainStepper(Stepper):
    """Stepper that calls the memory's own step, without optimizations."""

    def __init__(
        self,
        step: Callable[[Tensor, dict[str, Tensor], Tensor | None], tuple[Tensor, dict[str, Tensor]]],
        state: dict[str, Tensor],
    ) -> None:
        self._step, self._state = step, state

    def _advance(self, x: Float[Tensor, "batch dim"], start: Bool[Tensor, " batch"] | None) -> Tensor:
        """Return the outputs of one input per row."""
        y, self._state = self._step(x[:, None], self._state, None if start is None else start[:, None])
        return y[:, 0]

    def state(self, rows: Int[Tensor, " some"] | None = None) -> dict[str, Tensor]:
        """Return the state of the batch rows `rows`, or of all rows if `rows` is None."""
        if rows is None:
            return dict(self._state)
        return {name: value.index_select(0, rows) for name, value in self._state.items()}


def can_fold(device: torch.device, dtype: torch.dtype, state: dict[str, Tensor]) -> bool:
    """Return True if a stepper may multiply weights in advance and overwrite rows of the state in place.

    The result is False in half precision, where each matrix product rounds differently. It is False on other
    devices than the CPU, where reading `start` would synchronize the device. It is also False for a state
    without rows.
    """
    same = all(value.dtype == dtype for value in state.values() if value.is_floating_point())
    fit = same and all(len(value) for value in state.values())
    return fit and device.type == "cpu" and dtype.itemsize >= 4 and not torch.is_autocast_enabled("cpu")
