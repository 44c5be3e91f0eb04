"""The definition of `nearest` and `row_scores`: one query and one row at a time."""

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
    allowed: Bool[Tensor, " N"] | None,
) -> tuple[Float[Tensor, "Q K"], Int[Tensor, "Q K"]]:
    """Return the scores and the numbers of the `count` best rows of each query."""
    found = []
    for vector in query.float():
        # A sum of products, since a dot product's rounding depends on where in memory a row lies.
        scores = [(vector * key).sum() for key in keys.float()]
        if norms is not None:
            scores = [score / norm for score, norm in zip(scores, norms.float(), strict=True)]
        there = [
            (-score.item(), row)
            for row, score in enumerate(scores)
            if (allowed is None or allowed[row]) and score > -math.inf
        ]
        there = sorted(there)[:count]
        found.append(there + [(math.inf, -1)] * (count - len(there)))
    table = torch.tensor(found, dtype=torch.float64, device=query.device).view(len(query), count, 2)
    return -table[..., 0].float(), table[..., 1].long()


def row_scores(
    query: Float[Tensor, "Q D"], keys: Float[Tensor, "N D"], rows: Int[Tensor, " R"]
) -> Float[Tensor, "Q R"]:
    """Return the products of the queries with the listed rows."""
    return torch.stack([(query.float() * keys[row].float()).sum(dim=-1) for row in rows.tolist()], dim=-1)
