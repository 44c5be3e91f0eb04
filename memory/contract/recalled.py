"""What a memory recalls for one step: which steps of the episode it reads, how much of each, what it writes.

A viewer shows it, and a test holds it to the read that it tells of; nothing else depends on it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Read(NamedTuple):
    """One read: where it looked."""

    steps: Int[Tensor, "batch items"]
    """Steps of the episode, counted from 0, the present one among them; -1 where there is none."""
    weights: Float[Tensor, "batch items"]
    """How much of what was read is of each, the mean over heads: 0 or more, together at most 1."""

    @classmethod
    def of(cls, steps: Int[Tensor, "batch *items"], weights: Float[Tensor, "batch *items"]) -> Read:
        """Return a read with zeros where there is no step, in float32, as shares if they are more than 1."""
        steps, weights = steps.flatten(1), weights.flatten(1).float()
        weights = torch.where(steps < 0, 0, weights)
        return cls(steps, weights / weights.sum(dim=1, keepdim=True).clamp(min=1))


class Recalled(NamedTuple):
    """All that a memory reads for a step, and how strongly it writes it."""

    reads: dict[str, Read]
    """By what they are: "window, layer 0"."""
    written: dict[str, Float[Tensor, " batch"]]
    """Measures of the writing, by what they are: "surprise, layer 0"."""

    def of_rows(self, rows: slice) -> Recalled:
        """Return what these rows recall."""
        reads = {name: Read(read.steps[rows], read.weights[rows]) for name, read in self.reads.items()}
        return Recalled(reads, {name: told[rows] for name, told in self.written.items()})

    @classmethod
    def of_move(cls, before: dict[str, Tensor], after: dict[str, Tensor]) -> Recalled | None:
        """Return how far a state moved, as a share of its length after it; None if it holds no numbers."""
        rows = [
            torch.stack([before[name].flatten(1), value.flatten(1)]).double()
            for name, value in after.items()
            if value.is_floating_point()
        ]
        if not rows:
            return None
        old, new = torch.cat(rows, dim=2)
        moved, length = (new - old).norm(dim=1), new.norm(dim=1)
        return cls({}, {"state moved, share of its length": torch.where(length > 0, moved / length, 0.0)})

    @classmethod
    def of_parts(cls, parts: dict[str, Recalled | None]) -> Recalled | None:
        """Return what all parts recall, each under its name; None if none says."""
        told = {name: part for name, part in parts.items() if part is not None}
        reads = {f"{part}, {name}": read for part, own in told.items() for name, read in own.reads.items()}
        written = {f"{part}, {name}": one for part, own in told.items() for name, one in own.written.items()}
        return cls(reads, written) if told else None
