"""Summaries of chunks, and the search for the chunks that queries need.

A summary is a vector from the keys of a chunk, all rotated to position 0. Its product with a query rates the
chunk:

- "mean": the mean key, as in MoBA (Lu et al. 2025, arXiv 2502.13189).
- "middle": the key in the middle, as in HiP (Lee et al. 2024, arXiv 2406.09827).
- "bounds": the smallest and the largest value of each coordinate. The score is an upper bound of the products
  with all keys of the chunk, as in Quest (Tang et al. 2024, arXiv 2406.10774). It takes twice the memory.
- "attention": the keys averaged by the attention of one query, which is the chunk's mean attention output, as
  in LongHeads (Lu et al. 2024, arXiv 2402.10685, section 3.1). It needs the queries of the chunk.

A search is "flat" if it rates all chunks. A "tree" search (HiP) divides the text into as many ranges as are
wanted, splits every range into halves, and keeps the best halves, until every range is one chunk. A half is
rated by the chunk in its middle. The time is proportional to the logarithm of the text's length.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.select import best
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.rotary import PairedRotation

Summary = Literal["mean", "middle", "bounds", "attention"]
Search = Literal["flat", "tree"]


def summarize(
    kind: Summary,
    queries: Float[Tensor, "*rows size query_width"],
    keys: Float[Tensor, "*rows size width"],
    values: Float[Tensor, "*rows size value_width"],
    rotation: PairedRotation,
    scoring: Scoring,
) -> Float[Tensor, "*rows summary"]:
    """Return the summary of each chunk.

    Args:
        kind: Kind of the summary.
        queries: Queries of the chunk's tokens at position 0. Only "attention" reads them.
        keys: Keys of the chunk's tokens at position 0.
        values: Values of the chunk's tokens.
        rotation: Rotation of tokens at position 0 to their places in the chunk.
        scoring: The model's scale, soft cap and learned sinks. Only the scale is used.

    Raises:
        ValueError: If values are not as wide as keys, for the kind "attention".
    """
    if kind == "mean":
        return keys.mean(dim=-2)
    if kind == "middle":
        return keys[..., keys.shape[-2] // 2, :]
    if kind == "bounds":
        return torch.cat([keys.amax(dim=-2), keys.amin(dim=-2)], dim=-1)
    if values.shape[-1] != keys.shape[-1]:
        raise ValueError(
            f"summary='attention' needs values as wide as keys, but they have {values.shape[-1]} and "
            f"{keys.shape[-1]} numbers in this model; choose summary='mean'"
        )
    queries, keys = rotation(queries), rotation(keys)
    outputs = torch.softmax((queries @ keys.mT).float() * scoring.scale, dim=-1).to(values.dtype) @ values
    mean = outputs.mean(dim=-2, keepdim=True)
    weights = torch.softmax((mean @ keys.mT).float() * scoring.scale, dim=-1).to(keys.dtype)
    return (weights @ keys).squeeze(-2)


def expand_query(kind: Summary, query: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows summary"]:
    """Return the vector whose product with a summary is the score of the chunk."""
    if kind != "bounds":
        return query
    # A positive coordinate can gain most from the largest key, a negative one from the smallest.
    return torch.cat([query.clamp(min=0), query.clamp(max=0)], dim=-1)


def vote(
    queries: Float[Tensor, "rows queries summary"],
    summaries: Float[Tensor, "rows chunks summary"],
    search: Search,
    number: int,
    scoring: Scoring,
    outside: Bool[Tensor, "rows chunks"] | None = None,
    valid: Bool[Tensor, "rows queries"] | None = None,
) -> Float[Tensor, "rows chunks"]:
    """Return the votes of the queries for each chunk.

    In a flat search each query splits one vote among the chunks by a softmax. In a tree search each chunk
    that is found gets one vote.

    Args:
        queries: Vectors of `expand_query`.
        summaries: Summaries of the chunks.
        search: Kind of the search.
        number: Number of chunks that a tree search finds.
        scoring: The model's scale, soft cap and learned sinks.
        outside: True for chunks that get no votes. The others are adjacent.
        valid: False for queries that are padding.
    """
    if search == "tree":
        inside = summaries.new_ones(summaries.shape[:2]).bool() if outside is None else ~outside
        first = inside.byte().argmax(dim=1)
        return search_tree(queries, summaries, number, first, first + inside.sum(dim=1), valid)
    scores = scoring.compute_scores(queries @ summaries.mT).float()
    if outside is None:
        votes = torch.softmax(scores, dim=-1)
    else:
        votes = torch.softmax(scores.masked_fill(outside[:, None], float("-inf")), dim=-1).nan_to_num(0)
    return (votes if valid is None else votes * valid[..., None]).sum(dim=1)


def search_tree(
    queries: Float[Tensor, "rows queries summary"],
    summaries: Float[Tensor, "rows chunks summary"],
    number: int,
    first: Int[Tensor, " rows"],
    last: Int[Tensor, " rows"],
    valid: Bool[Tensor, "rows queries"] | None = None,
) -> Float[Tensor, "rows chunks"]:
    """Return 1 for the `number` chunks that a tree search finds in each row, 0 for all others.

    Args:
        queries: Vectors of `expand_query`. A chunk's score is the largest over these.
        summaries: Summaries of the chunks.
        number: Number of chunks to find. All are found if there are fewer.
        first: First chunk of each row to search.
        last: End of the chunks of each row to search.
        valid: False for queries that are padding.
    """
    count = (last - first).clamp(min=0)
    edges = first[:, None] + count[:, None] * torch.arange(number + 1, device=first.device) // number
    begin, end = edges[:, :-1], edges[:, 1:]
    size = -(-int(count.max()) // number)
    while size > 1:
        middle = (begin + end) // 2
        begin, end = torch.cat([begin, middle], dim=1), torch.cat([middle, end], dim=1)
        center = ((begin + end) // 2).clamp(max=summaries.shape[1] - 1)
        near = summaries.gather(1, center[..., None].expand(-1, -1, summaries.shape[2]))
        scores = near @ queries.mT
        if valid is not None:
            scores = scores.masked_fill(~valid[:, None], float("-inf"))
        scores = scores.float().amax(dim=2).masked_fill(begin == end, float("-inf"))
        # The order of the text is the order of equal scores.
        order = begin.argsort(dim=1, stable=True)
        places = order.gather(1, best(scores.gather(1, order), number).sort(dim=1).values)
        begin, end = begin.gather(1, places), end.gather(1, places)
        size = -(-size // 2)
    votes = summaries.new_zeros(summaries.shape[:2], dtype=torch.float32)
    return votes.scatter_add(1, begin.clamp(max=summaries.shape[1] - 1), (end > begin).float())
