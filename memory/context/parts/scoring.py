"""Attention weights from dot products of queries and keys: scale, soft cap, softmax, learned sinks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scoring:
    """Scale, soft cap and learned sinks of one model layer, which every policy must apply."""

    scale: float
    """Factor of the dot products of queries and keys."""
    cap: float | None = None
    """Soft cap of the scores: `cap * tanh(score / cap)`, as in Gemma 2 (arXiv 2408.00118, section 2)."""
    sinks: Float[Tensor, " heads"] | None = None
    """Learned score per head, as in gpt-oss. It takes part in the softmax, but has no key and no value."""

    @property
    def is_plain(self) -> bool:
        """True if torch's fused attention supports this scoring."""
        return self.cap is None and self.sinks is None

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
        if self.sinks is None:
            return torch.softmax(scores, dim=-1)
        groups, shared = scores.shape[1:3]
        sinks = self.sinks.to(scores.dtype).view(groups, shared, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
