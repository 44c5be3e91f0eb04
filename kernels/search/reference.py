"""The definition of `nearest` and `row_scores`: one query and one row at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scrubjay.kernels.search.op import Nearest


def nearest(
    query: Tensor, keys: Tensor, count: int, norms: Tensor | None, allowed: Tensor | None
) -> Nearest[Tensor]:
    """Return the `count` best rows of each query."""
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
    return Nearest(-table[..., 0].float(), table[..., 1].long())


def row_scores(query: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
    """Return the products of the queries with the listed rows."""
    return torch.stack([(query.float() * keys[row].float()).sum(dim=-1) for row in rows.tolist()], dim=-1)
