"""The steps of a memory of matrices, which are overwritten where they lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from scrubjay.kernels import linear_memory_step
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.stepper import Stepper


class GatedDeltaStepper(Stepper):
    """Advances rows of a `GatedDelta`.

    Args:
        layers: Its layers.
        state: The rows.
    """

    @torch.no_grad()
    def __init__(self, layers: Iterable[Any], state: dict[str, Tensor]) -> None:
        self.layers = list(layers)
        parts = [part_of(state, suffix=f"_{index}") for index in range(len(self.layers))]
        self.matrices = [part["matrix"].clone() for part in parts]
        self.tails = [part["tail"].clone() for part in parts]

    @torch.no_grad()
    def step(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """Return the outputs of one input each."""
        born = None if start is None else start.nonzero()[:, 0]
        for index, (layer, matrix) in enumerate(zip(self.layers, self.matrices, strict=True)):
            if born is not None:
                matrix.index_fill_(0, born, 0)
                self.tails[index].index_fill_(0, born, 0)
            tokens, normed, self.tails[index] = layer.tokens(x[:, None], self.tails[index], None)
            one = [part[:, 0] for part in tokens]
            options = {"rule": "delta", "read_before_write": layer.read_before_write}
            y, _ = linear_memory_step(*one, state=matrix, out=matrix, **options)
            x = layer.finish(x, normed[:, 0], y)
        return x

    @torch.no_grad()
    def state(self, rows: Tensor | None = None) -> dict[str, Tensor]:
        """Return the state of these rows, by default of all."""
        found: dict[str, Tensor] = {}
        for index, parts in enumerate(zip(self.matrices, self.tails, strict=True)):
            taken = [part.clone() if rows is None else part.index_select(0, rows) for part in parts]
            found |= named(dict(zip(("matrix", "tail"), taken, strict=True)), suffix=f"_{index}")
        return found
