"""Encoders of observations of any supported space as one vector: numbers, indices, images and sets."""

from __future__ import annotations

import math
from typing import Literal, TypeVar, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.convolution import NATURE_SIDE, build_impala, build_nature
from scrubjay.agents.rl.encoders.images import ImageLayout, is_grid, is_image
from scrubjay.agents.rl.encoders.routing import REGIONS, RoutingBlock
from scrubjay.agents.rl.observations import leaf_spaces, to_leaves
from scrubjay.agents.rl.segment import Observation

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

ImageEncoderType = Literal["auto", "convolution", "routing", "cells"]
"""Architecture of the image encoder; see `ImageEncoder`."""

_AnyImageEncoder = ImageEncoderType | Literal["nature", "impala"]
"""Image encoders that `PolicyConfig.images` or `PolicyConfig.encoder` names."""

Pooling = Literal["attention", "sum"]
"""Pooling of a set's elements into one vector; see `SetEncoder`."""

ADJACENCY = "adjacency"
"""Name of the leaf that defines the communication graph. It is not encoded as a feature."""

_MAX_ROUTING_SIDE = 16  # tokens along the shorter side

_CELL_CODES = 16
"""Number of lowest values of a cell that each have a category; larger values share one."""

IMAGE_CHANNELS = (16, 32, 32, 64)
"""Output channels of the image encoder's layers; deeper layers repeat the last number."""

# Up to this many categories per entry, a product with one-hot vectors is faster than an embedding lookup, its
# backward pass included.
_FEW_CATEGORIES = 32


class ObservationEncoder(nn.Module):
    """Encoder of all leaves of an observation space as one vector of width `dim`.

    Box vectors and MultiBinary pass through a linear layer and SiLU. Box images (see `is_image`) pass through
    an `ImageEncoder` with `encoder_type=images`. Discrete and MultiDiscrete values are encoded as sums of
    learned embeddings. The features of several leaves are concatenated and projected. Raises TypeError on any
    other space, and ValueError if an image is too small.
    """

    def __init__(self, space: spaces.Space, dim: int, images: _AnyImageEncoder = "convolution") -> None:
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


def _leaf_encoder(space: spaces.Space, dim: int, images: _AnyImageEncoder) -> nn.Module:
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return IndexEncoder(space, dim)
    if isinstance(space, spaces.Box) and is_image(space):
        if images == "nature" or images == "impala":
            return PixelEncoder(space, dim, images)
        return ImageEncoder(space, dim, images)
    if isinstance(space, spaces.Box) and len(space.shape) > 4:
        raise TypeError(
            f"no encoder for space {space} with {len(space.shape)} axes; flatten it with "
            "gymnasium.wrappers.FlattenObservation, or reshape it to a video of four axes, the frames first"
        )
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

    The frames of a video are channels. With `encoder_type="routing"` a `RoutingBlock` follows the first
    feature map whose shorter side is at most 16. With "cells" the image is a grid: a layer first encodes each
    cell by the categories of its numbers (`CellEncoder`). "auto" is "cells" for integer images of at most 31
    pixels along the shorter side (`is_grid`), and "convolution" for others. Raises ValueError if a side of
    the image has fewer pixels than the block has regions along each side, or if cells are not integers.
    """

    def __init__(self, space: spaces.Box, dim: int, encoder_type: ImageEncoderType = "convolution") -> None:
        super().__init__()
        if encoder_type == "auto":
            encoder_type = "cells" if is_grid(space) else "convolution"
        self.layout = ImageLayout.from_space(space, is_grid=encoder_type == "cells")
        channels, height, width = self.layout.channels, self.layout.height, self.layout.width
        self.cells = CellEncoder(space, channels) if encoder_type == "cells" else None
        self.scale = Scale(space)
        channels = channels if self.cells is None else IMAGE_CHANNELS[0]
        maps = halving_channels(height, width)
        layers: list[nn.Module] = []
        has_routing = encoder_type != "routing"
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
        images = self.layout.channels_first(images)
        if self.cells is None:
            images = self.scale(images).to(self.linear.weight.dtype)
        else:
            images = self.cells(images)
        features = self.convolutions(images).flatten(1)
        return nn.functional.silu(self.linear(features))


class CellEncoder(nn.Module):
    """Encoder of each cell of a grid by one layer with SiLU, from the categories of its numbers.

    The numbers of a cell are codes, as in MiniGrid, where they are the object, its color and its state. Each
    number is one-hot encoded over the lowest 16 values of the space. Its value scaled to [0, 1] is a further
    input, which tells larger values apart. Raises ValueError if the space does not consist of integers.
    """

    codes: Tensor

    def __init__(self, space: spaces.Box, channels: int) -> None:
        super().__init__()
        if not np.issubdtype(space.dtype, np.integer):
            raise ValueError(
                f"images='cells' needs integers; the image has dtype {space.dtype}: use images='auto'"
            )
        self.scale = Scale(space)
        low, count = int(space.low.min()), min(_CELL_CODES, int(space.high.max()) - int(space.low.min()) + 1)
        self.register_buffer("codes", torch.arange(low, low + count), persistent=False)
        self.embed = initialize(nn.Conv2d(channels * (count + 1), IMAGE_CHANNELS[0], kernel_size=1))

    def forward(self, cells: Tensor) -> Float[Tensor, "batch features height width"]:
        """Encode cells `[batch, channels, height, width]`."""
        dtype = self.embed.weight.dtype
        one_hot = (cells[:, :, None] == self.codes[:, None, None]).flatten(1, 2).to(dtype)
        return nn.functional.silu(self.embed(torch.cat([one_hot, self.scale(cells).to(dtype)], dim=1)))


class PixelEncoder(nn.Module):
    """Network "nature" or "impala" on a scaled image, and a linear layer to the width `dim`.

    Raises ValueError if the image is too small.
    """

    def __init__(self, space: spaces.Box, dim: int, name: Literal["nature", "impala"]) -> None:
        super().__init__()
        self.scale = Scale(space)
        self.layout = ImageLayout.from_space(space)
        channels, height, width = self.layout.channels, self.layout.height, self.layout.width
        if name == "nature" and min(height, width) < NATURE_SIDE:
            raise ValueError(
                f"encoder 'nature' needs at least {NATURE_SIDE} x {NATURE_SIDE} pixels; the image {space} "
                f"has {height} x {width}: choose impala or linear"
            )
        self.network = (build_nature if name == "nature" else build_impala)(channels, height, width)
        for layer in self.network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                initialize(cast(nn.Linear, layer))
        self.project = linear(512 if name == "nature" else 256, dim, gain=1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images `[batch, *shape]` as `[batch, dim]`."""
        images = self.scale(self.layout.channels_first(images)).to(self.project.weight.dtype)
        return self.project(self.network(images))


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


def halving_channels(height: int, width: int) -> list[int]:
    """Return the number of output channels of each stride-2 layer of the image encoder.

    The layers reduce the shorter side of the image to at most 8 pixels.
    """
    count = max(0, math.ceil(math.log2(min(height, width) / 8)))
    return [IMAGE_CHANNELS[min(layer, len(IMAGE_CHANNELS) - 1)] for layer in range(count)]


def make_encoder(
    space: spaces.Space, dim: int, pooling: Pooling = "attention", images: _AnyImageEncoder = "convolution"
) -> nn.Module:
    """Return an encoder of observations of `space`, with output `[batch, dim]`.

    The encoder is an `EntityEncoder` if `space` has sets, and an `ObservationEncoder` if not. Raises
    TypeError or ValueError if this encoder does not support `space`.
    """
    has_sets = bool(set_names(leaf_spaces(space)))
    return EntityEncoder(space, dim, pooling, images) if has_sets else ObservationEncoder(space, dim, images)


def set_names(leaves: dict[str, spaces.Space]) -> list[str]:
    """Return the names of all sets: leaves that have two axes and a sibling leaf `<name>_mask`."""
    return [name for name in leaves if f"{name}_mask" in leaves and len(leaves[name].shape or ()) == 2]


def mask_padding(leaves: dict[str, Tensor], space_by_name: dict[str, spaces.Space]) -> dict[str, Tensor]:
    """Replace the padding of sets: numbers by 0, and indices by the lowest valid index."""
    masked_leaves = {}
    for name in set_names(space_by_name):
        values, space = leaves[name], space_by_name[name]
        fill = space.start if isinstance(space, spaces.MultiDiscrete) else 0
        fill = torch.as_tensor(fill, dtype=values.dtype, device=values.device)
        masked_leaves[name] = torch.where(leaves[f"{name}_mask"][..., None] > 0, values, fill)
    return {**leaves, **masked_leaves}


class EntityEncoder(nn.Module):
    """Encoder of observations with sets, with one vector as output.

    A leaf NAME is a set if it has two axes and a sibling leaf NAME_mask. A `SetEncoder` encodes each set.
    Its output does not depend on the order of elements or on padding, and its parameters do not depend on the
    padded size. An `ObservationEncoder` encodes all other leaves except `adjacency`. Raises TypeError if a
    space is not supported, and ValueError if a set is not a Box or MultiDiscrete with one mask bit per
    element.
    """

    def __init__(
        self,
        space: spaces.Space,
        dim: int,
        pooling: Pooling = "attention",
        images: _AnyImageEncoder = "convolution",
    ) -> None:
        super().__init__()
        leaves = leaf_spaces(space)
        self.sets = set_names(leaves)
        special_names = {ADJACENCY, *self.sets, *(f"{name}_mask" for name in self.sets)}
        plain = {name: leaf for name, leaf in leaves.items() if name not in special_names}
        if not plain and not self.sets:
            raise TypeError(
                f"observation space {space} has nothing to encode; add at least one leaf besides masks and "
                f"{ADJACENCY!r}"
            )
        self.plain = ObservationEncoder(spaces.Dict(plain), dim, images) if plain else None
        self.elements = nn.ModuleList()
        width = dim * bool(plain)
        for name in self.sets:
            leaf, mask = leaves[name], leaves[f"{name}_mask"]
            if not isinstance(leaf, (spaces.Box, spaces.MultiDiscrete)) or mask.shape != leaf.shape[:1]:
                raise ValueError(
                    f"set {name!r} has space {leaf} and mask space {mask}; expected a Box or MultiDiscrete "
                    "of shape [elements, features] and a mask with one bit per element"
                )
            encoder = SetEncoder(leaf, dim, pooling)
            self.elements.append(encoder)
            width += encoder.width
        self.project = linear(width, dim)

    def forward(self, leaves: dict[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """Encode observations, whose leaves are `[batch, *shape]`, as one vector each."""
        parts = [] if self.plain is None else [self.plain(leaves)]
        for name, encode in zip(self.sets, self.elements, strict=True):
            parts.append(encode(leaves[name], leaves[f"{name}_mask"] > 0))
        return nn.functional.silu(self.project(torch.cat(parts, dim=-1)))


class SetEncoder(nn.Module):
    """Encoder of a padded set as a vector of `width` numbers; all elements share one network.

    Numeric features (Box) pass through one linear layer with SiLU. Index features (MultiDiscrete) are one-hot
    encoded and pass through two such layers, since one layer cannot represent combinations of features.

    Pooling by "attention" concatenates the mean of the encoded elements, two weighted means and the logarithm
    of 1 + the number of elements. For each weighted mean, the dot products of a learned vector and the
    encoded elements pass through a softmax over the elements. The learned vector corresponds to one seed
    vector in the attention pooling of Lee et al. 2019 (arXiv 1810.00825). Pooling by "sum" adds the encoded
    elements (Zaheer et al. 2017, arXiv 1703.06114). An empty set is encoded as zeros.
    """

    def __init__(
        self, space: spaces.Box | spaces.MultiDiscrete, dim: int, pooling: Pooling = "attention"
    ) -> None:
        super().__init__()
        self.encoder = _element_encoder(_element_space(space), dim)
        self.scores = nn.Linear(dim, 2, bias=False) if pooling == "attention" else None
        self.width = dim if self.scores is None else 3 * dim + 1

    def forward(
        self, elements: Real[Tensor, "batch elements features"], present: Bool[Tensor, "batch elements"]
    ) -> Float[Tensor, "batch width"]:
        """Encode each set as one vector; elements that are not `present` are ignored."""
        # Padding is removed before the encoder: it costs no compute, and a NaN in it reaches no gradient.
        indices = present.flatten().nonzero().squeeze(1)
        features = self.encoder(elements.flatten(0, 1)[indices])
        features = features.new_zeros(present.numel(), features.shape[1]).index_copy(0, indices, features)
        features = features.unflatten(0, present.shape)
        if self.scores is None:
            return features.sum(dim=1)
        absent = ~present[:, None]
        # A finite mask value keeps the softmax of an empty set finite.
        weights = self.scores(features).transpose(1, 2).masked_fill(absent, -1e9).softmax(dim=-1)
        count = present.sum(dim=1, keepdim=True).to(features.dtype)
        uniform = (1 / count.clamp_min(1))[..., None].expand(-1, 1, weights.shape[-1])
        means = torch.cat([uniform, weights], dim=1).masked_fill(absent, 0) @ features
        return torch.cat([means.flatten(1), count.log1p()], dim=-1)


def _element_space(space: spaces.Box | spaces.MultiDiscrete) -> spaces.Box | spaces.MultiDiscrete:
    """Return the space of one element of a set; its bounds cover all elements."""
    if isinstance(space, spaces.Box):
        return spaces.Box(space.low.min(axis=0), space.high.max(axis=0), dtype=space.dtype.type)
    first = space.start.min(axis=0)
    return spaces.MultiDiscrete((space.start + space.nvec).max(axis=0) - first, start=first)


def _element_encoder(element: spaces.Box | spaces.MultiDiscrete, dim: int) -> nn.Module:
    if isinstance(element, spaces.Box):
        return VectorEncoder(element, dim)
    first, second = IndexEncoder(element, dim), nn.Linear(dim, dim)
    # Initialized like a linear layer on one-hot features. With the default of torch's embeddings, which is
    # ten times as large, Adam hardly changes the features, and the policy learns nothing from the elements.
    for weight in (first.embedding.weight, second.weight):
        nn.init.orthogonal_(weight, math.sqrt(2))
    nn.init.zeros_(second.bias)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU())
