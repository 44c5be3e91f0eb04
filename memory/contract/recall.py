"""Record of one step of a memory: the episode steps that it reads with their weights, and its writes.

A viewer shows the record, and a test compares it with the actual read. Nothing else depends on it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Read(NamedTuple):
    """Attention weights of one read."""

    steps: Int[Tensor, "batch items"]
    """Numbers of the steps that are read, from 0 at the start of the episode; -1 for padding."""
    weights: Float[Tensor, "batch items"]
    """Weight of each step, averaged over heads: at least 0, with a sum of at most 1."""

    @classmethod
    def from_weights(cls, steps: Int[Tensor, "batch *items"], weights: Float[Tensor, "batch *items"]) -> Read:
        """Return a read in float32 with zero weights for padding, normalized if they sum to more than 1."""
        steps, weights = steps.flatten(1), weights.flatten(1).float()
        weights = torch.where(steps < 0, 0, weights)
        return cls(steps, weights / weights.sum(dim=1, keepdim=True).clamp(min=1))


class Recall(NamedTuple):
    """Reads of a memory at one step, and the strength of its writes."""

    reads: dict[str, Read]
    """Reads by name, such as "window, layer 0"."""
    writes: dict[str, Float[Tensor, " batch"]]
    """Strengths of the writes by name, such as "surprise, layer 0"."""

    def select_rows(self, rows: slice) -> Recall:
        """Return the record of these rows."""
        reads = {name: Read(read.steps[rows], read.weights[rows]) for name, read in self.reads.items()}
        return Recall(reads, {name: strength[rows] for name, strength in self.writes.items()})

    @classmethod
    def from_state_change(cls, before: dict[str, Tensor], after: dict[str, Tensor]) -> Recall | None:
        """Return the change of a state relative to its norm after it; None if it has no float entries."""
        rows = [
            torch.stack([before[name].flatten(1), value.flatten(1)]).double()
            for name, value in after.items()
            if value.is_floating_point()
        ]
        if not rows:
            return None
        old, new = torch.cat(rows, dim=2)
        change, length = (new - old).norm(dim=1), new.norm(dim=1)
        return cls({}, {"state moved, share of its length": torch.where(length > 0, change / length, 0.0)})

    @classmethod
    def from_parts(cls, parts: dict[str, Recall | None]) -> Recall | None:
        """Return the records of all parts, prefixed with the part's name; None if no part has one."""
        records = {name: part for name, part in parts.items() if part is not None}
        reads = {f"{part}, {name}": read for part, own in records.items() for name, read in own.reads.items()}
        writes = {f"{part}, {name}": one for part, own in records.items() for name, one in own.writes.items()}
        return cls(reads, writes) if records else None
