"""SnapKV: keep the tokens of a prompt that its last tokens attend to.

Li et al. 2024 (arXiv 2404.14469, section 4): the cache first reads the whole prompt. Then every head keeps
the last `window` tokens and the tokens that receive the most attention from this window. The attention is
pooled along the text, so that neighboring tokens stay together. A question at the end of a prompt thus
selects the tokens to keep.

Beyond the paper, generated tokens are compressed in the same way, so that the cache is bounded. The first
tokens are always kept. Query heads that share a key head select together, so that the memory of evicted
tokens can be freed. Tokens keep their positions in the text, so the text must not be longer than the training
texts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.context.policies.base import (
    CacheShape,
    LayerMemory,
    LayerStats,
    Step,
    check_kernel,
    check_minimums,
    extend_valid,
)
from scrubjay.memory.context.policies.budget import BudgetPolicy
from scrubjay.memory.context.policies.buffers import compact, gather_columns, keep_best, rate_tokens
from scrubjay.memory.context.policies.dense import Scoring


@dataclass(frozen=True)
class SnapKVPolicy(BudgetPolicy):
    """Keep the last `window` tokens of a prompt and the earlier tokens that they attend to most."""

    budget: int | None = None
    """Number of prompt tokens to keep. Generation adds up to `window - 1` tokens before it evicts tokens.
    Default: the model's window, at most 8,192."""
    window: int = 32
    """Number of last tokens whose queries select the tokens to keep. These last tokens are always kept."""
    kernel: int = 15
    """Number of neighboring tokens over which attention is averaged (average pooling); must be odd.

    The SnapKV paper uses 5 and 7. With these values, a seven-digit number loses half of its digits if each
    digit is a token."""
    num_sinks: int = 4
    """Number of first tokens that are always kept."""

    split_invariant: ClassVar[bool] = False
    query_aware: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_minimums(self, window=1, num_sinks=0)
        check_kernel(self.kernel)
        if self.num_tokens < self.window + self.num_sinks:
            raise ValueError(
                f"budget={self.num_tokens}: must be at least {self.window + self.num_sinks}, for the last "
                f"{self.window} tokens (window) and {self.num_sinks} sinks"
            )

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return SnapKVMemory(self)

    def prefer(self, weights: Float[Tensor, "batch heads window columns"]) -> Float[Tensor, " batch"]:
        """Return the layer's weight in the split of a joint budget, for each batch row; by default 1.

        `weights` are the attention weights of the last `window` queries. In a row with fewer queries, the
        missing queries have zero weights.
        """
        return weights.new_ones(len(weights))

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the cache and of the last `window` queries."""
        columns = min(tokens, self.num_tokens)
        if not at_once and tokens >= self.num_tokens:
            columns += (tokens - self.num_tokens) % self.window
        queries = shape.layers * shape.batch * shape.heads * shape.key_width * shape.itemsize
        return columns * shape.token_bytes + min(tokens, self.window) * queries


class SnapKVMemory(LayerMemory):
    """Memory of one layer.

    State: `keys`, `values` and the last `queries`. If rows have different token counts, shorter rows start
    with unused entries, and the mask `valid` is False for these entries.
    """

    state_names = frozenset(("keys", "values", "queries"))

    def __init__(self, policy: SnapKVPolicy) -> None:
        super().__init__()
        self.policy, self.budget = policy, policy.num_tokens
        self._pending: _PendingPrompt | None = None

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Append the new tokens. After a prompt, evict the tokens that exceed the budget.

        If the policy allocates layer budgets, the tokens stay until the budget of the layer is final.
        Generated tokens cause an eviction only if the cache exceeds the budget by `window` tokens.
        """
        valid = self._append(query, keys, values, step)
        is_deferred = step.length > 1 and self.policy.allocates
        if not is_deferred and not self._any_full(valid, step):
            return
        columns = self.state["keys"].shape[2]
        count = step.after.new_full((len(keys),), columns) if valid is None else valid.sum(dim=1)
        weights = self._weights(count, step, scoring)
        preference = float(self.policy.prefer(weights.flatten(1, 2)).mean()) if is_deferred else 1.0
        attention, policy = weights.sum(dim=(2, 3)), self.policy
        worth = rate_tokens(
            attention, count, policy.num_sinks, policy.window, functional.avg_pool1d, policy.kernel
        )
        self._pending = _PendingPrompt(
            worth, count, step.after - step.before > 1, LayerStats(columns, preference)
        )
        if not is_deferred:
            self.settle()

    def measure(self) -> LayerStats:
        """Return the prompt's token count, and this layer's weight in the split of a joint budget."""
        assert self._pending is not None
        return self._pending.stats

    def shrink(self, budget: int) -> None:
        """Reduce the budget to `budget` tokens.

        Before `settle` is called, this also evicts tokens of the prompt that the layer has just read.
        """
        # The policy validates the budget.
        self.budget = replace(self.policy, budget=budget).num_tokens
        if self._pending is None:
            return
        valid, columns = self.state.get("valid"), self.state["keys"].shape[2]
        full = self._full(self._pending.count, self._pending.prompt)
        counts = self._pending.count.clamp(max=columns) if valid is None else valid.sum(dim=1)
        new_counts = torch.where(full, budget, counts).minimum(counts)
        if bool((new_counts == counts).all()):
            return
        most = int(new_counts.max())
        best = keep_best(self._pending.worth, new_counts, most)
        self.state |= {name: gather_columns(self.state[name], best) for name in ("keys", "values")}
        is_filled = torch.arange(most, device=new_counts.device) >= most - new_counts[:, None]
        if valid is not None:
            self.state["valid"] = is_filled
        worth = self._pending.worth.gather(2, best).masked_fill(~is_filled[:, None], float("-inf"))
        self._pending = self._pending._replace(worth=worth)

    def settle(self) -> None:
        """Evict the prompt tokens that exceed the budget, and free the scores of the prompt tokens."""
        if self._pending is not None:
            self.shrink(self.budget)
            self._pending = None

    def _any_full(self, valid: Tensor | None, step: Step) -> bool:
        columns = self.state["keys"].shape[2]
        if valid is None:
            return columns > self.budget and (step.length > 1 or columns >= self.budget + self.policy.window)
        return step.compute_once(
            f"any full {columns}",
            lambda: bool(self._full(valid.sum(dim=1), step.after - step.before > 1).any()),
        )

    def _full(self, count: Int[Tensor, " batch"], prompt: Bool[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Return a mask of the batch rows in which tokens must be evicted.

        After a prompt, these rows exceed the budget. In generation, they exceed it by `window` tokens.
        """
        return (count >= self.budget + self.policy.window) | (prompt & (count > self.budget))

    def _append(self, query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor | None:
        """Append new tokens, and move each row's padding to the front; return the mask of valid tokens."""
        window = self.policy.window
        new = {"keys": keys, "values": values, "queries": query}
        valid, past = self.state.get("valid"), self.state
        if past and valid is None and not step.padded and step.length < window:
            # Only the last queries are copied.
            past = past | {"queries": past["queries"][:, :, -(window - step.length) :]}
        if past:
            new = {name: torch.cat([past[name], tensor], dim=2) for name, tensor in new.items()}
        if valid is None and not step.padded:
            new["queries"] = new["queries"][:, :, -window:]
            self.state = {name: compact(tensor) for name, tensor in new.items()}
            return None
        past_columns, past_queries = (new[name].shape[2] - step.length for name in ("keys", "queries"))
        own = step.time >= 0
        valid = extend_valid(valid, past_columns, step)
        column = torch.arange(past_queries, device=own.device)
        valid_queries = torch.cat(
            [column >= past_queries - step.before.clamp(max=window)[:, None], own], dim=1
        )
        for name, is_valid in (("keys", valid), ("values", valid), ("queries", valid_queries)):
            order = is_valid.byte().argsort(dim=1, stable=True)[:, None].expand(-1, new[name].shape[1], -1)
            new[name] = gather_columns(new[name], order)
        most = int(valid.sum(dim=1).max())
        new = {name: tensor[:, :, -(window if name == "queries" else most) :] for name, tensor in new.items()}
        valid = valid.sort(dim=1).values[:, -most:]
        self.state = {name: compact(tensor) for name, tensor in (new | {"valid": valid}).items()}
        return valid

    def _weights(
        self, count: Int[Tensor, " batch"], step: Step, scoring: Scoring
    ) -> Float[Tensor, "batch key_heads shared window columns"]:
        """Return the attention weights of the last `window` queries; zeros for queries that a row lacks."""
        query, keys = self.state["queries"], self.state["keys"]
        batch, _, num_queries, width = query.shape
        groups, columns = keys.shape[1:3]
        slot = torch.arange(columns, device=keys.device) - columns + count[:, None]
        row = torch.arange(num_queries, device=keys.device)
        grouped_query = query.detach().reshape(batch, groups, -1, width)
        products = (grouped_query @ keys.detach().mT).unflatten(2, (-1, num_queries))
        later = torch.arange(columns, device=keys.device) > columns - num_queries + row[:, None]
        hidden = later | (slot < 0)[:, None]
        valid_queries = row >= num_queries - step.after.clamp(max=num_queries)[:, None]
        return (
            scoring.compute_weights(products, hidden[:, None, None]) * valid_queries[:, None, None, :, None]
        )


class _PendingPrompt(NamedTuple):
    """Scores and token counts of a prompt, kept until the token budget of the layer is final."""

    worth: Float[Tensor, "batch key_heads columns"]
    count: Int[Tensor, " batch"]
    """Number of tokens of each row before eviction."""
    prompt: Bool[Tensor, " batch"]
    """True for rows with several tokens in this call."""
    stats: LayerStats
