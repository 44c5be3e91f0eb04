"""The clock of episodes: where each step of a segment is in its episode, wherever episodes begin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Clock(NamedTuple):
    """Times of a segment's steps; `of` and `running` make one.

    A row's stream counts on from the episode that the segment began in: its first step here is the row's age.
    """

    age: Int[Tensor, " batch"]
    """Steps taken in each row's episode before the segment."""
    start: Bool[Tensor, "batch time"] | None
    """Which steps begin an episode; None for no step."""
    stream: Int[Tensor, "batch time"]
    """Each step's number in its row's stream."""
    birth: Int[Tensor, "batch time"]
    """The stream's step that each step's episode began with."""
    step: Int[Tensor, "batch time"]
    """Each step's number in its episode."""

    @classmethod
    def of(cls, age: Int[Tensor, " batch"], start: Bool[Tensor, "batch time"]) -> Clock:
        """Return the clock of a segment with its starts."""
        stream = age[:, None] + torch.arange(start.shape[1], device=age.device)
        birth = torch.where(start, stream, 0).cummax(dim=1).values
        return cls(age, start, stream, birth, stream - birth)

    @classmethod
    def running(cls, age: Int[Tensor, " batch"], length: int = 1) -> Clock:
        """Return the clock of `length` steps that begin no episode."""
        stream = age[:, None] if length == 1 else age[:, None] + torch.arange(length, device=age.device)
        return cls(age, None, stream, torch.zeros_like(stream), stream)

    @property
    def length(self) -> int:
        """Steps of the segment."""
        return self.step.shape[1]

    @property
    def after(self) -> Int[Tensor, " batch"]:
        """Steps taken in each row's episode after the segment."""
        return self.step[:, -1] + 1

    @property
    def episode(self) -> Int[Tensor, "batch time"]:
        """Each step's episode, 0 for the one that the segment began in."""
        return torch.zeros_like(self.step) if self.start is None else episodes(self.start)

    def chunk(self, size: int) -> Int[Tensor, "batch time"]:
        """Return the number, in its episode, of the chunk of `size` steps that each step is in."""
        return self.step // size

    def place(self, size: int) -> Int[Tensor, "batch time"]:
        """Return each step's place in its chunk."""
        return self.step % size


def episodes(start: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Return how many episodes have begun up to each step."""
    return start.cumsum(dim=1)


def latest(marked: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Return the last marked step up to each, -1 where there is none."""
    step = torch.arange(marked.shape[1], device=marked.device)
    return torch.where(marked, step, -1).cummax(dim=1).values
