"""Encoder of observations that hold sets: users, neighbours, any number of alike things in any order."""

from __future__ import annotations

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.agents.encoders import ObservationEncoder, VectorEncoder
from scrubjay.agents.observations import leaf_spaces

ADJACENCY = "adjacency"
"""The leaf that says whom an agent hears; it shapes the graph and is no feature."""


class EntityEncoder(nn.Module):
    """Encodes one agent's observation, its sets included, as one vector.

    A leaf NAME of two axes with a sibling NAME_mask is a set: each element passes a linear layer and SiLU, and
    mean, maximum and the logarithm of one plus the number of those present stand for all (Zaheer et al. 2017,
    arXiv 1703.06114). So neither order nor padding matters, and no parameter depends on the padded size. All other
    leaves but `adjacency` go through an `ObservationEncoder`. Raises TypeError on an unsupported space and
    ValueError on a mask whose shape does not fit its set.
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
        for name in self.sets:
            leaf, mask = leaves[name], leaves[f"{name}_mask"]
            if not isinstance(leaf, spaces.Box) or mask.shape != leaf.shape[:1]:
                raise ValueError(
                    f"set {name!r} is {leaf} and its mask {mask}; expected a Box [elements, features] and one bit "
                    "for each element"
                )
            self.elements.append(
                VectorEncoder(spaces.Box(leaf.low[0], leaf.high[0], dtype=leaf.dtype.type), dim)
            )
        widths = dim * bool(plain) + (2 * dim + 1) * len(self.sets)
        self.project = nn.Linear(widths, dim) if self.sets else None

    def forward(self, leaves: dict[str, Tensor]) -> Float[Tensor, "batch dim"]:
        """Return one vector per observation; the leaves are `[batch, *shape]`."""
        parts = [] if self.plain is None else [self.plain(leaves)]
        if self.project is None:
            return parts[0]
        for name, encode in zip(self.sets, self.elements, strict=True):
            present = leaves[f"{name}_mask"] > 0
            parts.append(_pool(encode, leaves[name], present[..., None]))
        return nn.functional.silu(self.project(torch.cat(parts, dim=-1)))


def _pool(encode: nn.Module, elements: Tensor, present: Tensor) -> Tensor:
    # Padding may hold anything, NaN included; zeros before the encoder keep its gradient clean too.
    encoded = encode(elements.masked_fill(~present, 0).flatten(0, 1)).unflatten(0, elements.shape[:2])
    count = present.sum(dim=1).to(encoded.dtype)
    mean = encoded.masked_fill(~present, 0).sum(dim=1) / count.clamp_min(1)
    # SiLU is never below -0.28: a lower number cannot win, and unlike -inf it may be multiplied by zero.
    largest = encoded.masked_fill(~present, -1).amax(dim=1) * (count > 0)
    return torch.cat([mean, largest, count.log1p()], dim=-1)
