"""Bi-level routing attention over a feature map (BiFormer, Zhu et al. 2023, arXiv 2303.08810, section 3.2).

A map is cut into regions. The mean query of a region has a product with the mean key of each, and the best
`top_k` are chosen (equations 3 and 4); a token attends to the tokens of the regions that its own has chosen,
in one softmax, and a depthwise convolution of values is added, which tells what is where (equations 5 and 6).
That is `kernels.chunk_retrieval` with regions for chunks, and for queries, too: what the tokens of a region
ask are the heads of one query, since they share a choice, and what is chosen is fetched once for all.

Where it differs: sides that regions do not divide are cut as evenly as can be, and no token is padded, where
the authors' code pads and attends to what it padded.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scrubjay.kernels import chunk_retrieval
from scrubjay.memory.parts.feed_forward import feed_forward

REGIONS = 4
"""Parts that each side of a map is cut into, unless told otherwise."""

_HEAD_WIDTH = 8
_DEVIATION = 0.02
_LOCAL = 5  # side of the convolution of values


class RoutingBlock(nn.Module):
    """Bi-level routing attention and feed-forward, each normed and added, over maps of one size.

    Raises ValueError as `RoutingAttention` does.
    """

    def __init__(
        self, channels: int, height: int, width: int, regions: int = REGIONS, top_k: int = 4
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = RoutingAttention(channels, height, width, regions, top_k)
        self.feed_forward = feed_forward(channels, 2 * channels)
        # As the authors' layers begin: so little is added that a block begins near the identity.
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=_DEVIATION)
                nn.init.zeros_(layer.bias)

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return maps of the same shape."""
        tokens = maps.flatten(2).mT
        tokens = tokens + self.attention(self.norm(tokens))
        tokens = tokens + self.feed_forward(tokens)
        return tokens.mT.unflatten(2, maps.shape[2:])


class RoutingAttention(nn.Module):
    """What tokens of a map, row by row, read of the regions that their own chooses.

    Raises ValueError if a map has fewer rows or columns than parts, or fewer regions than are to be chosen,
    or channels are no multiple of a head's width.
    """

    members: Int[Tensor, "regions length"]
    """The tokens of each region, and any behind those of one that has fewer than others."""
    lengths: Int[Tensor, " regions"]
    places: Int[Tensor, " tokens"]
    """Where each token lies in `members`."""

    def __init__(self, channels: int, height: int, width: int, regions: int, top_k: int) -> None:
        super().__init__()
        if not 1 <= regions <= min(height, width):
            raise ValueError(
                f"regions={regions}: a map of {height} x {width} can be cut into 1 to {min(height, width)} "
                "parts each way"
            )
        if not 1 <= top_k <= regions**2:
            raise ValueError(f"top_k={top_k}: choose from 1 to {regions**2}, as many as there are regions")
        self.height, self.width, self.top_k = height, width, top_k
        if channels % _HEAD_WIDTH:
            raise ValueError(f"channels={channels}: must be a multiple of {_HEAD_WIDTH}")
        self.heads = channels // _HEAD_WIDTH
        self.mixed = nn.Linear(channels, 3 * channels)
        self.local = nn.Conv2d(channels, channels, _LOCAL, padding=_LOCAL // 2, groups=channels)
        self.out = nn.Linear(channels, channels)
        # In numpy, since a policy is also sketched where tensors have no values.
        region = region_of(height, width, regions)
        lengths = np.bincount(region)
        there = np.arange(lengths.max()) < lengths[:, None]
        members, places = np.zeros(there.shape, dtype=np.int64), np.zeros_like(region)
        members[there] = region.argsort(kind="stable")
        places[members[there]] = np.flatnonzero(there)
        self.is_even = bool(there.all())
        for name, array in {"members": members, "lengths": lengths, "places": places}.items():
            self.register_buffer(name, torch.as_tensor(array), persistent=False)

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return what tokens read."""
        query, key, value = self.mixed(tokens).chunk(3, dim=2)
        read = self.attend(query, key, value)
        near = self.local(value.mT.unflatten(2, (self.height, self.width))).flatten(2).mT
        return self.out(read + near)

    def attend(
        self,
        query: Float[Tensor, "batch tokens channels"],
        key: Float[Tensor, "batch tokens channels"],
        value: Float[Tensor, "batch tokens channels"],
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return what queries read of keys and values in chosen regions."""
        asked, keys, values = (
            self.by_region(part).unflatten(3, (self.heads, -1)) for part in (query, key, value)
        )
        batch, regions, length = asked.shape[:3]
        read = chunk_retrieval(
            asked.transpose(2, 3).flatten(2, 3),
            keys,
            values,
            self.means(key)[:, :, None],
            torch.full((batch, regions), regions, device=query.device),
            top_k=self.top_k,
            combine="joint",
            scale=query.shape[2] ** -0.5,
            summary_query=self.means(query)[:, :, None],
            lengths=None if self.is_even else self.lengths.expand(batch, -1),
        )
        read = read.unflatten(2, (self.heads, length)).transpose(2, 3).flatten(3).flatten(1, 2)
        return read.index_select(1, self.places).to(query.dtype)

    def means(self, x: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch regions channels"]:
        """Return the means of regions, which only choose."""
        there = torch.arange(self.members.shape[1], device=x.device) < self.lengths[:, None]
        return (self.by_region(x.detach()) * there[..., None]).sum(dim=2) / self.lengths[:, None]

    def by_region(
        self, x: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch regions length channels"]:
        """Return the tokens of each region, and any behind those of one that has fewer than others."""
        return x.index_select(1, self.members.flatten()).unflatten(1, self.members.shape)


def region_of(height: int, width: int, regions: int) -> Int[np.ndarray, " tokens"]:
    """Return the region of each token, row by row, of a map whose sides are cut as evenly as can be."""
    row, column = (np.arange(side) * regions // side for side in (height, width))
    return (row[:, None] * regions + column).ravel()
