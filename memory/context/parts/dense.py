"""Causal attention to everything, or to a window: torch's fused kernels, and never a mask of text by text."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.context.parts.scoring import Scoring

BLOCK = 256
"""Rows of a mask that exist at once."""


def causal_attention(
    query: Float[Tensor, "batch heads length width"],
    keys: Float[Tensor, "batch key_heads held width"],
    values: Float[Tensor, "batch key_heads held value_width"],
    valid: Bool[Tensor, "batch held"] | None,
    scoring: Scoring,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads length value_width"]:
    """Return what queries read of the keys up to their own; the last keys are the queries' own, in order.

    A query that is not `valid` itself reads something or other, finite.

    Args:
        query: Of the last `length` of the held columns.
        keys: All that is held.
        values: Theirs.
        valid: Which columns may be read; None for all.
        scoring: What the model does to scores.
        dropout: Of the weights.
    """
    heads, length = query.shape[1:3]
    groups, held = keys.shape[1:3]
    if length == 1:
        mask = None if valid is None else _with_own(valid[:, None], held, 1)
        return masked_attention(query, keys, values, mask, scoring, dropout)
    if length == held and valid is None and scoring.is_plain:
        return functional.scaled_dot_product_attention(
            query,
            keys,
            values,
            None,
            dropout,
            is_causal=True,
            scale=scoring.scale,
            enable_gqa=heads != groups,
        )
    out = []
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        reach = held - length + last
        mask = torch.ones(1, last - first, reach, dtype=torch.bool, device=query.device).tril(
            reach - last + first
        )
        if valid is not None:
            mask = _with_own(mask & valid[:, None, :reach], reach, last - first)
        rows = (query[:, :, first:last], keys[:, :, :reach], values[:, :, :reach])
        out.append(masked_attention(*rows, mask, scoring, dropout))
    return torch.cat(out, dim=2)


def masked_attention(
    query: Float[Tensor, "batch heads length width"],
    keys: Float[Tensor, "batch key_heads held width"],
    values: Float[Tensor, "batch key_heads held value_width"],
    mask: Bool[Tensor, "rows length held"] | None,
    scoring: Scoring,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads length value_width"]:
    """Return what queries read of the keys that a mask lets them see, all of them without one.

    Args:
        query: Of so many tokens.
        keys: What is held.
        values: Theirs.
        mask: What each query sees, of every row or of one for all; something, each.
        scoring: What the model does to scores.
        dropout: Of the weights.
    """
    batch, heads, length, width = query.shape
    groups = keys.shape[1]
    if not scoring.is_plain:
        products = query.reshape(batch, groups, -1, width) @ keys.mT
        hidden = None if mask is None else ~mask[:, None, None]
        weights = scoring.weights(products.unflatten(2, (-1, length)), hidden)
        weights = functional.dropout(weights, dropout).to(values.dtype)
        return (weights.flatten(2, 3) @ values).unflatten(2, (-1, length)).flatten(1, 2)
    mask = None if mask is None else mask[:, None]
    if length == 1:
        # The query heads of a key head are so many queries: keys are read once, not repeated.
        query = query.reshape(batch, groups, heads // groups, width)
        out = functional.scaled_dot_product_attention(query, keys, values, mask, dropout, scale=scoring.scale)
        return out.reshape(batch, heads, 1, -1)
    options = {"scale": scoring.scale, "enable_gqa": heads != groups}
    return functional.scaled_dot_product_attention(query, keys, values, mask, dropout, **options)


def _with_own(mask: Tensor, reach: int, rows: int) -> Tensor:
    """Let every query see itself: a softmax over nothing is no number."""
    own = torch.ones(rows, reach, dtype=torch.bool, device=mask.device).tril(reach - rows).triu(reach - rows)
    return mask | own
