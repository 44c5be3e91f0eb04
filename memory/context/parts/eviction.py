"""Eviction per head: every key head keeps its own best tokens, and the memory of evicted tokens is freed."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels.select import best


def keep_best(
    worth: Float[Tensor, "batch key_heads columns"], counts: Int[Tensor, " batch"], most: int
) -> Int[Tensor, "batch key_heads most"]:
    """Return the indices of the tokens with the highest `worth`, in the order of the text.

    Each head of batch row i keeps `counts[i]` tokens. If this is fewer than `most`, the result starts with
    zeros as fillers. Among equal scores, which are common after pooling, the earlier token wins.
    """
    columns = best(worth, most)
    columns = columns.masked_fill(torch.arange(most, device=columns.device) >= counts[:, None, None], -1)
    return columns.sort(dim=-1).values.clamp(min=0)


def drop_worst(
    worth: Float[Tensor, "batch key_heads columns"], most: int
) -> Int[Tensor, "batch key_heads most"]:
    """Return the indices of the tokens with the highest `worth`, in the order of the text.

    Each head of each batch row keeps `most` tokens. `keep_best` returns the same indices if its
    argument `counts` is `most` for every row. This function is faster if few tokens are evicted.
    """
    columns = worth.shape[-1]
    # Among equal scores the later column is evicted.
    worst = columns - 1 - best(-worth.flip(-1), columns - most)
    stays = torch.ones_like(worth, dtype=torch.bool).scatter_(-1, worst, False)
    return stays.nonzero()[:, -1].view(*worth.shape[:-1], most)


def gather_columns(
    table: Float[Tensor, "batch key_heads columns width"], columns: Int[Tensor, "batch key_heads selected"]
) -> Float[Tensor, "batch key_heads selected width"]:
    """Return the vectors of `table` at the token indices `columns`, which may differ between heads."""
    batch, groups, num_columns, width = table.shape
    first = num_columns * torch.arange(batch * groups, device=table.device).view(batch, groups, 1)
    # Indexing rows of one long table is ten times as fast as `gather`.
    rows = table.reshape(-1, width).index_select(0, (columns + first).flatten())
    return rows.view(batch, groups, -1, width)
