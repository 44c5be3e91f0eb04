"""Record of one step of a memory: the episode steps that are read, their weights, and the writes.

A viewer shows the record, and a test compares the record with the actual read. Nothing else uses records.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Read(NamedTuple):
    """Steps that a memory reads in one attention operation, with their attention weights."""

    steps: Int[Tensor, "batch items"]
    """Numbers of the steps that are read, from 0 at the start of the episode; -1 for padding."""
    weights: Float[Tensor, "batch items"]
    """Weight of each step, averaged over heads: at least 0, with a sum of at most 1."""

    @classmethod
    def from_weights(cls, steps: Int[Tensor, "batch *items"], weights: Float[Tensor, "batch *items"]) -> Read:
        """Return a float32 `Read`. Padding gets weight 0. Weights with a sum above 1 are scaled to sum 1."""
        steps, weights = steps.flatten(1), weights.flatten(1).float()
        weights = torch.where(steps < 0, 0, weights)
        return cls(steps, weights / weights.sum(dim=1, keepdim=True).clamp(min=1))


class Recall(NamedTuple):
    """Record of one step of a memory: attention weights of its reads, and strengths of its writes."""

    reads: dict[str, Read]
    """Dict from the name of each read operation, such as "window, layer 0", to its attention weights."""
    writes: dict[str, Float[Tensor, " batch"]]
    """Dict from the name of each write operation, such as "surprise, layer 0", to its strength."""

    def select_rows(self, rows: slice) -> Recall:
        """Return the reads and writes of these batch rows."""
        reads = {name: Read(read.steps[rows], read.weights[rows]) for name, read in self.reads.items()}
        return Recall(reads, {name: strength[rows] for name, strength in self.writes.items()})

    @classmethod
    def from_state_change(cls, before: dict[str, Tensor], after: dict[str, Tensor]) -> Recall | None:
        """Return a record whose write strength is the change of the state, relative to the norm of `after`.

        Return None if the state has no float entries.
        """
        rows = [
            torch.stack([before[name].flatten(1), value.flatten(1)]).double()
            for name, value in after.items()
            if value.is_floating_point()
        ]
        if not rows:
            return None
        old, new = torch.cat(rows, dim=2)
        change, length = (new - old).norm(dim=1), new.norm(dim=1)
        return cls(
            {}, {"change of the state relative to its norm": torch.where(length > 0, change / length, 0.0)}
        )

    @classmethod
    def from_parts(cls, parts: dict[str, Recall | None]) -> Recall | None:
        """Join the records of several parts, with part names as prefixes; None if no part has a record."""
        records = {name: part for name, part in parts.items() if part is not None}
        reads = {f"{part}, {name}": read for part, own in records.items() for name, read in own.reads.items()}
        writes = {f"{part}, {name}": one for part, own in records.items() for name, one in own.writes.items()}
        return cls(reads, writes) if records else None
