"""Causal attention to everything: torch's fused kernels, and never a mask of text by text."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

# Rows of a mask that exist at once.
_BLOCK = 256


def causal_attention(
    query: Float[Tensor, "batch heads length width"],
    keys: Float[Tensor, "batch key_heads held width"],
    values: Float[Tensor, "batch key_heads held value_width"],
    valid: Bool[Tensor, "batch held"] | None,
    scale: float,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads length value_width"]:
    """Return what queries read of the keys up to their own; the last keys are the queries' own, in order.

    A query that is not `valid` itself reads something or other, finite.

    Args:
        query: Of the last `length` of the held columns.
        keys: All that is held.
        values: Theirs.
        valid: Which columns may be read; None for all.
        scale: Of the scores.
        dropout: Of the weights.
    """
    batch, heads, length, width = query.shape
    groups, held = keys.shape[1:3]
    if length == 1:
        # The query heads of a key head are so many queries: keys are read once, not repeated.
        mask = None if valid is None else _with_own(valid[:, None], held, 1)[:, None]
        out = functional.scaled_dot_product_attention(
            query.reshape(batch, groups, heads // groups, width), keys, values, mask, dropout, scale=scale
        )
        return out.reshape(batch, heads, 1, -1)
    options = {"scale": scale, "enable_gqa": heads != groups, "dropout_p": dropout}
    if length == held and valid is None:
        return functional.scaled_dot_product_attention(query, keys, values, is_causal=True, **options)
    out = []
    for first in range(0, length, _BLOCK):
        last = min(first + _BLOCK, length)
        reach = held - length + last
        mask = torch.ones(last - first, reach, dtype=torch.bool, device=query.device).tril(
            reach - last + first
        )
        if valid is not None:
            mask = _with_own(mask & valid[:, None, :reach], reach, last - first)[:, None]
        rows = (query[:, :, first:last], keys[:, :, :reach], values[:, :, :reach])
        out.append(functional.scaled_dot_product_attention(*rows, attn_mask=mask, **options))
    return torch.cat(out, dim=2)


def _with_own(mask: Tensor, reach: int, rows: int) -> Tensor:
    """Let every query see itself: a softmax over nothing is no number."""
    own = torch.ones(rows, reach, dtype=torch.bool, device=mask.device).tril(reach - rows).triu(reach - rows)
    return mask | own
