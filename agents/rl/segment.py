"""A stretch of experience of several environments, dense in time, as samplers make it and learners use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.memory import State

Observation = Tensor | dict[str, Tensor]
"""One tensor, or for Dict and Tuple spaces a flat dict of tensors whose keys are joined by "/"."""


class Experience:
    """What segments of all kinds share: dataclasses of tensors, and of flat dicts of tensors, batch first."""

    rewards: Tensor

    @property
    def num_rows(self) -> int:
        """Number of rows of the batch."""
        return self.rewards.shape[0]

    def rows(self, index: Int[Tensor, "rows"]) -> Self:
        """Return the chosen rows, whole and in the given order."""
        return self._map(lambda value: value.index_select(0, index))

    def to(self, device: torch.device | str) -> Self:
        """Return the segment with every tensor on `device`."""
        return self._map(lambda value: value.to(device))

    @classmethod
    def cat(cls, segments: Sequence[Self]) -> Self:
        """Return the rows of all segments, in order. Raises ValueError if there is none or lengths differ."""
        lengths = sorted({segment.rewards.shape[1] for segment in segments})
        if len(lengths) != 1:
            raise ValueError(
                f"cannot join segments of lengths {lengths}; collect equally long ones, at least one"
            )
        joined: dict[str, Any] = {}
        for field in fields(cls):  # pyright: ignore[reportArgumentType]  (subclasses are dataclasses)
            parts = [getattr(segment, field.name) for segment in segments]
            if isinstance(parts[0], dict):
                joined[field.name] = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            else:
                joined[field.name] = torch.cat(parts)
        return cls(**joined)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        mapped: dict[str, Any] = {}
        for field in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, dict):
                mapped[field.name] = {key: function(part) for key, part in value.items()}
            else:
                mapped[field.name] = function(value)
        return type(self)(**mapped)


@dataclass
class Segment(Experience):
    """What `batch` environments lived through in `time` steps.

    No padding: `starts` marks where episodes begin, and only the state before the first step is kept, so
    that a learner computes all later ones again, in one pass, under its own weights.
    """

    observations: Observation
    """What the policy saw before each action, `[batch, time, ...]`."""
    actions: Tensor
    """What the policy sampled: zero-based indices, or real numbers before clipping to the bounds."""
    log_probs: Float[Tensor, "batch time"]
    """Log-probability of each action under the policy that took it, in nats."""
    values: Float[Tensor, "batch time"]
    """Value of each observation as judged while sampling."""
    rewards: Float[Tensor, "batch time"]
    """Reward that followed each action."""
    starts: Bool[Tensor, "batch time"]
    """True where the observation is the first of an episode."""
    terminated: Bool[Tensor, "batch time"]
    """True where the action ended the episode for good."""
    truncated: Bool[Tensor, "batch time"]
    """True where the episode was cut off after the action, as by a time limit."""
    bootstrap_values: Float[Tensor, "batch time"]
    """Where truncated, the value of the final observation under the state of the ended episode; else 0."""
    last_values: Float[Tensor, "batch"]
    """Value of the observation that follows the segment, the state carried into it."""
    state: State
    """Memory state before the first step."""

    @property
    def num_steps(self) -> int:
        """Number of environment steps, over all rows."""
        return self.rewards.numel()
