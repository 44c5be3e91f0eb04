"""Segments: fixed-length rollouts of several environments, which samplers collect and learners train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.memory import State

Observation = Tensor | dict[str, Tensor]
"""A tensor, or for Dict and Tuple spaces a flat dict of tensors whose nested keys are joined by "/"."""


class Batch:
    """Base class of dataclasses of tensors and flat dicts of tensors with the batch axis first.

    A field can also be another batch, or None.
    """

    def rows(self, index: Int[Tensor, "rows"]) -> Self:
        """Return a copy that has only the batch rows `index`, in the order of `index`."""
        return self._combine(lambda value: value.index_select(0, index), self)

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with all tensors on `device`."""
        return self._combine(lambda value: value.to(device), self)

    @classmethod
    def _combine(cls, function: Callable[..., Tensor], *batches: Self) -> Self:
        """Return the batch with `function` of the tensors of all `batches` as each of its tensors."""
        tensors: dict[str, Any] = {}
        for field in fields(cls):  # pyright: ignore[reportArgumentType]  (subclasses are dataclasses)
            parts = [getattr(batch, field.name) for batch in batches]
            if isinstance(parts[0], dict):
                tensors[field.name] = {key: function(*(part[key] for part in parts)) for key in parts[0]}
            elif isinstance(parts[0], Batch):
                tensors[field.name] = parts[0]._combine(function, *parts)
            else:
                tensors[field.name] = None if parts[0] is None else function(*parts)
        return cls(**tensors)


class BaseSegment(Batch):
    """Base class of segments."""

    rewards: Tensor

    @property
    def num_rows(self) -> int:
        """Batch size: number of environments."""
        return self.rewards.shape[0]

    def check_rewards(self) -> None:
        """Raise ValueError if a reward is NaN or infinite, before it makes all weights NaN."""
        bad = (~self.rewards.isfinite() & self._acts()).nonzero()
        if len(bad):
            row, step, *_ = bad[0].tolist()
            reward = self.rewards[tuple(bad[0])].item()
            raise ValueError(f"the reward in row {row} at step {step} is {reward}; rewards must be finite")

    @classmethod
    def cat(cls, segments: Sequence[Self]) -> Self:
        """Concatenate segments along the batch axis.

        Raises ValueError if there are no segments or if their lengths differ.
        """
        lengths = sorted({segment.rewards.shape[1] for segment in segments})
        if len(lengths) != 1:
            raise ValueError(
                f"cannot concatenate segments of lengths {lengths}; pass at least one, all of the same length"
            )
        return cls._combine(lambda *parts: torch.cat(parts), *segments)

    def _acts(self) -> Tensor:
        """Return a mask, broadcastable to the rewards, that is True where rewards have a meaning."""
        return torch.ones((), dtype=torch.bool, device=self.rewards.device)


@dataclass
class EarlierSteps(Batch):
    """Steps before a segment, from which the memory state at its start can be computed again."""

    observations: Observation
    """Observation before each action, `[batch, time, ...]`."""
    starts: Bool[Tensor, "batch time"]
    """True where the observation is the first of an episode."""
    state: State
    """Memory state before the first of these steps, at sampling time."""


@dataclass
class Segment(BaseSegment):
    """Rollout of `batch` environments over `time` steps.

    There is no padding between episodes: `starts` is True at the first step of an episode. Only the memory
    state before the first step of the segment is stored. A learner recomputes later states in one forward
    pass under the current weights.
    """

    observations: Observation
    """Observation before each action, `[batch, time, ...]`."""
    actions: Tensor
    """Sampled actions: zero-based indices, or real numbers before clipping to the bounds. Actions of a Dict
    or Tuple space are vectors of the numbers of all parts."""
    log_probs: Float[Tensor, "batch time"]
    """Log-probability of each action under the sampling policy, in nats."""
    values: Float[Tensor, "batch time"]
    """Value estimate of each observation at sampling time."""
    rewards: Float[Tensor, "batch time"]
    """Reward of each action."""
    starts: Bool[Tensor, "batch time"]
    """True where the observation is the first of an episode."""
    terminated: Bool[Tensor, "batch time"]
    """True where the action led to a terminal state."""
    truncated: Bool[Tensor, "batch time"]
    """True where the episode was truncated after the action, such as by a time limit."""
    bootstrap_values: Float[Tensor, "batch time"]
    """Value of the final observation where an episode was truncated, computed with the memory state of this
    episode; 0 elsewhere."""
    last_values: Float[Tensor, "batch"]
    """Value of the observation that follows the segment."""
    state: State
    """Memory state before the first step."""
    burn_in: EarlierSteps | None = None
    """The steps before the segment, if the sampler keeps them."""

    @property
    def num_steps(self) -> int:
        """Number of environment steps, over all environments."""
        return self.rewards.numel()
