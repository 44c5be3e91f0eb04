"""FlexPrefill: read a long prompt by sparse attention, and cache it under any policy that reads it whole.

Lai et al. 2025 (arXiv 2502.20766, section 3): each query head selects blocks of keys for itself, from the
attention of the last `block` queries. The mean of these queries and the means of the blocks of keys give an
estimate of that attention. If the estimate is near the truth, the head is query-aware: the means of each
block of queries select blocks. In all other heads, the last queries select blocks of keys that all queries
read (vertical), and distances between blocks of queries and keys (slash). Nothing is evicted, and generated
tokens read the cache of the inner policy.

Differences from the paper: tokens are selected in whole blocks, as in the authors' code. Each selection is
the fewest blocks that reach the share `gamma`; the code counts tokens, divides by 128, and may take fewer
blocks. A diagonal of weights crosses two distances between blocks, and counts for both in proportion. The
divergence accepts shares of 0. Rows of a batch select for themselves.

Memory: that of the inner policy. Only the first call of a cache is sparse, and only if it has more tokens
than `min_budget` and two blocks. Layers with soft caps or learned sinks read it by dense attention. So do
layers with sliding windows, which read few keys anyway. Use it for one long prompt; later turns are dense.
Reports on the tokens that were read (`get_retained_tokens`) name all tokens after a sparse prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.memory.context.policies.base import (
    CacheShape,
    ContextPolicy,
    LayerMemory,
    LayerStats,
    check_minimums,
)
from scrubjay.memory.context.policies.block_sparse import attend_to_blocks, choose_blocks
from scrubjay.memory.context.policies.dense import Scoring, causal_attention
from scrubjay.memory.context.policies.full import FullPolicy

_COPIED = (
    "can_crop",
    "drops",
    "exact_bytes",
    "moves_positions",
    "reads_hidden",
    "reads_rotary",
    "reads_twice",
)


@dataclass(frozen=True)
class FlexPrefillPolicy(ContextPolicy):
    """Read a long prompt by sparse attention, and cache it under the policy `policy`.

    `FlexPrefillPolicy(SnapKVPolicy(budget=1024))` evicts tokens as SnapKV does. A saved cache has the file of
    the inner policy, so each of both policies loads caches of the other.

    Raises:
        TypeError: If `policy` is not a policy.
        ValueError: On invalid sizes, and on a policy that does not read a prompt whole.
    """

    policy: ContextPolicy = FullPolicy()  # noqa: RUF009
    """Policy of the cache. `make("flexprefill", policy="snapkv")` takes its name, too."""
    block: int = 128
    """Number of tokens of a block. The last `block` queries of a prompt select."""
    gamma: float = 0.9
    """Share of attention that the selected blocks cover; 1 reads the prompt by dense attention."""
    tau: float = 0.1
    """Distance of the estimate from the true attention below which a head is query-aware, as the square root
    of the Jensen-Shannon divergence. 0 makes no head query-aware, and 1 makes all of them."""
    min_budget: int = 1024
    """Smallest number of tokens of the vertical blocks, and of the slash blocks."""

    drops: ClassVar[bool] = False
    can_crop: ClassVar[bool] = True
    split_invariant: ClassVar[bool] = False
    query_aware: ClassVar[bool] = True
    reads_whole: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_minimums(self, block=1, min_budget=1)
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma}: must be above 0 and at most 1")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau={self.tau}: must be from 0 to 1")
        if not isinstance(self.policy, ContextPolicy):
            raise TypeError(f"policy={self.policy!r}: pass a policy, such as SnapKVPolicy(budget=1024)")
        if not self.policy.reads_whole:
            raise ValueError(
                f"policy={self.policy!r} does not read a prompt by full attention (reads_whole=False), so "
                "sparse attention cannot replace it; pass another one, such as FullPolicy() or SnapKVPolicy()"
            )
        # A cache asks its policy for these properties, which are those of the inner policy.
        for name in _COPIED:
            object.__setattr__(self, name, getattr(self.policy, name))

    @property
    def inner(self) -> ContextPolicy:
        """Policy of the cache."""
        return self.policy

    def map_inner(self, change: Callable[[ContextPolicy], ContextPolicy]) -> ContextPolicy:
        """Return the policy with a changed inner policy."""
        return replace(self, policy=change(self.policy))

    @property
    def file_policy(self) -> ContextPolicy:
        """Policy whose name and fields a cache file has: the inner policy."""
        return self.policy.file_policy

    @property
    def prompt_reader(self) -> FlexPrefillPolicy:
        """`self`: the policy reads prompts by its own attention."""
        return self

    @property
    def longest_dense(self) -> int:
        """Largest number of tokens of a prompt that is read by dense attention."""
        return max(2 * self.block, self.block * math.ceil(self.min_budget / self.block))

    @property
    def allocates(self) -> bool:
        """True if the inner policy sets the budgets of layers."""
        return self.policy.allocates

    def allocate(self, stats: Sequence[LayerStats], shape: CacheShape) -> Sequence[int] | None:
        """Return the layer budgets of the inner policy."""
        return self.policy.allocate(stats, shape)

    def for_layer(self, index: int, count: int) -> ContextPolicy:
        """Return the policy of layer `index` of `count` layers with full attention."""
        return self.map_inner(lambda inner: inner.for_layer(index, count))

    def for_tokenizer(self, tokenize: Callable[[str], Sequence[int]]) -> ContextPolicy:
        """Return the policy with an inner policy for texts of a tokenizer."""
        return self.map_inner(lambda inner: inner.for_tokenizer(tokenize))

    def build(self) -> LayerMemory:
        """Return an empty memory of the inner policy for one layer."""
        return self.policy.build()

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the inner policy."""
        return self.policy.nbytes(tokens, shape, at_once)

    def read_prompt(
        self,
        query: Float[Tensor, "batch heads tokens width"],
        keys: Float[Tensor, "batch key_heads tokens width"],
        values: Float[Tensor, "batch key_heads tokens value_width"],
        valid: Bool[Tensor, "batch tokens"] | None,
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads tokens value_width"]:
        """Return the attention output of the first tokens of a text; that of padding is zero.

        A row with at most `longest_dense` tokens, and a layer with soft caps or learned sinks, reads them by
        dense attention.

        Args:
            query: Queries of the tokens.
            keys: Keys of the tokens.
            values: Values of the tokens.
            valid: True for tokens of the text, False for padding; None if there is no padding.
            scoring: The model's scale, soft cap and learned sinks.
        """
        scoring = replace(scoring, prompt_reader=None)
        if self.gamma == 1 or query.shape[2] <= self.longest_dense or not scoring.is_plain:
            return causal_attention(query, keys, values, valid, scoring)
        if valid is None:
            rows = zip(query, keys, values, strict=True)
            return torch.stack([self._read_row(*row, scoring) for row in rows])
        out = query.new_zeros(*query.shape[:3], values.shape[3])
        for row, own in enumerate(valid):
            ours, our_keys, our_values = (x[row][:, own] for x in (query, keys, values))
            out[row][:, own] = self._read_row(ours, our_keys, our_values, scoring)
        return out

    def _read_row(self, query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
        """Return the attention output of a text without padding, "heads tokens value_width"."""
        if query.shape[1] <= self.longest_dense:
            return causal_attention(query[None], keys[None], values[None], None, scoring)[0]
        blocks = self.choose(query, keys, scoring)
        return attend_to_blocks(query, keys, values, blocks, self.block, scoring.scale)

    def choose(
        self,
        query: Float[Tensor, "heads tokens width"],
        keys: Float[Tensor, "key_heads tokens width"],
        scoring: Scoring,
    ) -> Bool[Tensor, "heads rows columns"]:
        """Return which blocks of keys, "columns", each block of queries of a prompt reads, "rows"."""
        least = math.ceil(self.min_budget / self.block)
        return choose_blocks(query, keys, self.block, self.gamma, self.tau, least, scoring)
