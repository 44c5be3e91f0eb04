"""Encoders: one vector of the memory's width from an observation of any supported space."""

from __future__ import annotations

import math

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.agents.rl.observations import leaf_spaces, to_leaves
from scrubjay.agents.rl.segment import Observation

IMAGE_CHANNELS = (16, 32, 32, 64)
"""Feature maps of the image encoder's layers; deeper ones repeat the last."""

# Up to so many for an entry a product with ones and zeros takes less time, with its gradient, than a lookup.
_FEW_CATEGORIES = 32


class ObservationEncoder(nn.Module):
    """Encodes every leaf of an observation space; several are concatenated and projected to the width.

    Box vectors pass a linear layer and SiLU, Box images (three axes, channels last or first) a small
    convolutional network, Discrete and MultiDiscrete embeddings that are added up, MultiBinary a linear
    layer. Raises TypeError on any other space.
    """

    def __init__(self, space: spaces.Space, dim: int) -> None:
        super().__init__()
        self.leaves = leaf_spaces(space)
        if not self.leaves:
            raise TypeError(f"observation space {space} is empty; a policy needs something to see")
        self.encoders = nn.ModuleList(_leaf_encoder(leaf, dim) for leaf in self.leaves.values())
        self.project = _linear(dim * len(self.leaves), dim) if len(self.leaves) > 1 else None

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
        self.linear = _linear(math.prod(space.shape), dim)

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


class ImageEncoder(nn.Module):
    """Convolutions that halve the image until its shorter side is at most 8 pixels, then a linear layer."""

    def __init__(self, space: spaces.Box, dim: int) -> None:
        super().__init__()
        self.scale = Scale(space)
        self.channels_last = channels_last(space)
        channels, height, width = image_shape(space)
        layers: list[nn.Module] = []
        for out_channels in halving_channels(height, width):
            convolution = nn.Conv2d(channels, out_channels, kernel_size=4, stride=2, padding=1)
            _initialise(convolution)
            layers += [convolution, nn.SiLU()]
            channels, height, width = out_channels, height // 2, width // 2
        self.convolutions = nn.Sequential(*layers)
        self.linear = _linear(channels * height * width, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Return `[batch, dim]` from `[batch, *shape]`."""
        images = self.scale(images).to(self.linear.weight.dtype)
        if self.channels_last:
            images = images.movedim(-1, 1)
        features = self.convolutions(images).flatten(1)
        return nn.functional.silu(self.linear(features))


class Scale(nn.Module):
    """Maps integer and image boxes with finite bounds to [0, 1]; leaves all other numbers as they are."""

    def __init__(self, space: spaces.Space) -> None:
        super().__init__()
        self.low, self.range, self.bounded = 0.0, 1.0, False
        if isinstance(space, spaces.Box) and (is_image(space) or np.issubdtype(space.dtype, np.integer)):
            low, high = float(space.low.min()), float(space.high.max())
            if math.isfinite(low) and math.isfinite(high) and high > low:
                self.low, self.range, self.bounded = low, high - low, True

    def forward(self, values: Tensor) -> Tensor:
        """Return the scaled values, as floats where anything was to do."""
        if (self.low, self.range) == (0.0, 1.0):
            return values
        return (values.to(torch.float32) - self.low) / self.range


def is_image(space: spaces.Space) -> bool:
    """Return whether a space is a Box of three axes."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3


def channels_last(space: spaces.Box) -> bool:
    """Return whether an image's last axis is the channels: the shorter of first and last, last in a draw."""
    return space.shape[-1] <= space.shape[0]


def image_shape(space: spaces.Box) -> tuple[int, int, int]:
    """Return an image's channels, height and width."""
    if channels_last(space):
        return space.shape[2], space.shape[0], space.shape[1]
    return space.shape[0], space.shape[1], space.shape[2]


def halving_channels(height: int, width: int) -> list[int]:
    """Return the feature maps of each halving layer that brings the shorter side down to 8 pixels."""
    count = max(0, math.ceil(math.log2(min(height, width) / 8)))
    return [IMAGE_CHANNELS[min(layer, len(IMAGE_CHANNELS) - 1)] for layer in range(count)]


def category_sizes(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of categories and the first value of every entry of an index-valued space."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n]), np.array([space.start])
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel().astype(np.int64), space.start.ravel().astype(np.int64)
    raise TypeError(f"space {space} does not hold indices; expected Discrete or MultiDiscrete")


def _leaf_encoder(space: spaces.Space, dim: int) -> nn.Module:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return IndexEncoder(space, dim)
    if isinstance(space, spaces.Box) and is_image(space):
        return ImageEncoder(space, dim)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return VectorEncoder(space, dim)
    raise TypeError(f"no encoder for space {space}")


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    _initialise(layer)
    return layer


def _initialise(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.orthogonal_(layer.weight, math.sqrt(2))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
