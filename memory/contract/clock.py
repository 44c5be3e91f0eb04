"""Episode clock: the number of each step of a segment within its episode."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Clock(NamedTuple):
    """Times of a segment's steps. Create one with `from_starts` or `from_age`.

    A row's stream continues the count of the episode in which the segment begins: its first step in the
    segment has the row's age as its number.
    """

    age: Int[Tensor, " batch"]
    """Steps of each row's episode before the segment."""
    start: Bool[Tensor, "batch time"] | None
    """True at steps that begin an episode; None if no step does."""
    stream: Int[Tensor, "batch time"]
    """Each step's number in its row's stream."""
    episode_start: Int[Tensor, "batch time"]
    """Number, in the stream, of the first step of each step's episode."""
    step: Int[Tensor, "batch time"]
    """Each step's number in its episode."""

    @classmethod
    def from_starts(cls, age: Int[Tensor, " batch"], start: Bool[Tensor, "batch time"]) -> Clock:
        """Return the clock of a segment with these episode starts."""
        stream = age[:, None] + torch.arange(start.shape[1], device=age.device)
        episode_start = torch.where(start, stream, 0).cummax(dim=1).values
        return cls(age, start, stream, episode_start, stream - episode_start)

    @classmethod
    def from_age(cls, age: Int[Tensor, " batch"], length: int = 1) -> Clock:
        """Return the clock of `length` steps without an episode start."""
        stream = age[:, None] if length == 1 else age[:, None] + torch.arange(length, device=age.device)
        return cls(age, None, stream, torch.zeros_like(stream), stream)

    @property
    def length(self) -> int:
        """Steps of the segment."""
        return self.step.shape[1]

    @property
    def age_after(self) -> Int[Tensor, " batch"]:
        """Steps of each row's episode up to the end of the segment."""
        return self.step[:, -1] + 1

    @property
    def episode(self) -> Int[Tensor, "batch time"]:
        """Each step's episode, 0 for the one in which the segment begins."""
        return torch.zeros_like(self.step) if self.start is None else episodes(self.start)

    def chunk_index(self, size: int) -> Int[Tensor, "batch time"]:
        """Return the index, in its episode, of each step's chunk of `size` steps."""
        return self.step // size

    def chunk_position(self, size: int) -> Int[Tensor, "batch time"]:
        """Return each step's position in its chunk of `size` steps."""
        return self.step % size


def episodes(start: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Count the episode starts up to each step."""
    return start.cumsum(dim=1)


def last_marked(mask: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Return the last step with a True mask up to each step, -1 if there is none."""
    step = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, step, -1).cummax(dim=1).values
