"""Settings of `ChunksPolicy` for methods that choose chunks.

All of them keep all tokens. They differ from their papers in what `ChunksPolicy` does: queries of a prompt
choose together, query heads that share a key head choose together, and the tokens that are read get
consecutive positions. Chunks are compared without positions.

Quest (Tang et al. 2024, arXiv 2406.10774) leaves the chunks at the positions of the text and compares rotated
keys. It reads the whole cache in the first two layers.

HiP (Lee et al. 2024, arXiv 2406.09827) refines its choice in stages with chunks of other sizes, and may keep
a choice for several tokens. The tree search makes many small operations. On one core it is faster than a flat
search only beyond 400,000 tokens.

LongHeads (Lu et al. 2024, arXiv 2402.10685) lets each query head choose for itself. With one query head for
each key head and one token per call, the choice is LongHeads' own.
"""

from __future__ import annotations

from dataclasses import dataclass

from scrubjay.memory.context.policies.chunk_search import Search, Summary
from scrubjay.memory.context.policies.chunks import ChunksPolicy


@dataclass(frozen=True)
class LongHeadsPolicy(ChunksPolicy):
    """Chunks of 256 tokens, rated by LongHeads' summary; the first two and the last two are always read."""

    chunk_size: int = 256
    local_chunks: int | None = 1
    summary: Summary = "attention"


@dataclass(frozen=True)
class QuestPolicy(ChunksPolicy):
    """Chunks of 16 tokens, rated by an upper bound on the products of a query with their keys."""

    chunk_size: int = 16
    summary: Summary = "bounds"


@dataclass(frozen=True)
class HiPPolicy(ChunksPolicy):
    """Chunks that a tree search finds, rated by their middle keys."""

    summary: Summary = "middle"
    search: Search = "tree"
