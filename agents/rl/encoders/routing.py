"""Bi-level routing attention over a feature map (BiFormer, Zhu et al. 2023, arXiv 2303.08810, section 3.2).

A feature map is divided into regions. Each region selects the `top_k` regions whose mean keys have the
largest dot product with its own mean query (equations 3 and 4). Each token attends, in one softmax, to all
tokens of the regions that its region selected. A depthwise convolution of the values is added, which encodes
positions (equations 5 and 6).

The attention is computed by `kernels.chunk_retrieval`, with regions as chunks. All tokens of a region share
one selection, so they are passed as heads of one query. The selected tokens are then gathered once per
region.

Difference from the authors' code: if the length of a side is not a multiple of the number of regions, the
side is divided as evenly as possible, and padding is masked. The authors' code pads the map and attends to
the padding.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scrubjay.kernels import chunk_retrieval
from scrubjay.memory.parts.layers import feed_forward

REGIONS = 4
"""Default number of regions along each side of a feature map."""

_HEAD_WIDTH = 8
_DEVIATION = 0.02
_LOCAL = 5  # side of the convolution of values


class RoutingBlock(nn.Module):
    """Pre-norm residual block for feature maps of one size: bi-level routing attention, then feed-forward.

    Raises ValueError in the same cases as `RoutingAttention`.
    """

    def __init__(
        self, channels: int, height: int, width: int, regions: int = REGIONS, top_k: int = 4
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = RoutingAttention(channels, height, width, regions, top_k)
        self.feed_forward = feed_forward(channels, 2 * channels)
        # The authors' initialization: small weights, so that a block is close to the identity at first.
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=_DEVIATION)
                nn.init.zeros_(layer.bias)

    def forward(
        self, maps: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return feature maps of the input's shape."""
        tokens = maps.flatten(2).mT
        tokens = tokens + self.attention(self.norm(tokens))
        tokens = tokens + self.feed_forward(tokens)
        return tokens.mT.unflatten(2, maps.shape[2:])


class RoutingAttention(nn.Module):
    """Bi-level routing attention over the tokens of a feature map, in row-major order.

    Raises ValueError if a map has fewer rows or columns than `regions`, if `top_k` exceeds the number of
    regions, or if `channels` is not a multiple of the head width.
    """

    members: Int[Tensor, "regions length"]
    """Indices of the tokens of each region; shorter regions are padded with index 0."""
    lengths: Int[Tensor, " regions"]
    """Number of tokens of each region."""
    places: Int[Tensor, " tokens"]
    """Position of each token in `members`, which is flattened to `[regions * length]`."""

    def __init__(self, channels: int, height: int, width: int, regions: int, top_k: int) -> None:
        super().__init__()
        if not 1 <= regions <= min(height, width):
            raise ValueError(
                f"regions={regions}: must be from 1 to {min(height, width)} for a feature map of "
                f"{height} x {width}"
            )
        if not 1 <= top_k <= regions**2:
            raise ValueError(f"top_k={top_k}: must be from 1 to {regions**2}, the number of regions")
        self.height, self.width, self.top_k = height, width, top_k
        if channels % _HEAD_WIDTH:
            raise ValueError(f"channels={channels}: must be a multiple of {_HEAD_WIDTH}, the head width")
        self.heads = channels // _HEAD_WIDTH
        self.projection = nn.Linear(channels, 3 * channels)
        self.local = nn.Conv2d(channels, channels, _LOCAL, padding=_LOCAL // 2, groups=channels)
        self.out = nn.Linear(channels, channels)
        # In numpy, since a policy may be built on the meta device, where tensors have no values.
        region = assign_regions(height, width, regions)
        lengths = np.bincount(region)
        valid = np.arange(lengths.max()) < lengths[:, None]
        members, places = np.zeros(valid.shape, dtype=np.int64), np.zeros_like(region)
        members[valid] = region.argsort(kind="stable")
        places[members[valid]] = np.flatnonzero(valid)
        self.is_even = bool(valid.all())
        for name, array in {"members": members, "lengths": lengths, "places": places}.items():
            self.register_buffer(name, torch.as_tensor(array), persistent=False)

    def forward(
        self, tokens: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the attention output of each token."""
        query, key, value = self.projection(tokens).chunk(3, dim=2)
        read = self.attend(query, key, value)
        near = self.local(value.mT.unflatten(2, (self.height, self.width))).flatten(2).mT
        return self.out(read + near)

    def attend(
        self,
        query: Float[Tensor, "batch tokens channels"],
        key: Float[Tensor, "batch tokens channels"],
        value: Float[Tensor, "batch tokens channels"],
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the attention output before the convolution and the output projection."""
        queries, keys, values = (
            self.gather_regions(part).unflatten(3, (self.heads, -1)) for part in (query, key, value)
        )
        batch, regions, length = queries.shape[:3]
        output = chunk_retrieval(
            queries.transpose(2, 3).flatten(2, 3),
            keys,
            values,
            self.region_means(key)[:, :, None],
            torch.full((batch, regions), regions, device=query.device),
            top_k=self.top_k,
            combine="joint",
            scale=query.shape[2] ** -0.5,
            summary_query=self.region_means(query)[:, :, None],
            lengths=None if self.is_even else self.lengths.expand(batch, -1),
        )
        output = output.unflatten(2, (self.heads, length)).transpose(2, 3).flatten(3).flatten(1, 2)
        return output.index_select(1, self.places).to(query.dtype)

    def region_means(
        self, x: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch regions channels"]:
        """Return the mean token of each region, without gradients: only the selection uses these means."""
        there = torch.arange(self.members.shape[1], device=x.device) < self.lengths[:, None]
        return (self.gather_regions(x.detach()) * there[..., None]).sum(dim=2) / self.lengths[:, None]

    def gather_regions(
        self, x: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch regions length channels"]:
        """Gather the tokens of each region; shorter regions are padded with arbitrary tokens."""
        return x.index_select(1, self.members.flatten()).unflatten(1, self.members.shape)


def assign_regions(height: int, width: int, regions: int) -> Int[np.ndarray, " tokens"]:
    """Return the region index of each token, in row-major order; sides are divided as evenly as possible."""
    row, column = (np.arange(side) * regions // side for side in (height, width))
    return (row[:, None] * regions + column).ravel()
