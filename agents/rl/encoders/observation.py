"""Encoders of observations of any supported space as one vector: numbers, indices and images."""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.routing import REGIONS, RoutingBlock
from scrubjay.agents.rl.observations import leaf_spaces, to_leaves
from scrubjay.agents.rl.segment import Observation

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

ImageEncoderType = Literal["convolution", "routing"]
"""Architecture of the image encoder; see `ImageEncoder`."""

_MAX_ROUTING_SIDE = 16  # tokens along the shorter side

IMAGE_CHANNELS = (16, 32, 32, 64)
"""Output channels of the image encoder's layers; deeper layers repeat the last number."""

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


def _leaf_encoder(space: spaces.Space, dim: int, images: ImageEncoderType) -> nn.Module:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return IndexEncoder(space, dim)
    if isinstance(space, spaces.Box) and is_image(space):
        return ImageEncoder(space, dim, images)
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return VectorEncoder(space, dim)
    raise TypeError(f"no encoder for space {space}; use Box, Discrete, MultiDiscrete or MultiBinary")


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


class ImageEncoder(nn.Module):
    """Convolutional encoder: stride-2 layers until the shorter side is at most 8 pixels, then a linear layer.

    With `encoder_type="routing"` a `RoutingBlock` follows the first feature map whose shorter side is at most
    16. Raises ValueError if a side of the image has fewer pixels than the block has regions along each side.
    """

    def __init__(self, space: spaces.Box, dim: int, encoder_type: ImageEncoderType = "convolution") -> None:
        super().__init__()
        self.scale = Scale(space)
        self.channels_last = channels_last(space)
        channels, height, width = image_shape(space)
        maps = halving_channels(height, width)
        layers: list[nn.Module] = []
        has_routing = encoder_type == "convolution"
        if not has_routing and min(height, width) < REGIONS:
            raise ValueError(
                f"images='routing' needs at least {REGIONS} x {REGIONS} pixels, one per region; the image "
                f"has {height} x {width}: use images='convolution'"
            )
        if not has_routing and not maps:
            # The image is too small for any stride-2 layer.
            layers.append(initialize(nn.Conv2d(channels, IMAGE_CHANNELS[0], kernel_size=1)))
            layers.append(RoutingBlock(IMAGE_CHANNELS[0], height, width))
            channels, has_routing = IMAGE_CHANNELS[0], True
        for out_channels in maps:
            convolution = nn.Conv2d(channels, out_channels, kernel_size=4, stride=2, padding=1)
            layers += [initialize(convolution), nn.SiLU()]
            channels, height, width = out_channels, height // 2, width // 2
            if not has_routing and min(height, width) <= _MAX_ROUTING_SIDE:
                layers.append(RoutingBlock(channels, height, width))
                has_routing = True
        self.convolutions = nn.Sequential(*layers)
        self.linear = linear(channels * height * width, dim)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images `[batch, *shape]` as `[batch, dim]`."""
        images = self.scale(images).to(self.linear.weight.dtype)
        if self.channels_last:
            images = images.movedim(-1, 1)
        features = self.convolutions(images).flatten(1)
        return nn.functional.silu(self.linear(features))


class Scale(nn.Module):
    """Layer that scales images and integers from the finite bounds of their Box space to [0, 1].

    All other values are unchanged.
    """

    def __init__(self, space: spaces.Space) -> None:
        super().__init__()
        self.low, self.range, self.is_bounded = 0.0, 1.0, False
        if isinstance(space, spaces.Box) and (is_image(space) or np.issubdtype(space.dtype, np.integer)):
            low, high = float(space.low.min()), float(space.high.max())
            if math.isfinite(low) and math.isfinite(high) and high > low:
                self.low, self.range, self.is_bounded = low, high - low, True

    def forward(self, values: Tensor) -> Tensor:
        """Return the scaled values as float32, or the values themselves if no scaling is needed."""
        if (self.low, self.range) == (0.0, 1.0):
            return values
        return (values.to(torch.float32) - self.low) / self.range


def linear(inputs: int, outputs: int, gain: float = math.sqrt(2)) -> nn.Linear:
    """Return a new linear layer, initialized by `initialize`."""
    return initialize(nn.Linear(inputs, outputs), gain)


def initialize(layer: Layer, gain: float = math.sqrt(2)) -> Layer:
    """Initialize a layer and return it: orthogonal weights, zero bias; gain sqrt(2) before an activation."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def is_image(space: spaces.Space) -> bool:
    """Return True if a space is a Box with three axes."""
    return isinstance(space, spaces.Box) and len(space.shape) == 3


def channels_last(space: spaces.Box) -> bool:
    """Return True if an image space has channels last: the last axis is not longer than the first."""
    return space.shape[-1] <= space.shape[0]


def image_shape(space: spaces.Box) -> tuple[int, int, int]:
    """Return the channels, height and width of an image space."""
    if channels_last(space):
        return space.shape[2], space.shape[0], space.shape[1]
    return space.shape[0], space.shape[1], space.shape[2]


def halving_channels(height: int, width: int) -> list[int]:
    """Return the number of output channels of each stride-2 layer of the image encoder.

    The layers reduce the shorter side of the image to at most 8 pixels.
    """
    count = max(0, math.ceil(math.log2(min(height, width) / 8)))
    return [IMAGE_CHANNELS[min(layer, len(IMAGE_CHANNELS) - 1)] for layer in range(count)]
