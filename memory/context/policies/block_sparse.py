"""Attention of a prompt that reads only some blocks of keys for each query head and block of queries.

`choose_blocks` selects the blocks as FlexPrefill does (module `flexprefill`). `attend_to_blocks` gathers the
keys of these blocks and computes nothing for all others.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.context.policies.dense import Scoring


def attend_to_blocks(
    query: Float[Tensor, "heads tokens width"],
    keys: Float[Tensor, "key_heads tokens width"],
    values: Float[Tensor, "key_heads tokens value_width"],
    blocks: Bool[Tensor, "heads rows columns"],
    block: int,
    scale: float,
) -> Float[Tensor, "heads tokens value_width"]:
    """Return the causal attention output of a prompt over the selected blocks of keys.

    Args:
        query: Queries of the prompt.
        keys: Keys of the prompt.
        values: Values of the prompt.
        blocks: True if a block of queries, "rows", reads a block of keys, "columns". Each block of queries
            reads its own block of keys, and none after it.
        block: Number of tokens of a block. The last block may have fewer.
        scale: Factor of the dot products of queries and keys.
    """
    heads, tokens = query.shape[:2]
    groups, count, width = len(keys), math.ceil(tokens / block), keys.shape[2]
    # One table of keys and values needs one copy for each block of queries.
    table = torch.cat([keys, values], dim=2)
    table = functional.pad(table, (0, 0, 0, count * block - tokens)).unflatten(1, (count, block))
    # The last columns of this mask are causal for a block of queries and the blocks that it reads. As numbers
    # that are added to scores, a mask is faster than as booleans, which torch converts in each call.
    reach = count * block
    later = torch.ones(block, reach, dtype=torch.bool, device=query.device).triu(reach - block + 1)
    mask = query.new_zeros(block, reach).masked_fill(later, float("-inf"))
    attend = functional.scaled_dot_product_attention
    out = []
    for head, reads in enumerate(blocks):
        group = head * groups // heads
        if int(reads.sum()) == count * (count + 1) // 2:
            # One call is faster.
            one, key, value = (x[None, None] for x in (query[head], keys[group], values[group]))
            out.append(attend(one, key, value, is_causal=True, scale=scale)[0, 0])
            continue
        for row, queries in enumerate(query[head].split(block)):
            read = table[group].index_select(0, reads[row].nonzero()[:, 0]).flatten(0, 1)[None, None]
            own_mask = mask[: len(queries), reach - read.shape[2] :]
            own = attend(queries[None, None], read[..., :width], read[..., width:], own_mask, scale=scale)
            out.append(own[0, 0])
    return torch.cat(out).unflatten(0, (heads, tokens))


@torch.no_grad()
def choose_blocks(
    query: Float[Tensor, "heads tokens width"],
    keys: Float[Tensor, "key_heads tokens width"],
    block: int,
    gamma: float,
    tau: float,
    least: int,
    scoring: Scoring,
) -> Bool[Tensor, "heads rows columns"]:
    """Return which blocks of keys each block of queries reads: vertical, slash and query-aware ones.

    Args:
        query: Queries of the prompt.
        keys: Keys of the prompt.
        block: Number of tokens of a block.
        gamma: Share of the attention that the vertical blocks cover, and the slash blocks, and the
            query-aware blocks.
        tau: Largest distance of the estimate from the attention at which a head is query-aware.
        least: Smallest number of vertical blocks, and of slash blocks.
        scoring: The model's scale.
    """
    heads, tokens = query.shape[:2]
    groups, count = len(keys), math.ceil(tokens / block)
    mean_keys = average_blocks(keys, block)
    row = torch.arange(count, device=query.device)
    distance = row[:, None] - row
    out = []
    for head in range(heads):
        own, group = query[head], head * groups // heads
        weights = attend_from_end(own[-block:], keys[group], scoring)
        columns = sum_columns(weights, block)
        estimate = torch.softmax(
            scoring.compute_scores(own[-block:].mean(dim=0).to(mean_keys) @ mean_keys[group].mT), dim=-1
        )
        is_aware = measure_distance(columns, estimate) < tau
        reads = torch.zeros(count, count, dtype=torch.bool, device=query.device)
        share = 0.0 if is_aware else gamma
        reads[:, cover(columns, share, least, 0)] = True
        steps = torch.zeros(count, dtype=torch.bool, device=query.device)
        steps[cover(sum_distances(weights, block), share, least, 0)] = True
        reads |= steps[distance.clamp(min=0)]
        if is_aware:
            scores = scoring.compute_scores(average_blocks(own[None], block)[0] @ mean_keys[group].mT)
            rates = torch.softmax(scores.masked_fill(distance < 0, float("-inf")), dim=-1).flatten()
            reads.view(-1)[cover(rates, gamma * count, 1)] = True
        out.append(reads & (distance >= 0))
    return torch.stack(out)


def average_blocks(
    table: Float[Tensor, "heads tokens width"], block: int
) -> Float[Tensor, "heads blocks width"]:
    """Return the mean of each block in float32 or higher precision; the last block may have fewer tokens."""
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    return torch.stack([part.mean(dim=1) for part in wide.split(block, dim=1)], dim=1)


def attend_from_end(
    query: Float[Tensor, "window width"], keys: Float[Tensor, "tokens width"], scoring: Scoring
) -> Float[Tensor, "window tokens"]:
    """Return the causal attention weights of the last queries of a prompt."""
    window, tokens = len(query), len(keys)
    column = torch.arange(tokens, device=keys.device)
    later = column > column[tokens - window :, None]
    return scoring.compute_weights((query @ keys.mT)[None, None, None], later)[0, 0, 0]


def sum_columns(weights: Float[Tensor, "window tokens"], block: int) -> Float[Tensor, " blocks"]:
    """Return the mean weight of each block of keys: the share of a vertical block."""
    return torch.stack([part.sum() for part in weights.mean(dim=0).split(block)])


def sum_distances(weights: Float[Tensor, "window tokens"], block: int) -> Float[Tensor, " blocks"]:
    """Return the share of each distance between a block of queries and a block of keys: of a slash block.

    A diagonal of weights that continues through the text crosses two distances. Its weight counts for both,
    in proportion to the queries that read each.
    """
    window, tokens = weights.shape
    # Each row moves to the right, by one column more than the row below it: diagonals become columns.
    table = functional.pad(weights.flip(0), (0, window)).flatten()[:-window].view(window, -1)
    diagonals = table[:, :tokens].flip(1).mean(dim=0)
    offset = torch.arange(tokens, device=weights.device)
    step, part = offset // block, offset % block / block
    sums = weights.new_zeros(math.ceil(tokens / block) + 1)
    sums.index_add_(0, step, diagonals * (1 - part)).index_add_(0, step + 1, diagonals * part)
    return sums[:-1]


def measure_distance(left: Float[Tensor, " blocks"], right: Float[Tensor, " blocks"]) -> float:
    """Return the square root of the Jensen-Shannon divergence of two distributions, in nats."""
    both = torch.special.entr((left + right) / 2).sum()
    own = (torch.special.entr(left) + torch.special.entr(right)).sum() / 2
    return float((both - own).clamp(min=0).sqrt())


def cover(
    shares: Float[Tensor, " blocks"], total: float, least: int, always: int | None = None
) -> Int[Tensor, " entries"]:
    """Return the indices of the fewest entries that sum to `total`, and of at least `least` entries.

    The entry `always` is one of them. Among equal shares earlier entries win.
    """
    worth = shares.double()
    if always is not None:
        worth = worth.index_fill(0, torch.tensor([always], device=shares.device), math.inf)
    order = worth.sort(descending=True, stable=True).indices
    count = int((shares.double()[order].cumsum(dim=0) < total).sum()) + 1
    return order[: max(count, least)]
