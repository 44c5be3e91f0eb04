"""The steps of a memory of matrices, which are overwritten where they lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.stepper import Stepper


class MatrixStepper(Stepper):
    """Advances rows of a memory whose layers keep a `matrix`, which their `step` puts where it is told to.

    Args:
        layers: Its layers, which know nothing where all of their state is zero.
        state: The rows.
    """

    @torch.no_grad()
    def __init__(self, layers: Iterable[Any], state: dict[str, Tensor]) -> None:
        self.layers = list(layers)
        parts = [part_of(state, suffix=f"_{index}") for index in range(len(self.layers))]
        self.states = [{name: value.clone() for name, value in part.items()} for part in parts]

    @torch.no_grad()
    def _advance(self, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the outputs of one input each."""
        born = None if start is None else start.nonzero()[:, 0]
        for index, (layer, state) in enumerate(zip(self.layers, self.states, strict=True)):
            if born is not None:
                for value in state.values():
                    value.index_fill_(0, born, 0)
            x, self.states[index] = layer.step(x, state, out=state["matrix"])
        return x

    @torch.no_grad()
    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        found: dict[str, Tensor] = {}
        for index, state in enumerate(self.states):
            taken = {n: v.clone() if rows is None else v.index_select(0, rows) for n, v in state.items()}
            found |= named(taken, suffix=f"_{index}")
        return found
