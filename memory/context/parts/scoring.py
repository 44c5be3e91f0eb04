"""How a model makes weights of the products of queries and keys: scale, cap, softmax, learned sinks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Scoring:
    """What one layer of a model does to scores, which every policy must do as it does."""

    scale: float
    """What products are multiplied by."""
    cap: float | None = None
    """Scores are `cap * tanh(score / cap)`, as in Gemma 2 (arXiv 2408.00118, section 2)."""
    sinks: Float[Tensor, " heads"] | None = None
    """A learned score for each head that takes its share of the weights and is of no key, as in gpt-oss."""

    @property
    def is_plain(self) -> bool:
        """Whether torch's fused attention knows how."""
        return self.cap is None and self.sinks is None

    def of(self, products: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
        """Return the scores of products of queries and keys."""
        scores = products * self.scale
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)

    def weights(
        self,
        products: Float[Tensor, "batch key_heads shared rows columns"],
        hidden: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch key_heads shared rows columns"]:
        """Return the weights of columns, in float32 at least: a row's sum is 1, or less by its sink's share.

        A row that is all hidden has some or other, finite. `shared` are the query heads of a key head.
        """
        scores = self.of(products).to(torch.promote_types(products.dtype, torch.float32))
        if hidden is not None:
            scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        if self.sinks is None:
            return torch.softmax(scores, dim=-1)
        groups, shared = scores.shape[1:3]
        sinks = self.sinks.to(scores.dtype).view(groups, shared, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
