"""Encoder of observations of any supported space as one vector."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.image import ImageEncoder, ImageEncoderType
from scrubjay.agents.rl.encoders.layers import Scale, linear
from scrubjay.agents.rl.encoders.shape import is_image
from scrubjay.agents.rl.observations import leaf_spaces, to_leaves
from scrubjay.agents.rl.segment import Observation

# Up to this many categories per entry, a product with one-hot vectors is faster than an embedding lookup, its
# backward pass included.
_FEW_CATEGORIES = 32


class ObservationEncoder(nn.Module):
    """Encoder of all leaves of an observation space as one vector of width `dim`.

    Box vectors and MultiBinary pass through a linear layer and SiLU. Box images (three axes, channels first
    or last) pass through an `ImageEncoder` with `encoder_type=images`. Discrete and MultiDiscrete values are
    encoded as sums of learned embeddings. The features of several leaves are concatenated and projected.
    Raises TypeError on any other space, and ValueError if an image is too small.
    """

    def __init__(self, space: spaces.Space, dim: int, images: ImageEncoderType = "convolution") -> None:
        super().__init__()
        self.leaves = leaf_spaces(space)
        if not self.leaves:
            raise TypeError(f"observation space {space} is empty; a policy needs at least one observation")
        self.encoders = nn.ModuleList(_leaf_encoder(leaf, dim, images) for leaf in self.leaves.values())
        self.project = linear(dim * len(self.leaves), dim) if len(self.leaves) > 1 else None

    def forward(self, observation: Observation) -> Float[Tensor, "batch dim"]:
        """Encode observations, whose leaves are `[batch, *shape]`, as one vector each."""
        leaves = to_leaves(observation)
        features = [encode(leaves[key]) for key, encode in zip(self.leaves, self.encoders, strict=True)]
        return features[0] if self.project is None else self.project(torch.cat(features, dim=-1))


class VectorEncoder(nn.Module):
    """Linear layer and SiLU on a flattened Box or MultiBinary; integers are first scaled to [0, 1]."""

    def __init__(self, space: spaces.Box | spaces.MultiBinary, dim: int) -> None:
        super().__init__()
        self.scale = Scale(space)
        self.linear = linear(math.prod(space.shape), dim)

    def forward(self, values: Tensor) -> Tensor:
        """Encode values `[batch, *shape]` as `[batch, dim]`."""
        flat = (
            self.scale(values).to(self.linear.weight.dtype).reshape(values.shape[0], self.linear.in_features)
        )
        return nn.functional.silu(self.linear(flat))


class IndexEncoder(nn.Module):
    """Sum of learned embeddings of the entries of a Discrete or MultiDiscrete value."""

    offsets: Tensor

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete, dim: int) -> None:
        super().__init__()
        sizes, starts = category_sizes(space)
        # One table holds the embeddings of all entries, one entry after the other.
        offsets = np.cumsum(sizes) - sizes - starts
        self.register_buffer("offsets", torch.as_tensor(offsets), persistent=False)
        self.embedding = nn.Embedding(int(sizes.sum()), dim)

    def forward(self, values: Tensor) -> Tensor:
        """Encode values `[batch, *shape]` as `[batch, dim]`."""
        if values.ndim == 1:
            return self.embedding(values + self.offsets)
        indices, table = values.flatten(1) + self.offsets, self.embedding.weight
        if len(table) > _FEW_CATEGORIES * indices.shape[1]:
            return self.embedding(indices).sum(dim=1)
        return table.new_zeros(indices.shape[0], table.shape[0]).scatter_(1, indices, 1) @ table


def category_sizes(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of categories and the lowest value of each entry of a discrete space."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n]), np.array([space.start])
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel().astype(np.int64), space.start.ravel().astype(np.int64)
    raise TypeError(f"space {space} does not hold indices; expected Discrete or MultiDiscrete")


def _leaf_encoder(space: spaces.Space, dim: int, images: ImageEncoderType) -> nn.Module:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return IndexEncoder(space, dim)
    if isinstance(space, spaces.Box) and is_image(space):
        return ImageEncoder(space, dim, images)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return VectorEncoder(space, dim)
    raise TypeError(f"no encoder for space {space}; use Box, Discrete, MultiDiscrete or MultiBinary")
