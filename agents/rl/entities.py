"""Encoder of observations that hold sets: users, neighbours, any number of alike things in any order."""

from __future__ import annotations

import math

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.rl.encoders import ObservationEncoder, VectorEncoder
from scrubjay.agents.rl.observations import leaf_spaces

ADJACENCY = "adjacency"
"""The leaf that says whom an agent hears; it shapes the graph and is no feature."""


class EntityEncoder(nn.Module):
    """Encodes one agent's observation, its sets included, as one vector.

    A leaf NAME of two axes with a sibling NAME_mask is a set, for a `SetEncoder`: neither order nor padding
    matters, and no parameter depends on the padded size. All other leaves but `adjacency` go through an
    `ObservationEncoder`. Raises TypeError on an unsupported space and ValueError on a mask whose shape does
    not fit its set.
    """

    def __init__(self, space: spaces.Space, dim: int) -> None:
        super().__init__()
        leaves = leaf_spaces(space)
        self.sets = [
            name for name in leaves if f"{name}_mask" in leaves and len(leaves[name].shape or ()) == 2
        ]
        apart = {ADJACENCY, *self.sets, *(f"{name}_mask" for name in self.sets)}
        plain = {name: leaf for name, leaf in leaves.items() if name not in apart}
        if not plain and not self.sets:
            raise TypeError(f"observation space {space} holds no features; a policy needs something to see")
        self.plain = ObservationEncoder(spaces.Dict(plain), dim) if plain else None
        self.elements = nn.ModuleList()
        width = dim * bool(plain)
        for name in self.sets:
            leaf, mask = leaves[name], leaves[f"{name}_mask"]
            if not isinstance(leaf, spaces.Box) or mask.shape != leaf.shape[:1]:
                raise ValueError(
                    f"set {name!r} is {leaf} and its mask {mask}; expected a Box [elements, features] and "
                    "one bit for each element"
                )
            encoder = SetEncoder(leaf, dim)
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
    """Encodes a padded set in `width` numbers: the mean of its elements, two weighted means, their count.

    Elements pass a linear layer and SiLU; a learned vector each weighs them by a softmax, as one seed of the
    pooling by attention of Lee et al. 2019 (arXiv 1810.00825) does. An empty set is zeros.
    """

    def __init__(self, space: spaces.Box, dim: int) -> None:
        super().__init__()
        element = spaces.Box(space.low[0], space.high[0], dtype=space.dtype.type)
        self.encoder = VectorEncoder(element, dim)
        self.scores = nn.Linear(dim, 2, bias=False)
        self.width = 3 * dim + 1

    def forward(
        self, elements: Float[Tensor, "batch elements features"], present: Bool[Tensor, "batch elements"]
    ) -> Float[Tensor, "batch width"]:
        """Return one vector per set; elements that are not `present` may hold anything."""
        # Zeros before the encoder, so that NaN in padding does not reach its gradient either.
        clean = elements.masked_fill(~present[..., None], 0)
        encoded = self.encoder(clean.flatten(0, 1)).unflatten(0, present.shape)
        absent = ~present[:, None]
        # Finite, so that the softmax of an empty set is, too.
        weights = self.scores(encoded).transpose(1, 2).masked_fill(absent, -1e9).softmax(dim=-1)
        count = present.sum(dim=1, keepdim=True).to(encoded.dtype)
        even = (1 / count.clamp_min(1))[..., None].expand(-1, 1, weights.shape[-1])
        means = torch.cat([even, weights], dim=1).masked_fill(absent, 0) @ encoded
        return torch.cat([means.flatten(1), count.log1p()], dim=-1)
