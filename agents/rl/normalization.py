"""Normalization of observations by their running mean and variance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.images import is_image
from scrubjay.agents.rl.encoders.observation import ADJACENCY, set_names
from scrubjay.agents.rl.learner import SingleProcess
from scrubjay.agents.rl.observations import from_leaves, leaf_spaces, to_leaves
from scrubjay.agents.rl.segment import Observation

CLIP = 10.0
"""Largest absolute value of a normalized number, as in Stable-Baselines3."""
EPSILON = 1e-8
"""Number that is added to the variance, as in Stable-Baselines3 and gymnasium."""
FIRST_COUNT = 1e-4
"""Weight of the initial mean 0 and variance 1, as in Stable-Baselines3 and gymnasium."""


class ObservationNormalizer(nn.Module):
    """Normalization of the floating-point vectors of an observation space.

    A number x becomes `(x - mean) / sqrt(variance + 1e-8)`, clipped to [-10, 10], as in `VecNormalize` of
    Stable-Baselines3. The statistics are buffers in float64, also if the policy has another precision. In a
    set (see `EntityEncoder`) the elements share the statistics of each feature, and padding does not count.
    Images, integers, indices, bits, masks and the graph `adjacency` are unchanged. Raises ValueError if the
    space has nothing to normalize.
    """

    mean: Float[Tensor, " numbers"]
    variance: Float[Tensor, " numbers"]
    count: Float[Tensor, " numbers"]

    def __init__(self, space: spaces.Space) -> None:
        super().__init__()
        leaves = leaf_spaces(space)
        self.sets = set(set_names(leaves))
        masks = {f"{name}_mask" for name in self.sets}
        self.shapes: dict[str, tuple[int, ...]] = {
            name: leaf.shape[1:] if name in self.sets else leaf.shape
            for name, leaf in leaves.items()
            if isinstance(leaf, spaces.Box) and _is_vector(name, leaf) and name not in masks
        }
        """Shape of the statistics of each leaf that is normalized."""
        if not self.shapes:
            raise ValueError(
                f"normalize_observations=True: observation space {space} has no floating-point vector to "
                "normalize; use normalize_observations=False"
            )
        size = sum(map(math.prod, self.shapes.values()))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.full((size,), FIRST_COUNT, dtype=torch.float64))

    def forward(self, observation: Observation) -> Observation:
        """Normalize observations, whose leaves have any number of leading axes."""
        leaves = dict(to_leaves(observation))
        parts = self._split(self.mean), self._split((self.variance + EPSILON).sqrt())
        for name, mean, deviation in zip(self.shapes, *parts, strict=True):
            normalized = ((leaves[name].double() - mean) / deviation).clamp(-CLIP, CLIP)
            leaves[name] = normalized.to(leaves[name].dtype)
        return from_leaves(leaves)

    @torch.no_grad()
    def update(
        self,
        observation: Observation,
        peers: SingleProcess,
        alive: Bool[Tensor, "*leading"] | None = None,
    ) -> None:
        """Add observations to the statistics, by the parallel algorithm of Chan et al. 1979.

        If `alive` is not None, only observations where it is True count. With `peers`, those of all learners
        count. Raises ValueError, and changes nothing, if a number is NaN or infinite.
        """
        rows = [self._rows(name, to_leaves(observation), alive) for name in self.shapes]
        counts = torch.cat([row.new_full(row.shape[1:], len(row)) for row in rows])
        counts, sums = peers.sum(torch.stack([counts, torch.cat([row.sum(dim=0) for row in rows])]))
        means = sums / counts.clamp_min(1)
        if not means.isfinite().all():
            raise ValueError("observations have NaN or inf; they must be finite to be normalized")
        sizes = [row.shape[1] for row in rows]
        squares = peers.sum(
            torch.cat(
                [(row - mean).square().sum(dim=0) for row, mean in zip(rows, means.split(sizes), strict=True)]
            )
        )
        total = self.count + counts
        change = means - self.mean
        squares += self.variance * self.count + change.square() * self.count * counts / total
        self.mean += change * counts / total
        self.variance.copy_(squares / total)
        self.count.copy_(total)

    def _rows(
        self, name: str, leaves: dict[str, Tensor], alive: Tensor | None
    ) -> Float[Tensor, "rows numbers"]:
        """Return all observations of a leaf that count, one per row."""
        values, shape = leaves[name].double(), self.shapes[name]
        counts = None if alive is None else alive
        if name in self.sets:
            is_element = leaves[f"{name}_mask"] > 0
            counts = is_element if counts is None else is_element & counts[..., None]
        rows = values.reshape(-1, math.prod(shape))
        return rows if counts is None else rows[counts.reshape(-1)]

    def _split(self, statistics: Tensor) -> Iterator[Tensor]:
        """Yield the statistics of each leaf, in its shape."""
        parts = statistics.split([math.prod(shape) for shape in self.shapes.values()])
        yield from (part.view(shape) for part, shape in zip(parts, self.shapes.values(), strict=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the statistics to another device, but keep them in float64."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, copy in self._buffers.items():
            value = before[name]
            if value is not None and copy is not None and copy.dtype != value.dtype:
                self._buffers[name] = value.to(copy.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load the statistics; invalid ones are an error of the weights."""
        super()._load_from_state_dict(state_dict, prefix, *args)
        for name, least in (("mean", -math.inf), ("variance", 0.0), ("count", 0.0)):
            value = state_dict.get(f"{prefix}{name}")
            if isinstance(value, Tensor) and not (value.isfinite() & (value >= least)).all():
                errors: list[str] = args[-1]
                errors.append(f"{prefix}{name}: must be finite, and variance and count at least 0")


def _is_vector(name: str, leaf: spaces.Box) -> bool:
    """Return True if a leaf has floating-point numbers and is neither an image nor a mask nor a graph."""
    last = name.rpartition("/")[2]
    return (
        np.issubdtype(leaf.dtype, np.floating)
        and not is_image(leaf)
        and last not in (ADJACENCY, "action_mask")
    )
