"""Attention to the chunk that is being filled, to its steps so far, with rotary positions by their places."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.parts.rotary import rotary_frequencies, turns
from scrubjay.memory.parts.window import padded, resolve_heads, windows

_SMALLEST_BLOCK = 16


class Tokens(NamedTuple):
    """What a layer makes of its inputs; queries and keys are turned."""

    query: Float[Tensor, "batch time heads width"]
    key: Float[Tensor, "batch time heads width"]
    value: Float[Tensor, "batch time heads width"]


class OwnChunkAttention(nn.Module):
    """Projections of a normed input, and its attention to the steps of its own chunk, itself included."""

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int, num_heads: int | None, chunk_size: int) -> None:
        super().__init__()
        self.chunk_size, self.heads = chunk_size, resolve_heads(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = projections(dim)
        width = dim // self.heads
        frequencies = rotary_frequencies(width // 2 * 2)
        cos, sin = turns(torch.arange(chunk_size + 1), frequencies, width, torch.get_default_dtype())
        self.register_buffer("cos", cos[:, None], persistent=False)
        self.register_buffer("sin", sin[:, None], persistent=False)

    def tokens(
        self, x: Float[Tensor, "batch time dim"], place: Int[Tensor, "batch time"], dtype: torch.dtype
    ) -> Tokens:
        """Return what inputs ask and what they leave, each at a place in its chunk."""
        normed = self.norm(x)
        query, key, value = (
            part(normed).to(dtype).unflatten(-1, (self.heads, -1))
            for part in (self.query, self.key, self.value)
        )
        return Tokens(self.turned(query, place), self.turned(key, place), value)

    def turned(
        self, x: Float[Tensor, "*batch heads width"], place: Int[Tensor, "*batch"] | int
    ) -> Float[Tensor, "*batch heads width"]:
        """Return `x` turned by its place, at most `chunk_size`."""
        half = x.shape[-1] // 2
        left, right, still = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
        across = torch.cat([-right, left, torch.zeros_like(still)], dim=-1)
        return x * self.cos[place].to(x.dtype) + across * self.sin[place].to(x.dtype)


def own_scores(
    query: Float[Tensor, "batch heads width"],
    keys: Float[Tensor, "batch chunk_and_1 dim"],
    place: Int[Tensor, " batch"],
) -> Float[Tensor, "batch heads chunk_and_1"]:
    """Return the scores of single queries with the steps of their own chunks, -inf for all before these.

    Args:
        query: One step's, by head.
        keys: Of a chunk of steps before it, and its own.
        place: How many steps of its chunk are before it.
    """
    keys = keys.unflatten(-1, query.shape[1:])
    behind = torch.arange(keys.shape[1] - 1, -1, -1, device=keys.device)
    scores = torch.einsum("bhd,bchd->bhc", query, keys) * query.shape[-1] ** -0.5
    return scores.masked_fill((behind > place[:, None])[:, None], float("-inf"))


def projections(dim: int) -> list[nn.Linear]:
    """Return projections of query, key, value and what is read."""
    query, key, value, out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
    # As in `HCAM`: torch's own initialisation makes every attention nearly uniform.
    for projection in (query, key, value):
        nn.init.normal_(projection.weight, std=(2.0 / dim) ** 0.5)
    nn.init.normal_(out.weight, std=(0.5 / dim) ** 0.5)
    return [query, key, value, out]


def attend_own_chunk(
    query: Float[Tensor, "batch time heads width"],
    keys: Float[Tensor, "batch chunk_and_time dim"],
    values: Float[Tensor, "batch chunk_and_time dim"],
    place: Int[Tensor, "batch time"],
    chunk_size: int,
) -> tuple[Float[Tensor, "batch time heads width"], Float[Tensor, "batch time heads"]]:
    """Return what queries read of the steps of their own chunks up to themselves, and the log-normaliser.

    Args:
        query: Of a segment.
        keys: Of the `chunk_size` steps before the segment, and of the segment.
        values: Likewise.
        place: How many steps of its chunk are before each query.
        chunk_size: Steps of a chunk.
    """
    time, heads = query.shape[1:3]
    count = -(-time // max(chunk_size, _SMALLEST_BLOCK))
    block = -(-time // count)
    padding = count * block - time
    asked = padded(query.flatten(2), padding).unflatten(1, (count, block))
    both = windows(padded(torch.cat([keys, values], dim=2), padding), count, block, chunk_size)
    # Blocks and heads side by side: one product each for all.
    asked, key, value = (
        part.unflatten(3, (heads, -1)).transpose(2, 3) for part in (asked, *both.chunk(2, dim=3))
    )
    behind = torch.arange(block, device=query.device)[:, None] - torch.arange(
        -chunk_size, block, device=query.device
    )
    places = functional.pad(place, (0, padding)).view(-1, count, 1, block, 1)
    hidden = (behind < 0) | (behind > places)
    scores = (asked @ key.mT * query.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    read = torch.softmax(scores, dim=-1) @ value
    read, lse = read.transpose(2, 3).flatten(1, 2)[:, :time], lse.transpose(2, 3).flatten(1, 2)[:, :time]
    return read, lse
