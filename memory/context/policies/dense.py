"""Attention of one layer: scores and weights, and causal and masked attention by torch's fused kernels.

Causal attention never builds the full query-by-key mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class PromptReader(Protocol):
    """Protocol of an object that replaces dense attention for the first tokens of a text."""

    def read_prompt(
        self,
        query: Float[Tensor, "batch heads tokens width"],
        keys: Float[Tensor, "batch key_heads tokens width"],
        values: Float[Tensor, "batch key_heads tokens value_width"],
        valid: Bool[Tensor, "batch tokens"] | None,
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads tokens value_width"]:
        """Return the attention output of the first tokens of a text; arguments as for `causal_attention`."""
        ...


@dataclass(frozen=True, eq=False)
class Scoring:
    """Scale, soft cap and learned sinks of one model layer, which every policy must apply."""

    scale: float
    """Factor of the dot products of queries and keys."""
    cap: float | None = None
    """Soft cap of the scores: `cap * tanh(score / cap)`, as in Gemma 2 (arXiv 2408.00118, section 2)."""
    sinks: Float[Tensor, " heads"] | None = None
    """Learned score per head, as in gpt-oss. It takes part in the softmax, but has no key and no value."""
    module: nn.Module | None = None
    """The model's attention layer; None outside of a model."""
    hidden: Float[Tensor, "batch length dim"] | None = None
    """Inputs of the attention layer, if a policy asks for them."""
    prompt_reader: PromptReader | None = None
    """Object that reads the first tokens of a text; None for dense attention."""

    @property
    def is_plain(self) -> bool:
        """True if torch's fused attention supports this scoring."""
        return self.cap is None and self.sinks is None

    def split(self, groups: int) -> list[Scoring]:
        """Return the scoring of each of `groups` key heads, with the learned sinks of its query heads."""
        if self.sinks is None:
            return [self] * groups
        return [replace(self, sinks=sinks) for sinks in self.sinks.view(groups, -1)]

    def compute_scores(
        self, products: Float[Tensor, "*batch rows columns"]
    ) -> Float[Tensor, "*batch rows columns"]:
        """Return attention scores: dot products of queries and keys, scaled and soft-capped."""
        scores = products * self.scale
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)

    def compute_weights(
        self,
        products: Float[Tensor, "batch key_heads shared rows columns"],
        hidden: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch key_heads shared rows columns"]:
        """Return attention weights in float32 or higher precision.

        The weights of a query sum to 1, or to less than 1 with learned sinks. A query whose keys are all
        `hidden` gets arbitrary finite weights. The axis "shared" has the query heads of one key head.
        """
        scores = self.compute_scores(products).to(torch.promote_types(products.dtype, torch.float32))
        if hidden is not None:
            scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        return softmax_with_sinks(
            scores, None if self.sinks is None else self.sinks.view(*scores.shape[1:3], 1, 1)
        )


def softmax_with_sinks(
    scores: Float[Tensor, "*batch rows columns"], sinks: Float[Tensor, "*heads 1 1"] | None
) -> Float[Tensor, "*batch rows columns"]:
    """Return the softmax of scores and learned sinks over the columns, without the weights of the sinks."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    sinks = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]


BLOCK = 256
"""Rows of a mask in memory at once."""


def causal_attention(
    query: Float[Tensor, "batch heads length width"],
    keys: Float[Tensor, "batch key_heads columns width"],
    values: Float[Tensor, "batch key_heads columns value_width"],
    valid: Bool[Tensor, "batch columns"] | None,
    scoring: Scoring,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads length value_width"]:
    """Return the causal attention output of the last `length` tokens over all tokens.

    The last `length` keys belong to the queries, in the same order. The output of a token that is False in
    `valid` is arbitrary but finite.

    Args:
        query: Queries of the last `length` tokens.
        keys: Keys of all tokens.
        values: Values of all tokens.
        valid: True for tokens of the text, False for padding; None if there is no padding.
        scoring: The model's scale, soft cap and learned sinks.
        dropout: Dropout probability of the weights.
    """
    heads, length = query.shape[1:3]
    groups, columns = keys.shape[1:3]
    if scoring.prompt_reader is not None and 1 < length == columns and not dropout:
        return scoring.prompt_reader.read_prompt(query, keys, values, valid, scoring)
    if length == 1:
        mask = None if valid is None else _allow_self(valid[:, None], columns, 1)
        return masked_attention(query, keys, values, mask, scoring, dropout)
    if length == columns and valid is None and scoring.is_plain:
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
        reach = columns - length + last
        mask = torch.ones(1, last - first, reach, dtype=torch.bool, device=query.device).tril(
            reach - last + first
        )
        if valid is not None:
            mask = _allow_self(mask & valid[:, None, :reach], reach, last - first)
        rows = (query[:, :, first:last], keys[:, :, :reach], values[:, :, :reach])
        out.append(masked_attention(*rows, mask, scoring, dropout))
    return torch.cat(out, dim=2)


def masked_attention(
    query: Float[Tensor, "batch heads length width"],
    keys: Float[Tensor, "batch key_heads columns width"],
    values: Float[Tensor, "batch key_heads columns value_width"],
    mask: Bool[Tensor, "rows length columns"] | None,
    scoring: Scoring,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads length value_width"]:
    """Return the attention output of queries over the keys that `mask` allows.

    Args:
        query: Queries of `length` tokens.
        keys: Keys of all tokens.
        values: Values of all tokens.
        mask: True where a query is allowed to read a key; each query needs at least one such key. A mask with
            batch size 1 applies to all batch rows. None allows all keys.
        scoring: The model's scale, soft cap and learned sinks.
        dropout: Dropout probability of the weights.
    """
    batch, heads, length, width = query.shape
    groups = keys.shape[1]
    if not scoring.is_plain:
        products = query.reshape(batch, groups, -1, width) @ keys.mT
        hidden = None if mask is None else ~mask[:, None, None]
        weights = scoring.compute_weights(products.unflatten(2, (-1, length)), hidden)
        weights = functional.dropout(weights, dropout).to(values.dtype)
        return (weights.flatten(2, 3) @ values).unflatten(2, (-1, length)).flatten(1, 2)
    if length == 1:
        # The query heads of a key head become queries of one head, so that keys are read once.
        query = query.reshape(batch, groups, heads // groups, width)
    out = functional.scaled_dot_product_attention(
        query,
        keys,
        values,
        None if mask is None else mask[:, None],
        dropout,
        scale=scoring.scale,
        enable_gqa=query.shape[1] != groups,
    )
    return out.reshape(batch, heads, length, -1)


def _allow_self(mask: Tensor, reach: int, rows: int) -> Tensor:
    """Let every query read its own key. Without any key, the softmax would return NaN."""
    own = torch.ones(rows, reach, dtype=torch.bool, device=mask.device).tril(reach - rows).triu(reach - rows)
    return mask | own
