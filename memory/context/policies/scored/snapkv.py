"""SnapKV: keep the tokens of a prompt that its last tokens attend to.

Li et al. 2024 (arXiv 2404.14469, section 4): the cache first reads the whole prompt. Then every head keeps
the last `window` tokens and the tokens that receive the most attention from this window. The attention is
pooled along the text, so that neighboring tokens stay together. A question at the end of a prompt thus
selects the tokens to keep.

Beyond the paper, generated tokens are compressed in the same way, so that the cache is bounded. The first
tokens are always kept. Query heads that share a key head select together, so that the memory of evicted
tokens can be freed. Tokens keep their positions in the text, so the text must not be longer than the training
texts.

Memory: the budget for each key head; generation adds up to `window - 1` tokens and the last `window` queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.context.policies.base import check_kernel
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.scored.base import Queries, ScoredPolicy


@dataclass(frozen=True)
class SnapKVPolicy(ScoredPolicy):
    """Keep the last `window` tokens of a prompt and the earlier tokens that they attend to most."""

    kernel: int = 15
    """Number of neighboring tokens over which attention is averaged (average pooling); must be odd.

    The SnapKV paper uses 5 and 7. With these values, a seven-digit number loses half of its digits if each
    digit is a token."""

    queries: ClassVar[Queries] = "window"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kernel(self.kernel)

    def score(
        self, keys: Tensor, values: Tensor, queries: Tensor, *, scoring: Scoring, **_: object
    ) -> Tensor:
        """Return the attention that each token receives from the last tokens, pooled along the text."""
        attention = self.rate(window_attention(keys, queries, scoring))
        # Safe tokens are masked before pooling, which would spread their weight to their neighbors.
        attention[..., : self.num_sinks] = attention[..., max(attention.shape[-1] - self.window, 0) :] = 0
        return functional.avg_pool1d(attention, self.kernel, stride=1, padding=self.kernel // 2)

    def rate(
        self, weights: Float[Tensor, "batch key_heads shared window tokens"]
    ) -> Float[Tensor, "batch key_heads tokens"]:
        """Return the score of each token before pooling: the sum of its attention weights."""
        return weights.sum(dim=(2, 3))

    def prefer(self, weights: Float[Tensor, "batch heads window tokens"]) -> Float[Tensor, " batch"]:
        """Return the layer's weight in the split of a joint budget, for each batch row; by default 1.

        `weights` are the attention weights of the last `window` queries.
        """
        return weights.new_ones(len(weights))

    def measure(self, keys: Tensor, queries: Tensor, scoring: Scoring) -> Float[Tensor, " batch"]:
        """Return the result of `prefer`."""
        return self.prefer(window_attention(keys, queries, scoring).flatten(1, 2))


def window_attention(
    keys: Float[Tensor, "batch key_heads tokens width"],
    queries: Float[Tensor, "batch heads queries width"],
    scoring: Scoring,
) -> Float[Tensor, "batch key_heads shared queries tokens"]:
    """Return the attention weights of the last queries; the last query belongs to the last token."""
    batch, groups, tokens, width = keys.shape
    count = queries.shape[2]
    products = (queries.reshape(batch, groups, -1, width) @ keys.mT).unflatten(2, (-1, count))
    column = torch.arange(tokens, device=keys.device)
    later = column > tokens - count + torch.arange(count, device=keys.device)[:, None]
    return scoring.compute_weights(products, later)
