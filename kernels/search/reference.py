"""Definition of `nearest` and `row_scores`: one query and one row at a time."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def nearest(
    query: Float[Tensor, "Q D"],
    keys: Float[Tensor, "N D"],
    count: int,
    norms: Float[Tensor, " N"] | None,
    row_mask: Bool[Tensor, " N"] | None,
) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
    """Return the scores and row numbers of the `count` best rows of each query."""
    results = []
    for vector in query.float():
        # A sum of products, because the rounding of a dot product depends on the memory address of a row.
        scores = [(vector * key).sum() for key in keys.float()]
        if norms is not None:
            scores = [score / norm for score, norm in zip(scores, norms.float(), strict=True)]
        candidates = [
            (-score.item(), row)
            for row, score in enumerate(scores)
            if (row_mask is None or row_mask[row]) and score > -math.inf
        ]
        candidates = sorted(candidates)[:count]
        results.append(candidates + [(math.inf, -1)] * (count - len(candidates)))
    table = torch.tensor(results, dtype=torch.float64, device=query.device).view(len(query), count, 2)
    return -table[..., 0].float(), table[..., 1].long()


def row_scores(
    query: Float[Tensor, "Q D"], keys: Float[Tensor, "N D"], rows: Int[Tensor, " R"]
) -> Float[Tensor, "Q R"]:
    """Return the dot products of the queries with the rows `rows` of `keys`."""
    return torch.stack([(query.float() * keys[row].float()).sum(dim=-1) for row in rows.tolist()], dim=-1)
