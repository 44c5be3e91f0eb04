"""Encoder of observations with sets: any number of entities of one type, in any order."""

from __future__ import annotations

import math
from typing import Literal

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.observation import (
    ImageEncoderType,
    IndexEncoder,
    ObservationEncoder,
    VectorEncoder,
    linear,
)
from scrubjay.agents.rl.observations import leaf_spaces

Pooling = Literal["attention", "sum"]
"""Pooling of a set's elements into one vector; see `SetEncoder`."""

ADJACENCY = "adjacency"
"""Name of the leaf that defines the communication graph. It is not encoded as a feature."""


def make_encoder(
    space: spaces.Space, dim: int, pooling: Pooling = "attention", images: ImageEncoderType = "convolution"
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
        images: ImageEncoderType = "convolution",
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
