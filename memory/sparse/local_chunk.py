"""Causal attention to the steps of the present chunk, with rotary positions inside the chunk."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.parts.rotary import compute_cos_sin, rotary_frequencies
from scrubjay.memory.parts.window import pad_steps, resolve_heads, unfold_windows

_SMALLEST_BLOCK = 16


class ChunkTokens(NamedTuple):
    """Rotated queries, rotated keys, and values of a layer's inputs."""

    query: Float[Tensor, "batch time heads width"]
    key: Float[Tensor, "batch time heads width"]
    value: Float[Tensor, "batch time heads width"]


class OwnChunkAttention(nn.Module):
    """Projections of a normalized input, and causal attention of each step to its own chunk."""

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int, num_heads: int | None, chunk_size: int) -> None:
        super().__init__()
        self.chunk_size, self.heads = chunk_size, resolve_heads(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = projections(dim)
        width = dim // self.heads
        frequencies = rotary_frequencies(width // 2 * 2)
        cos, sin = compute_cos_sin(
            torch.arange(chunk_size + 1), frequencies, width, torch.get_default_dtype()
        )
        self.register_buffer("cos", cos[:, None], persistent=False)
        self.register_buffer("sin", sin[:, None], persistent=False)

    def project(
        self, x: Float[Tensor, "batch time dim"], place: Int[Tensor, "batch time"], dtype: torch.dtype
    ) -> ChunkTokens:
        """Return rotated queries, rotated keys, and values; `place` is the position of inputs in chunks."""
        normed_x = self.norm(x)
        query, key, value = (
            part(normed_x).to(dtype).unflatten(-1, (self.heads, -1))
            for part in (self.query, self.key, self.value)
        )
        return ChunkTokens(self.rotate(query, place), self.rotate(key, place), value)

    def rotate(
        self, x: Float[Tensor, "*batch heads width"], place: Int[Tensor, "*batch"] | int
    ) -> Float[Tensor, "*batch heads width"]:
        """Return `x` rotated by the position `place`, which is at most `chunk_size`."""
        half = x.shape[-1] // 2
        left, right, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
        rotated_half = torch.cat([-right, left, torch.zeros_like(rest)], dim=-1)
        return x * self.cos[place].to(x.dtype) + rotated_half * self.sin[place].to(x.dtype)


def score_own_chunk(
    query: Float[Tensor, "batch heads width"],
    keys: Float[Tensor, "batch chunk_and_1 dim"],
    place: Int[Tensor, " batch"],
) -> Float[Tensor, "batch heads chunk_and_1"]:
    """Return the scores of one query per row with the steps of its own chunk, -inf for other steps.

    Args:
        query: Query of one step, by head.
        keys: Keys of the `chunk_size` steps before the query's step, followed by the key of the query's step.
        place: Position of the query's step in its chunk, from 0.
    """
    keys = keys.unflatten(-1, query.shape[1:])
    behind = torch.arange(keys.shape[1] - 1, -1, -1, device=keys.device)
    scores = torch.einsum("bhd,bchd->bhc", query, keys) * query.shape[-1] ** -0.5
    return scores.masked_fill((behind > place[:, None])[:, None], float("-inf"))


def projections(dim: int) -> list[nn.Linear]:
    """Return projections of query, key, value and output."""
    query, key, value, out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
    # As in `HCAM`: torch's default initialisation makes attention nearly uniform.
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
    """Return the causal attention output of queries over their own chunks, and the logsumexp of scores.

    Args:
        query: Queries of a segment.
        keys: Keys of the `chunk_size` steps before the segment, and of the segment.
        values: Values of the same steps.
        place: Position of each query's step in its chunk, from 0.
        chunk_size: Steps per chunk.
    """
    time, heads = query.shape[1:3]
    count = -(-time // max(chunk_size, _SMALLEST_BLOCK))
    block = -(-time // count)
    padding = count * block - time
    queries = pad_steps(query.flatten(2), padding).unflatten(1, (count, block))
    keys_values = unfold_windows(
        pad_steps(torch.cat([keys, values], dim=2), padding), count, block, chunk_size
    )
    # Blocks and heads are batch axes, so that one product covers all.
    queries, key, value = (
        part.unflatten(3, (heads, -1)).transpose(2, 3) for part in (queries, *keys_values.chunk(2, dim=3))
    )
    behind = torch.arange(block, device=query.device)[:, None] - torch.arange(
        -chunk_size, block, device=query.device
    )
    places = functional.pad(place, (0, padding)).view(-1, count, 1, block, 1)
    hidden = (behind < 0) | (behind > places)
    scores = (queries @ key.mT * query.shape[-1] ** -0.5).masked_fill(hidden, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    read = torch.softmax(scores, dim=-1) @ value
    read, lse = read.transpose(2, 3).flatten(1, 2)[:, :time], lse.transpose(2, 3).flatten(1, 2)[:, :time]
    return read, lse
