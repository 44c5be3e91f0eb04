"""Base class of policies that keep the tokens with the highest scores. A policy writes one method, `score`.

The memory scores its tokens after each call with several tokens. In generation it scores them when it exceeds
the budget by `window` tokens. Then it evicts the tokens with the lowest scores. The first `num_sinks` and the
last `window` tokens are always kept.

By default every head keeps equally many tokens. With `heads="adaptive"` the heads of a layer share one budget
(AdaKV, Feng et al. 2024, arXiv 2407.11550): a head with concentrated scores keeps fewer tokens. The memory of
evicted tokens is freed in both cases. With `exact_bytes = False`, a score of minus infinity evicts a token of
a prompt also within the budget. A text read in several calls may keep other tokens than in one call.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.memory.context.policies.base import (
    CacheShape,
    LayerMemory,
    LayerStats,
    PastKeyValues,
    RetainedValues,
    Step,
    check_minimums,
)
from scrubjay.memory.context.policies.budget import BudgetPolicy
from scrubjay.memory.context.policies.buffers import compact, mark_best, move_to_end
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.flat_table import RaggedTokens, attend_ragged
from scrubjay.memory.context.policies.rotary import Rotary
from scrubjay.memory.context.policies.slots import rotate_to_origin

Queries = Literal["none", "window", "call"]
Heads = Literal["equal", "adaptive"]

_LENGTH_BYTES = 8


@dataclass(frozen=True)
class ScoredPolicy(BudgetPolicy):
    """Keep the tokens with the highest scores. Subclasses implement `score`."""

    budget: int | None = None
    """Number of prompt tokens to keep, as the mean over the heads. Generation adds up to `window - 1` tokens
    before it evicts tokens. Default: the model's window, at most 8,192."""
    window: int = 32
    """Number of last tokens that are always kept."""
    num_sinks: int = 4
    """Number of first tokens that are always kept."""
    heads: Heads = "equal"
    """Split of a layer's budget among its key heads: equal, or adaptive to their scores."""
    safeguard: float = 0.2
    """Share of its equal budget that every head keeps at least, if `heads` is adaptive."""

    split_invariant: ClassVar[bool] = False
    query_aware: ClassVar[bool] = True
    reads_whole: ClassVar[bool] = True
    queries: ClassVar[Queries] = "none"
    """Queries that `score` receives: none, those of the last `window` tokens, or those of all tokens of the
    call (in generation those of the last `window` tokens)."""
    rotates_queries: ClassVar[bool] = True
    """False if `score` receives queries without their rotary positions, with interleaved pairs.

    The class then needs `reads_rotary = True`."""
    exact_bytes: ClassVar[bool] = True
    """False if a score of minus infinity evicts a token, also within the budget.

    Every prompt is then scored. The budget is an upper bound, and so is the result of `nbytes`."""

    def __post_init__(self) -> None:
        check_minimums(self, window=1, num_sinks=0)
        if self.heads not in ("equal", "adaptive"):
            raise ValueError(f"heads={self.heads!r}: must be 'equal' or 'adaptive'")
        if not 0 <= self.safeguard <= 1:
            raise ValueError(f"safeguard={self.safeguard}: must be from 0 to 1")
        if self.num_tokens < self.window + self.num_sinks:
            raise ValueError(
                f"budget={self.num_tokens}: must be at least {self.window + self.num_sinks}, for the last "
                f"{self.window} tokens (window) and {self.num_sinks} sinks"
            )

    @abstractmethod
    def score(
        self,
        keys: Float[Tensor, "batch key_heads tokens width"],
        values: Float[Tensor, "batch key_heads tokens value_width"],
        queries: Float[Tensor, "batch heads queries width"],
        *,
        module: nn.Module,
        hidden: Float[Tensor, "batch new dim"] | None,
        scoring: Scoring,
        rotary: Rotary | None,
        position: int,
    ) -> Float[Tensor, "batch key_heads tokens"]:
        """Return a score for each token of each key head. Tokens with low scores are evicted.

        There is no padding. Rows with different numbers of tokens are passed one by one, and so are key heads
        once they have different numbers of tokens; `heads` is then the number of query heads of one key head.
        The last query belongs to the last token. An override may omit keyword arguments that it does not use.

        Args:
            keys: Keys of the tokens, in the order of the text.
            values: Values of the tokens.
            queries: Queries that the class variable `queries` selects; without queries if it is "none".
            module: The attention layer of the model.
            hidden: Inputs of the attention layer for the new tokens; None unless `reads_hidden` is set.
            scoring: The model's scale, soft cap and learned sinks.
            rotary: The model's rotary positions; None unless `reads_rotary` is set.
            position: Position of the next token.
        """

    def measure(
        self,
        keys: Float[Tensor, "batch key_heads tokens width"],
        queries: Float[Tensor, "batch heads queries width"],
        scoring: Scoring,
    ) -> Float[Tensor, " batch"]:
        """Return the layer's weight in the split of a joint budget (`allocate`); by default 1.

        Args:
            keys: Keys of the tokens.
            queries: Queries that the class variable `queries` selects.
            scoring: The model's scale, soft cap and learned sinks.
        """
        return keys.new_ones(len(keys))

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return ScoredMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the keys and values, of the lengths of the heads, and of the last queries.

        Without `exact_bytes` this is an upper bound.
        """
        columns = min(tokens, self.num_tokens)
        if not at_once and not self.exact_bytes:
            # A head may evict more than the budget demands, and so exceed the budget at any time.
            columns = min(tokens, self.num_tokens + self.window - 1)
        elif not at_once and tokens >= self.num_tokens:
            columns += (tokens - self.num_tokens) % self.window
        rows = shape.layers * shape.batch
        queries = 0 if self.queries == "none" else min(tokens, self.window) * shape.heads * shape.key_width
        lengths = rows * shape.key_heads * _LENGTH_BYTES if tokens else 0
        return columns * shape.token_bytes + lengths + rows * queries * shape.itemsize


class _Pending(NamedTuple):
    """Scores of a prompt, kept until the budget of the layer is final."""

    scores: Float[Tensor, " tokens"]
    totals: list[int]
    """Number of tokens of each batch row before eviction, as the sum over the heads."""
    prompts: list[bool]
    """True for rows with several tokens in this call."""
    stats: LayerStats


class ScoredMemory(LayerMemory):
    """Memory of one layer, which evicts the tokens with the lowest scores."""

    state_names = frozenset(("flat_keys", "flat_values", "lengths"))

    def __init__(self, policy: ScoredPolicy) -> None:
        super().__init__()
        self.policy, self.budget = policy, policy.num_tokens
        self._pending: _Pending | None = None
        # The tokens of the state, with sizes that need no read of a tensor.
        self._tokens: RaggedTokens | None = None

    @property
    def tokens(self) -> RaggedTokens | None:
        """Retained tokens; None before the first token."""
        if "lengths" not in self.state:
            return None
        if self._tokens is None or self._tokens.lengths is not self.state["lengths"]:
            self._tokens = RaggedTokens(
                self.state["flat_keys"], self.state["flat_values"], self.state["lengths"]
            )
        return self._tokens

    def store(self, tokens: RaggedTokens) -> None:
        """Replace the retained tokens."""
        sizes = tokens.sizes
        tokens = RaggedTokens(compact(tokens.keys), compact(tokens.values), compact(tokens.lengths))
        vars(tokens)["sizes"] = sizes
        self.state |= {"flat_keys": tokens.keys, "flat_values": tokens.values, "lengths": tokens.lengths}
        self._tokens = tokens

    def retrieve(self, query: Tensor, step: Step, scoring: Scoring) -> PastKeyValues | None:
        """Return None: `generate` reads the table of tokens itself."""
        return None

    def generate(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        past: PastKeyValues | None,
        step: Step,
        scoring: Scoring,
    ) -> Tensor:
        """Return the attention output of new tokens over the retained tokens and over each other."""
        return attend_ragged(query, keys, values, self.tokens, _valid(step), scoring)

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Append the new tokens, and evict tokens where the budget is exceeded.

        If the policy allocates layer budgets, the tokens of a prompt stay until the budget of the layer is
        final.
        """
        new = RaggedTokens.from_columns(keys, values, _valid(step))
        tokens = new if (past := self.tokens) is None else past.append(new)
        self.store(tokens)
        if not self.policy.rotates_queries:
            query = rotate_to_origin(query, step)
        if self.policy.queries != "none":
            self._store_queries(query, step)
        is_deferred, prompts = step.length > 1 and self.policy.allocates, find_prompts(step)
        full = self.find_full(tokens.totals, prompts, tokens.lengths.shape[1])
        is_scored = is_deferred or (not self.policy.exact_bytes and any(prompts))
        if not is_scored and not any(full):
            return
        with torch.no_grad():
            scores, preference = self._score(tokens, query, step, scoring)
        self.evict(scores, prompts, preference if is_deferred else None)

    def evict(
        self, scores: Float[Tensor, " tokens"], prompts: list[bool], preference: float | None = None
    ) -> None:
        """Evict the tokens with the lowest scores where the budget is exceeded.

        `prompts` is the result of `find_prompts`. With a `preference`, the layer's weight in the split of a
        joint budget, the tokens stay until `settle` is called.
        """
        tokens = self.tokens
        assert tokens is not None
        stats = LayerStats(tokens.longest, 1.0 if preference is None else preference)
        self._pending = _Pending(scores, tokens.totals, prompts, stats)
        if preference is None:
            self.settle()

    def find_full(self, totals: list[int], prompts: list[bool], groups: int) -> list[bool]:
        """Return for each batch row whether tokens must be evicted.

        After a prompt, these rows exceed the budget. In generation, they exceed it by more than `window - 1`
        tokens.
        """
        limit, more = self.budget * groups, (self.policy.window - 1) * groups
        return [
            total > (limit if prompt else limit + more) for total, prompt in zip(totals, prompts, strict=True)
        ]

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
        tokens = self.tokens
        if self._pending is None or tokens is None:
            return
        groups = tokens.lengths.shape[1]
        full = self.find_full(self._pending.totals, self._pending.prompts, groups)
        pairs = zip(tokens.totals, full, strict=True)
        most = [min(total, budget * groups) if is_full else total for total, is_full in pairs]
        if most == tokens.totals and self.policy.exact_bytes:
            return
        stays = self._choose(tokens, self._pending.scores, torch.tensor(most, device=tokens.keys.device))
        if not self.policy.exact_bytes:
            has_scores = [one or other for one, other in zip(full, self._pending.prompts, strict=True)]
            rows = torch.tensor(has_scores, device=tokens.keys.device)[:, None, None].expand_as(tokens.valid)
            stays &= ~rows[tokens.valid] | (self._pending.scores > float("-inf"))
        self.keep(stays)
        self._pending = self._pending._replace(scores=self._pending.scores[stays])

    def settle(self) -> None:
        """Evict the prompt tokens that exceed the budget, and free the scores of the prompt tokens."""
        if self._pending is not None:
            self.shrink(self.budget)
            self._pending = None

    def _choose(
        self, tokens: RaggedTokens, scores: Float[Tensor, " tokens"], totals: Int[Tensor, " batch"]
    ) -> Bool[Tensor, " tokens"]:
        """Return a mask of the tokens to keep, `totals[i]` in row i. Equal scores: earlier tokens win."""
        valid, lengths = tokens.valid, tokens.lengths
        batch, groups, longest = valid.shape
        table = tokens.pad(scores).masked_fill(~valid, float("-inf"))
        if self.policy.heads == "equal":
            # Heads may differ in length. A row that keeps all its tokens then needs no equal share.
            is_whole = totals >= lengths.sum(dim=1)
            counts = torch.where(is_whole, longest, totals // groups)[:, None].expand(batch, groups)
            return mark_best(table, counts)[valid]
        counts = (self.budget * self.policy.safeguard * torch.ones_like(lengths)).long().minimum(lengths)
        safe = mark_best(table, counts) & (table > float("-inf"))
        table = table.masked_fill(safe, float("inf")).flatten(1)
        return mark_best(table, totals).view(batch, groups, longest)[valid]

    def _score(
        self, tokens: RaggedTokens, query: Tensor, step: Step, scoring: Scoring
    ) -> tuple[Float[Tensor, " tokens"], float]:
        """Return the score of each token, infinity for safe ones, and the layer's weight."""
        policy, groups = self.policy, tokens.lengths.shape[1]
        keys, values = tokens.keys.detach(), tokens.values.detach()
        shared = query.shape[1] // groups
        queries, counts = self._queries(query, step)
        parts, preferences = [], []
        if tokens.is_uniform and counts is None:
            table = (tokens.pad(keys), tokens.pad(values))
            scores = self.call_score(*table, queries, step, scoring)
            scores = protect(scores, policy.num_sinks, policy.window)
            return scores.flatten(), float(policy.measure(table[0], queries, scoring).mean())
        for row, sizes in enumerate(tokens.lengths.tolist()):
            if not any(sizes):  # only padding so far
                continue
            number = queries.shape[2] if counts is None else int(counts[row])
            own = queries[row : row + 1, :, queries.shape[2] - number :]
            first = sum(tokens.sizes[: row * groups])
            row_keys, row_values = (x[first : first + sum(sizes)] for x in (keys, values))
            if len(set(sizes)) == 1:
                table = tuple(x.view(1, groups, sizes[0], -1) for x in (row_keys, row_values))
                calls = [(table[0], table[1], own, scoring)]
            else:
                table = (row_keys.split(sizes), row_values.split(sizes), own.split(shared, dim=1))
                heads = zip(*table, scoring.split(groups), strict=True)
                calls = [(k[None, None], v[None, None], q, one) for k, v, q, one in heads]
            for table_keys, table_values, head_queries, own_scoring in calls:
                scores = self.call_score(table_keys, table_values, head_queries, step, own_scoring, row)
                parts.append(protect(scores, policy.num_sinks, policy.window).flatten())
                preferences.append(policy.measure(table_keys, head_queries, own_scoring))
        return torch.cat(parts), float(torch.cat(preferences).mean())

    def call_score(
        self,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        step: Step,
        scoring: Scoring,
        row: int | None = None,
        **more: Any,
    ) -> Float[Tensor, "batch key_heads tokens"]:
        """Return the policy's scores, called with the keyword arguments that its method accepts.

        Args:
            keys: Keys for `score`.
            values: Values for `score`.
            queries: Queries for `score`.
            step: New tokens of this call.
            scoring: The model's scale, soft cap and learned sinks, and the attention layer.
            row: The batch row; None for all rows.
            more: Further keyword arguments for `score`.
        """
        policy, hidden = self.policy, scoring.hidden
        if policy.reads_hidden and hidden is None:
            raise ValueError(
                f"{type(policy).__name__} reads the inputs of the attention layers (reads_hidden=True), but "
                f"{type(scoring.module).__name__} does not pass them; use a policy that does not need them"
            )
        if hidden is not None and row is not None:
            hidden = hidden[row : row + 1, step.time[row] >= 0]
        position = step.position_ids[min(row or 0, len(step.position_ids) - 1), -1]
        options: dict[str, Any] = {
            "module": scoring.module,
            "hidden": hidden,
            "scoring": scoring,
            "rotary": step.rotary if policy.reads_rotary else None,
            "position": int(position) + 1,
            **more,
        }
        names = inspect.signature(policy.score).parameters
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in names.values()):
            options = {name: value for name, value in options.items() if name in names}
        values = values[..., : values.shape[-1] - self.num_marks]
        scores = policy.score(keys.detach(), values.detach(), queries.detach(), **options)
        repetition = more.get("repetition")
        count = keys.shape[2] if repetition is None else repetition.tokens.stop - repetition.tokens.start
        if scores.shape != (*keys.shape[:2], count):
            raise ValueError(
                f"{type(policy).__name__}.score returned the shape {tuple(scores.shape)}; expected "
                f"{(*keys.shape[:2], count)}, one score for each key head and token"
            )
        return scores.float()

    def _queries(self, query: Tensor, step: Step) -> tuple[Tensor, Int[Tensor, " batch"] | None]:
        """Return the queries for `score`, the last ones of each row at the end, and their number in each row.

        The number is None if all rows have equally many queries.
        """
        if self.policy.queries == "none":
            return query[:, :, :0].detach(), None
        if self.policy.queries == "call" and step.length > 1:
            if not step.padded:
                return query.detach(), None
            return move_to_end(query.detach(), step.time >= 0), (step.time >= 0).sum(dim=1)
        queries = self.state["queries"].detach()
        return queries, step.after.clamp(max=queries.shape[2]) if step.padded else None

    def _store_queries(self, query: Tensor, step: Step) -> None:
        window, past = self.policy.window, self.state.get("queries")
        if past is not None:
            query = torch.cat([past, query], dim=2)
        if step.padded:
            count = query.shape[2] - step.length
            column = torch.arange(count, device=query.device)
            own = column >= count - step.before.clamp(max=window)[:, None]
            query = move_to_end(query, torch.cat([own, step.time >= 0], dim=1))
        self.state["queries"] = compact(query[:, :, -window:])

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        if "lengths" in state and self.policy.queries != "none" and "queries" not in state:
            raise TypeError("a layer lacks the tensor 'queries'")
        super().load_state_dict(state)

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens of every row, if no token was evicted and no queries are stored.

        Raises:
            ValueError: If the earlier state cannot be restored.
        """
        tokens = self.tokens
        if self.policy.queries != "none":
            return super().crop(columns, count)
        if tokens is None or bool((tokens.lengths < count[:, None].to(tokens.lengths.device)).any()):
            raise ValueError(
                f"crop: {type(self.policy).__name__} has evicted tokens that the shorter text may need; "
                "save the cache before you add tokens, and load it instead of cropping"
            )
        left = (count - columns).clamp(min=0).to(tokens.lengths.device)
        column = torch.arange(tokens.longest, device=left.device)
        self.keep((column < left[:, None, None]).expand_as(tokens.valid)[tokens.valid])
        if not bool(left.any()):
            self.state = {}
        return None

    def keep(self, stays: Bool[Tensor, " tokens"]) -> None:
        """Evict the tokens that are False in `stays`."""
        tokens = self.tokens
        assert tokens is not None
        self.store(tokens.select(stays))

    def get_retained_values(self, count: Int[Tensor, " batch"]) -> RetainedValues | None:
        """Return the retained attention values, all of which the last token has read."""
        tokens = self.tokens
        return None if tokens is None else RetainedValues(tokens.pad(tokens.values))

    def count_retained(self, count: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return the smallest number of tokens of each text that a key head retains."""
        tokens = self.tokens
        return count if tokens is None else tokens.lengths.amin(dim=1).to(count.device)

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `rows`, in this order; indices may repeat."""
        tokens = self.tokens
        if tokens is None:
            return
        if (queries := self.state.get("queries")) is not None:
            self.state["queries"] = queries.index_select(0, rows.to(queries.device))
        self.store(tokens.reorder(rows))

    def get_tensors(self, place: str | None = None) -> Iterator[Tensor]:
        """Yield all tensors in the memory of the model's device; nothing is offloaded."""
        pending = [self._pending.scores] if self._pending else []
        return iter(() if place else (*self.state.values(), *pending))


def _valid(step: Step) -> Bool[Tensor, "batch length"] | None:
    return step.time >= 0 if step.padded else None


def find_prompts(step: Step) -> list[bool]:
    """Return for each batch row whether the step has several tokens of it."""
    if not step.padded:
        return [step.length > 1] * len(step.time)
    return step.compute_once("prompts", lambda: (step.after - step.before > 1).tolist())


def protect(
    scores: Float[Tensor, "*batch tokens"], num_sinks: int, window: int
) -> Float[Tensor, "*batch tokens"]:
    """Return the scores with infinity for the first `num_sinks` and the last `window` tokens."""
    scores = scores.clone()
    scores[..., :num_sinks] = scores[..., max(scores.shape[-1] - window, 0) :] = float("inf")
    return scores
