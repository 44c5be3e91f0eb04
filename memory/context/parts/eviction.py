"""Eviction per head: every key head keeps its own best columns, and the memory of the others is freed."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels.select import best


def keep_best(
    worth: Float[Tensor, "batch key_heads columns"], counts: Int[Tensor, " batch"], most: int
) -> Int[Tensor, "batch key_heads most"]:
    """Return the indices of the `counts` best columns of each row and head, in order.

    Rows with fewer than `most` columns start with fillers. Among equal scores, which pooling creates, the
    earlier column wins.
    """
    columns = best(worth, most)
    columns = columns.masked_fill(torch.arange(most, device=columns.device) >= counts[:, None, None], -1)
    return columns.sort(dim=-1).values.clamp(min=0)


def drop_worst(
    worth: Float[Tensor, "batch key_heads columns"], most: int
) -> Int[Tensor, "batch key_heads most"]:
    """Return the result of `keep_best` with `most` columns in every row, faster if few are evicted."""
    columns = worth.shape[-1]
    # Among equal scores the later column is evicted.
    worst = columns - 1 - best(-worth.flip(-1), columns - most)
    stays = torch.ones_like(worth, dtype=torch.bool).scatter_(-1, worst, False)
    return stays.nonzero()[:, -1].view(*worth.shape[:-1], most)


def gather_columns(
    table: Float[Tensor, "batch key_heads columns width"], columns: Int[Tensor, "batch key_heads selected"]
) -> Float[Tensor, "batch key_heads selected width"]:
    """Gather the columns of each head from a table."""
    batch, groups, num_columns, width = table.shape
    first = num_columns * torch.arange(batch * groups, device=table.device).view(batch, groups, 1)
    # Indexing rows of one long table is ten times as fast as `gather`.
    rows = table.reshape(-1, width).index_select(0, (columns + first).flatten())
    return rows.view(batch, groups, -1, width)
