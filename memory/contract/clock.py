"""Episode clock: the number of each step of a segment within its episode, and the window of last inputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Clock(NamedTuple):
    """Step numbers of a segment. Create a clock with `from_starts` or `from_age`.

    Each step has two numbers. The number `step` counts from the start of the step's episode. The number
    `stream` counts from `age` at the first step of the segment, without a reset at episode starts.
    """

    age: Int[Tensor, " batch"]
    """Number of steps before the segment in the current episode of each row."""
    start: Bool[Tensor, "batch time"] | None
    """True at steps that begin an episode; None if no step does."""
    stream: Int[Tensor, "batch time"]
    """Number of each step in its batch row. The segment's first step has the number `age`. The count
    continues across episode starts."""
    episode_start: Int[Tensor, "batch time"]
    """Value of `stream` at the first step of each step's episode."""
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
        """Return the clock of a segment of `length` steps in which no episode starts.

        `age` is the number of steps since the last episode start, counted before the segment.
        """
        stream = age[:, None] if length == 1 else age[:, None] + torch.arange(length, device=age.device)
        return cls(age, None, stream, torch.zeros_like(stream), stream)

    @property
    def length(self) -> int:
        """Number of steps in the segment."""
        return self.step.shape[1]

    @property
    def age_after(self) -> Int[Tensor, " batch"]:
        """Number of steps of each row's last episode up to the end of the segment."""
        return self.step[:, -1] + 1

    @property
    def episode(self) -> Int[Tensor, "batch time"]:
        """Episode number of each step; 0 for the episode that the segment continues."""
        return torch.zeros_like(self.step) if self.start is None else episodes(self.start)

    def chunk_index(self, size: int) -> Int[Tensor, "batch time"]:
        """Return for each step the index of its chunk within the episode; a chunk has `size` steps."""
        return self.step // size

    def chunk_position(self, size: int) -> Int[Tensor, "batch time"]:
        """Return each step's position in its chunk of `size` steps."""
        return self.step % size


def episodes(start: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Return for each step the number of episode starts up to and including this step."""
    return start.cumsum(dim=1)


def last_marked(mask: Bool[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Return for each step t the last step with a True mask among the steps 0 to t, -1 if there is none."""
    step = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, step, -1).cummax(dim=1).values


def shift_window(
    recent: Float[Tensor, "batch window dim"],
    x: Float[Tensor, "batch time dim"],
    clock: Clock,
) -> Float[Tensor, "batch window dim"]:
    """Return the last `window` inputs after a segment, oldest first; zeros before the current episode."""
    window = recent.shape[1]
    # Only the needed steps are concatenated: copying a whole segment costs as much as a pass over it.
    behind = recent[:, min(x.shape[1], window) :]
    inputs = torch.cat([behind, x[:, max(0, x.shape[1] - window) :].to(recent.dtype)], dim=1)
    index = torch.arange(window, device=x.device)
    return torch.where((index >= window - clock.age_after[:, None])[..., None], inputs, 0)
