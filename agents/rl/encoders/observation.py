"""Encoders: one vector of the memory's width from an observation of any supported space."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.image import ImageEncoder, ImageKind
from scrubjay.agents.rl.encoders.layers import Scale, linear
from scrubjay.agents.rl.encoders.shape import is_image
from scrubjay.agents.rl.observations import leaf_spaces, to_leaves
from scrubjay.agents.rl.segment import Observation

# Up to so many for an entry a product with ones and zeros takes less time, with its gradient, than a lookup.
_FEW_CATEGORIES = 32


class ObservationEncoder(nn.Module):
    """Encodes every leaf of an observation space; several are concatenated and projected to the width.

    Box vectors pass a linear layer and SiLU, Box images (three axes, channels last or first) a small
    convolutional network, of the kind `images`, Discrete and MultiDiscrete embeddings that are added up,
    MultiBinary a linear layer. Raises TypeError on any other space, ValueError on an image too small.
    """

    def __init__(self, space: spaces.Space, dim: int, images: ImageKind = "convolution") -> None:
        super().__init__()
        self.leaves = leaf_spaces(space)
        if not self.leaves:
            raise TypeError(f"observation space {space} is empty; a policy needs something to see")
        self.encoders = nn.ModuleList(_leaf_encoder(leaf, dim, images) for leaf in self.leaves.values())
        self.project = linear(dim * len(self.leaves), dim) if len(self.leaves) > 1 else None

    def forward(self, observation: Observation) -> Float[Tensor, "batch dim"]:
        """Return one vector per observation; the leaves are `[batch, *shape]`."""
        leaves = to_leaves(observation)
        encoded = [encode(leaves[key]) for key, encode in zip(self.leaves, self.encoders, strict=True)]
        return encoded[0] if self.project is None else self.project(torch.cat(encoded, dim=-1))


class VectorEncoder(nn.Module):
    """A linear layer and SiLU over a flattened Box or MultiBinary; integers are first scaled to [0, 1]."""

    def __init__(self, space: spaces.Box | spaces.MultiBinary, dim: int) -> None:
        super().__init__()
        self.scale = Scale(space)
        self.linear = linear(math.prod(space.shape), dim)

    def forward(self, values: Tensor) -> Tensor:
        """Return `[batch, dim]` from `[batch, *shape]`."""
        flat = (
            self.scale(values).to(self.linear.weight.dtype).reshape(values.shape[0], self.linear.in_features)
        )
        return nn.functional.silu(self.linear(flat))


class IndexEncoder(nn.Module):
    """Learned embeddings of Discrete or MultiDiscrete values; those of one observation are added up."""

    offsets: Tensor

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete, dim: int) -> None:
        super().__init__()
        sizes, starts = category_sizes(space)
        # One table holds all embeddings; every entry's rows begin where those of the entry before end.
        offsets = np.cumsum(sizes) - sizes - starts
        self.register_buffer("offsets", torch.as_tensor(offsets), persistent=False)
        self.embedding = nn.Embedding(int(sizes.sum()), dim)

    def forward(self, values: Tensor) -> Tensor:
        """Return `[batch, dim]` from `[batch, *shape]`."""
        if values.ndim == 1:
            return self.embedding(values + self.offsets)
        chosen, table = values.flatten(1) + self.offsets, self.embedding.weight
        if len(table) > _FEW_CATEGORIES * chosen.shape[1]:
            return self.embedding(chosen).sum(dim=1)
        return table.new_zeros(chosen.shape[0], table.shape[0]).scatter_(1, chosen, 1) @ table


def category_sizes(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of categories and the first value of every entry of an index-valued space."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n]), np.array([space.start])
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel().astype(np.int64), space.start.ravel().astype(np.int64)
    raise TypeError(f"space {space} does not hold indices; expected Discrete or MultiDiscrete")


def _leaf_encoder(space: spaces.Space, dim: int, images: ImageKind) -> nn.Module:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return IndexEncoder(space, dim)
    if isinstance(space, spaces.Box) and is_image(space):
        return ImageEncoder(space, dim, images)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return VectorEncoder(space, dim)
    raise TypeError(f"no encoder for space {space}")
