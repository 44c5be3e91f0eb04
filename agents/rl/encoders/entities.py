"""Encoder of observations that hold sets: users, neighbours, any number of alike things in any order."""

from __future__ import annotations

import math
from typing import Literal

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from scrubjay.agents.rl.encoders.image import ImageKind
from scrubjay.agents.rl.encoders.observation import IndexEncoder, ObservationEncoder, VectorEncoder
from scrubjay.agents.rl.observations import leaf_spaces

Pooling = Literal["attention", "sum"]
"""How the elements of a set become one vector; see `SetEncoder`."""

ADJACENCY = "adjacency"
"""The leaf that says whom an agent hears; it shapes the graph and is no feature."""


def make_encoder(
    space: spaces.Space, dim: int, pooling: Pooling = "attention", images: ImageKind = "convolution"
) -> nn.Module:
    """Return what encodes observations as vectors `[batch, dim]`: sets, where the space has any, as sets.

    A set is declared by its names, as in `EntityEncoder`, whose errors are raised.
    """
    has_sets = bool(set_names(leaf_spaces(space)))
    return EntityEncoder(space, dim, pooling, images) if has_sets else ObservationEncoder(space, dim, images)


def set_names(leaves: dict[str, spaces.Space]) -> list[str]:
    """Return which leaves are sets: those NAME of two axes that have a sibling NAME_mask."""
    return [name for name in leaves if f"{name}_mask" in leaves and len(leaves[name].shape or ()) == 2]


def without_padding(leaves: dict[str, Tensor], declared: dict[str, spaces.Space]) -> dict[str, Tensor]:
    """Return the leaves with the lowest index, or 0, in sets' empty slots, which may hold anything."""
    emptied = {}
    for name in set_names(declared):
        values, space = leaves[name], declared[name]
        nothing = space.start if isinstance(space, spaces.MultiDiscrete) else 0
        nothing = torch.as_tensor(nothing, dtype=values.dtype, device=values.device)
        emptied[name] = torch.where(leaves[f"{name}_mask"][..., None] > 0, values, nothing)
    return {**leaves, **emptied}


class EntityEncoder(nn.Module):
    """Encodes one observation, its sets included, as one vector.

    A leaf NAME of two axes with a sibling NAME_mask is a set, for a `SetEncoder`: neither order nor padding
    matters, and no parameter depends on the padded size. All other leaves but `adjacency` go through an
    `ObservationEncoder`. Raises TypeError on an unsupported space and ValueError on a mask whose shape does
    not fit its set.
    """

    def __init__(
        self,
        space: spaces.Space,
        dim: int,
        pooling: Pooling = "attention",
        images: ImageKind = "convolution",
    ) -> None:
        super().__init__()
        leaves = leaf_spaces(space)
        self.sets = set_names(leaves)
        apart = {ADJACENCY, *self.sets, *(f"{name}_mask" for name in self.sets)}
        plain = {name: leaf for name, leaf in leaves.items() if name not in apart}
        if not plain and not self.sets:
            raise TypeError(f"observation space {space} holds no features; a policy needs something to see")
        self.plain = ObservationEncoder(spaces.Dict(plain), dim, images) if plain else None
        self.elements = nn.ModuleList()
        width = dim * bool(plain)
        for name in self.sets:
            leaf, mask = leaves[name], leaves[f"{name}_mask"]
            if not isinstance(leaf, (spaces.Box, spaces.MultiDiscrete)) or mask.shape != leaf.shape[:1]:
                raise ValueError(
                    f"set {name!r} is {leaf} and its mask {mask}; expected a Box or MultiDiscrete [elements, "
                    "features] and one bit for each element"
                )
            encoder = SetEncoder(leaf, dim, pooling)
            self.elements.append(encoder)
            width += encoder.width
        self.project = nn.Linear(width, dim)
        nn.init.orthogonal_(self.project.weight, math.sqrt(2))
        nn.init.zeros_(self.project.bias)

    def forward(self, leaves: dict[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """Return one vector per observation; the leaves are `[batch, *shape]`."""
        parts = [] if self.plain is None else [self.plain(leaves)]
        for name, encode in zip(self.sets, self.elements, strict=True):
            parts.append(encode(leaves[name], leaves[f"{name}_mask"] > 0))
        return nn.functional.silu(self.project(torch.cat(parts, dim=-1)))


class SetEncoder(nn.Module):
    """Encodes a padded set in `width` numbers, by one network that all elements share.

    Features that are numbers pass a linear layer and SiLU. Those that are indices (MultiDiscrete) are
    one-hot, and pass two, since only a second layer can tell that two of them came together.

    Pooling by "attention" is the mean of the elements, two weighted means, and their count: a learned vector
    each weighs them by a softmax, as one seed of the pooling by attention of Lee et al. 2019 (arXiv
    1810.00825) does. By "sum" it is their sum (Zaheer et al. 2017, arXiv 1703.06114). An empty set is zeros.
    """

    def __init__(
        self, space: spaces.Box | spaces.MultiDiscrete, dim: int, pooling: Pooling = "attention"
    ) -> None:
        super().__init__()
        self.encoder = _element_encoder(_element(space), dim)
        self.scores = nn.Linear(dim, 2, bias=False) if pooling == "attention" else None
        self.width = dim if self.scores is None else 3 * dim + 1

    def forward(
        self, elements: Real[Tensor, "batch elements features"], present: Bool[Tensor, "batch elements"]
    ) -> Float[Tensor, "batch width"]:
        """Return one vector per set; elements that are not `present` may hold anything."""
        # Padding is left out before the encoder: it costs nothing, and NaN there reaches no gradient.
        there = present.flatten().nonzero().squeeze(1)
        encoded = self.encoder(elements.flatten(0, 1)[there])
        encoded = encoded.new_zeros(present.numel(), encoded.shape[1]).index_copy(0, there, encoded)
        encoded = encoded.unflatten(0, present.shape)
        if self.scores is None:
            return encoded.sum(dim=1)
        absent = ~present[:, None]
        # Finite, so that the softmax of an empty set is, too.
        weights = self.scores(encoded).transpose(1, 2).masked_fill(absent, -1e9).softmax(dim=-1)
        count = present.sum(dim=1, keepdim=True).to(encoded.dtype)
        even = (1 / count.clamp_min(1))[..., None].expand(-1, 1, weights.shape[-1])
        means = torch.cat([even, weights], dim=1).masked_fill(absent, 0) @ encoded
        return torch.cat([means.flatten(1), count.log1p()], dim=-1)


def _element(space: spaces.Box | spaces.MultiDiscrete) -> spaces.Box | spaces.MultiDiscrete:
    """Return the space of one element, wide enough for whatever an element may be."""
    if isinstance(space, spaces.Box):
        return spaces.Box(space.low[0], space.high[0], dtype=space.dtype.type)
    first = space.start.min(axis=0)
    return spaces.MultiDiscrete((space.start + space.nvec).max(axis=0) - first, start=first)


def _element_encoder(element: spaces.Box | spaces.MultiDiscrete, dim: int) -> nn.Module:
    if isinstance(element, spaces.Box):
        return VectorEncoder(element, dim)
    first, second = IndexEncoder(element, dim), nn.Linear(dim, dim)
    # As a linear layer of one-hot features begins: ten times as large, as torch's embeddings begin, features
    # hardly move under Adam, and no policy learns what elements are.
    for weight in (first.embedding.weight, second.weight):
        nn.init.orthogonal_(weight, math.sqrt(2))
    nn.init.zeros_(second.bias)
    return nn.Sequential(first, nn.SiLU(), second, nn.SiLU())
