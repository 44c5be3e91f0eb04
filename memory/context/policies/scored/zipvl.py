"""ZipVL: keep as many tokens of a prompt as its attention needs, layer by layer.

He et al. 2024 (arXiv 2410.08584, section 3): some queries of the prompt are probes, the last `probes_last`
and `probes_random` others. The attention weights that a token receives from the probes are summed. The number
of tokens that a layer keeps is the smallest number of sums that reach the share `tau` of all. So a layer with
concentrated attention keeps few tokens. The mean weight over the probes that can see a token decides which
tokens these are, since early tokens are visible to more probes.

Differences from the paper: tokens are dropped, as in its second version; the first version stores them with
fewer bits. All tokens of a prompt are read by full attention, without the paper's sparse attention. The sums
cover all heads, and all heads of a layer keep the same tokens. The first `num_sinks` and the last `window`
tokens are kept besides the chosen ones. Random probes depend on the length of the prompt alone, so results
repeat. In generation, tokens are dropped once the budget is exceeded; the last `window` queries are then the
probes. The paper's images have no counterpart here.

Memory: at most the budget for each key head, and in generation up to `window - 1` tokens more. The number of
tokens depends on the text, so `nbytes` of the policy is an upper bound. `nbytes` of the cache is exact. Use
it if some prompts need many tokens and others few, with the question at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.memory.context.policies.base import check_minimums
from scrubjay.memory.context.policies.buffers import mark_best
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.scored.base import Queries, ScoredPolicy

_BLOCK = 32
"""Number of probes whose attention weights are in memory at once."""


@dataclass(frozen=True)
class ZipVLPolicy(ScoredPolicy):
    """Keep the fewest tokens of a prompt that receive a share of the attention of some queries."""

    tau: float = 0.975
    """Share of the attention that the kept tokens of a layer receive; 1 keeps all tokens."""
    probes_last: int = 64
    """Number of last queries of a prompt that are probes."""
    probes_random: int = 64
    """Number of earlier queries of a prompt that are probes, chosen at random."""

    queries: ClassVar[Queries] = "call"
    exact_bytes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimums(self, probes_last=1, probes_random=0)
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau={self.tau}: must be above 0 and at most 1")
        if self.heads != "equal":
            raise ValueError(
                f"heads={self.heads!r}: must be 'equal', since all heads of a layer keep the same tokens"
            )

    def score(
        self, keys: Tensor, values: Tensor, queries: Tensor, *, scoring: Scoring, **_: object
    ) -> Tensor:
        """Return the mean attention of the probes that see a token; minus infinity for needless tokens."""
        tokens, count = keys.shape[2], queries.shape[2]
        probes = self.choose_probes(count).to(keys.device)
        places = tokens - count + probes
        sums = sum_attention(keys, queries[:, :, probes], places, scoring)
        column = torch.arange(tokens, device=keys.device)
        seen_by = (column <= places[:, None]).sum(dim=0).clamp(min=1)
        scores = sums / seen_by
        if self.tau < 1:
            counts = count_needed(sums, self.tau)
            scores = scores.masked_fill(~mark_best(scores, counts), float("-inf"))
        return scores[:, None].expand(keys.shape[:3])

    def choose_probes(self, count: int) -> Int[Tensor, " probes"]:
        """Return the indices of the probes among `count` queries, in order."""
        earlier = max(count - self.probes_last, 0)
        generator = torch.Generator().manual_seed(0)
        others = torch.randperm(earlier, generator=generator)[: self.probes_random].sort().values
        return torch.cat([others, torch.arange(earlier, count)])


def sum_attention(
    keys: Float[Tensor, "batch key_heads tokens width"],
    queries: Float[Tensor, "batch heads probes width"],
    places: Int[Tensor, " probes"],
    scoring: Scoring,
) -> Float[Tensor, "batch tokens"]:
    """Return the attention weights of each token, as the sum over all heads and queries.

    `places` has the index of each query among the tokens.
    """
    batch, groups, tokens, width = keys.shape
    column = torch.arange(tokens, device=keys.device)
    wide = torch.promote_types(keys.dtype, torch.float32)
    sums = torch.zeros(batch, tokens, dtype=wide, device=keys.device)
    for own, own_places in zip(queries.split(_BLOCK, dim=2), places.split(_BLOCK), strict=True):
        products = own.reshape(batch, groups, -1, width) @ keys.mT
        products = products.unflatten(2, (-1, len(own_places)))
        sums += scoring.compute_weights(products, column > own_places[:, None]).sum(dim=(1, 2, 3))
    return sums


def count_needed(sums: Float[Tensor, "batch tokens"], share: float) -> Int[Tensor, " batch"]:
    """Return the smallest number of entries of each row whose sum reaches a share of the whole row."""
    totals = sums.double().sort(dim=1, descending=True).values.cumsum(dim=1)
    if not totals.shape[1]:
        return totals.new_zeros(len(totals), dtype=torch.long)
    return ((totals < share * totals[:, -1:]).sum(dim=1) + 1).clamp(max=totals.shape[1])
