"""Task-KV: heads that differ most from the others in meaning keep all tokens.

He et al. 2025 (arXiv 2501.15113, section 4): a head's semantic vector is the sum of the values of the `top`
tokens before the window, each times its mean attention weight over the last `window` queries. The center is
the mean over the heads of a layer. The heads farthest from the center keep all tokens, and so do the
`nearest` ones. The others keep sinks, recent tokens, and the tokens between them with the most attention.
The number of farthest heads falls linearly from the share `share` of the heads in the first layer to
`last_share` in the last one. It is rounded to the nearest number, and a half is rounded up.

The heads are key heads. The attention of a key head is the mean over its query heads. So the paper's number
m of heads in the last layer is a share here. The defaults are the paper's for Llama 2 7B (a share of .25, and
4 of 32 heads); for Mistral 7B it has .3 and 1 of 32.

The budget is the mean over the heads. Full heads keep all N tokens of the first prompt, so with n heads and f
full ones each other head keeps (n budget - N f) / (n - f) tokens. This number is rounded down, and the first
heads keep one of the remaining tokens each. So the heads of a layer together keep exactly n budgets. If less
than the sinks and the recent tokens remained for the others, fewer heads are full: first the nearest ones are
omitted, then the farthest. There may be none. At least one head of a layer is never full.

Full heads are chosen for each row of a batch in its first call with several tokens, and stay until the cache
is reset. Until then no head is full. Full heads also keep all later tokens. Each other head keeps the number
of tokens that it kept of the first prompt, or the budget if this prompt was shorter than the budget.

Differences from the paper: it publishes neither code nor the number of nearest heads, whose default here is
1. They count as full heads in the division of the budget. If a prompt has no tokens before the window,
semantic vectors use all tokens. Attention is pooled only to choose tokens, not in semantic vectors. Generated
tokens are compressed too.

Memory: after the first prompt the budget for each key head. Later tokens add to each full head without limit,
and up to `window - 1` tokens to each other head. Use it to summarize a long prompt, or for questions that
need all of it, with a budget of a large part of the prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.select import best
from scrubjay.memory.context.policies.base import (
    CacheShape,
    LayerMemory,
    Step,
    check_kernel,
    check_minimums,
)
from scrubjay.memory.context.policies.buffers import gather_columns
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.flat_table import RaggedTokens
from scrubjay.memory.context.policies.scored.base import Queries, ScoredMemory, ScoredPolicy, protect
from scrubjay.memory.context.policies.scored.snapkv import window_attention

_FULL = -1
_UNDECIDED = 0
_LIMIT_BYTES = 8


@dataclass(frozen=True)
class TaskKVPolicy(ScoredPolicy):
    """Keep all tokens in heads with unusual meaning, and the most attended tokens in the others."""

    num_sinks: int = 16
    """Number of first tokens that are always kept."""
    recent: int = 256
    """Number of last tokens that are always kept."""
    window: int = 32
    """Number of last queries whose attention is measured. In generation, tokens are evicted once for so many
    new tokens."""
    share: float = 0.25
    """Share of the key heads of the first layer that are full because they are far from the center."""
    last_share: float = 0.125
    """Share of the key heads of the last layer that are full because they are far from the center."""
    nearest: int = 1
    """Number of key heads of each layer that are full because they are near the center."""
    top: int = 256
    """Number of tokens in a head's semantic vector."""
    kernel: int = 7
    """Number of neighboring tokens over which attention is averaged; must be odd."""

    queries: ClassVar[Queries] = "window"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kernel(self.kernel)
        check_minimums(self, recent=self.window, nearest=0, top=1)
        for name in ("share", "last_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be from 0 to 1")
        if self.heads != "equal":
            raise ValueError(
                f"heads={self.heads!r}: must be 'equal', since the policy itself divides heads into two kinds"
            )
        if self.num_tokens < self._least:
            raise ValueError(
                f"budget={self.num_tokens}: must be at least {self._least}, for {self.num_sinks} sinks and "
                f"{self.recent} recent tokens; raise the budget, or lower num_sinks or recent"
            )

    @property
    def _least(self) -> int:
        return self.num_sinks + self.recent

    def for_layer(self, index: int, count: int) -> TaskKVPolicy:
        """Return the policy of layer `index` of `count` layers, whose two shares are equal."""
        share = self.share + (self.last_share - self.share) * index / max(count - 1, 1)
        return replace(self, share=share, last_share=share)

    def score(
        self, keys: Tensor, values: Tensor, queries: Tensor, *, scoring: Scoring, **_: object
    ) -> Tensor:
        """Return the attention that each token receives from the last tokens, means along the text."""
        attention = window_attention(keys, queries, scoring).mean(dim=(2, 3))
        # Safe tokens are masked before pooling, which would spread their weight to their neighbors.
        attention[..., : self.num_sinks] = attention[..., max(attention.shape[-1] - self.recent, 0) :] = 0
        means = functional.avg_pool1d(attention, self.kernel, stride=1, padding=self.kernel // 2)
        return protect(means, self.num_sinks, self.recent)

    def summarize(
        self,
        keys: Float[Tensor, "batch key_heads tokens width"],
        values: Float[Tensor, "batch key_heads tokens value_width"],
        queries: Float[Tensor, "batch heads queries width"],
        scoring: Scoring,
    ) -> Float[Tensor, "batch key_heads value_width"]:
        """Return the semantic vector of each key head; the last query belongs to the last token."""
        attention = window_attention(keys, queries, scoring).mean(dim=(2, 3))
        before = keys.shape[2] - self.window
        attention = attention[..., :before] if before > 0 else attention
        places = best(attention, self.top)
        weights = attention.gather(-1, places)[..., None]
        return (weights * gather_columns(values, places).to(weights.dtype)).sum(dim=2)

    def count_full(self, key_heads: int, tokens: int) -> tuple[int, int]:
        """Return how many heads of a layer are full because they are far from the center, and near to it.

        `key_heads` is the number of key heads of the layer. `tokens` is the number of tokens of the text.
        """
        farthest = math.floor(self.share * key_heads + 0.5)
        full = min(farthest + self.nearest, key_heads - 1)
        total = key_heads * self.num_tokens
        while full and total - full * tokens < (key_heads - full) * self._least:
            full -= 1
        return min(farthest, full), max(full - farthest, 0)

    def set_limits(self, distances: list[float], tokens: int) -> list[int]:
        """Return the largest number of tokens of each head; -1 for a full head.

        `distances` are those of the heads from the center. Of equally distant heads the first is chosen.
        `tokens` is the number of tokens of the text.
        """
        count = len(distances)
        farthest, nearest = self.count_full(count, tokens)
        order = sorted(range(count), key=lambda head: -distances[head])
        rest = sorted(order[farthest:], key=lambda head: (distances[head], head))
        full = {*order[:farthest], *rest[:nearest]}
        other_count = count - len(full)
        each, more = divmod(count * self.num_tokens - len(full) * max(tokens, self.num_tokens), other_count)
        places = [head for head in range(count) if head not in full]
        sizes = {head: each + (place < more) for place, head in enumerate(places)}
        return [sizes.get(head, _FULL) for head in range(count)]

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return TaskKVMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of keys, values, last queries, and of the lengths and limits of the heads.

        Tokens that are read one by one make no head full. Tokens that follow a prompt need more bytes: full
        heads keep all of them.
        """
        limits = shape.layers * shape.batch * shape.key_heads * _LIMIT_BYTES if tokens else 0
        return super().nbytes(tokens, shape, at_once) + limits


class TaskKVMemory(ScoredMemory):
    """Memory of one layer, in which some heads keep all tokens.

    State: that of `ScoredMemory`, and `limits`, the largest number of tokens of each head of each row. It is
    -1 for a full head, and 0 in a row without a prompt so far.
    """

    state_names = frozenset((*ScoredMemory.state_names, "limits"))

    def __init__(self, policy: TaskKVPolicy) -> None:
        super().__init__(policy)
        self._task = policy
        # The limits of the state as numbers, with the tensor from which they were read.
        self._limits: tuple[Tensor, list[list[int]]] | None = None

    @property
    def limits(self) -> list[list[int]]:
        """Largest number of tokens of each head of each row; -1 for a full head, 0 for the default."""
        tensor = self.state["limits"]
        if self._limits is None or self._limits[0] is not tensor:
            self._limits = tensor, tensor.tolist()
        return self._limits[1]

    def _store_limits(self, limits: list[list[int]], device: torch.device) -> None:
        tensor = torch.tensor(limits, device=device)
        self.state["limits"], self._limits = tensor, (tensor, limits)

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Append the new tokens, choose full heads in a first prompt, and evict tokens of the others."""
        new = RaggedTokens.from_columns(keys, values, step.time >= 0 if step.padded else None)
        tokens = new if (past := self.tokens) is None else past.append(new)
        self.store(tokens)
        self._store_queries(query, step)
        batch, groups = tokens.lengths.shape
        prompts = [step.length > 1] * batch
        if step.padded:
            prompts = step.compute_once("prompts", lambda: (step.after - step.before > 1).tolist())
        if "limits" not in self.state:
            self._store_limits([[_UNDECIDED] * groups for _ in range(batch)], keys.device)
        with torch.no_grad():
            self._choose_full_heads(tokens, query, prompts, step, scoring)
            counts = self._count_kept(tokens, prompts)
            if counts == tokens.sizes:
                return
            scores, _ = self._score(tokens, query, step, scoring)
        stays = torch.ones_like(scores, dtype=torch.bool)
        parts = zip(scores.split(tokens.sizes), stays.split(tokens.sizes), counts, strict=True)
        for own_scores, own_stays, count in parts:
            if count < len(own_scores):
                own_stays.fill_(False)[best(own_scores, count)] = True
        self.store(tokens.select(stays))

    def _choose_full_heads(
        self, tokens: RaggedTokens, query: Tensor, prompts: list[bool], step: Step, scoring: Scoring
    ) -> None:
        """Set the limits of rows that read their first prompt.

        Args:
            tokens: All tokens of the layer. The heads of a row without limits have equally many.
            query: Queries of the new tokens.
            prompts: True for rows with several new tokens.
            step: New tokens of this call.
            scoring: The model's scale, soft cap and learned sinks.
        """
        rows = [row for row, own in enumerate(self.limits) if prompts[row] and own[0] == _UNDECIDED]
        if not rows:
            return
        queries, counts = self._queries(query, step)
        groups, limits = tokens.lengths.shape[1], list(self.limits)
        width = tokens.values.shape[1] - self.num_marks
        for row in rows:
            size, first = tokens.sizes[row * groups], sum(tokens.sizes[: row * groups])
            part = slice(first, first + groups * size)
            number = queries.shape[2] if counts is None else int(counts[row])
            vectors = self._task.summarize(
                tokens.keys[part].detach().view(1, groups, size, -1),
                tokens.values[part, :width].detach().unflatten(0, (1, groups, size)),
                queries[row : row + 1, :, queries.shape[2] - number :],
                scoring,
            )
            limits[row] = self._task.set_limits(measure_distances(vectors)[0].tolist(), size)
        self._store_limits(limits, tokens.keys.device)

    def _count_kept(self, tokens: RaggedTokens, prompts: list[bool]) -> list[int]:
        """Return how many tokens each head of each row keeps.

        After a prompt, a head keeps as many as its limit. In generation, it evicts tokens when it exceeds the
        limit by `window`.
        """
        counts, groups = [], tokens.lengths.shape[1]
        for index, size in enumerate(tokens.sizes):
            row, head = divmod(index, groups)
            limit = self.limits[row][head]
            if limit == _UNDECIDED:
                limit = self.budget
            slack = 0 if prompts[row] else self.policy.window - 1
            is_whole = limit == _FULL or size <= limit + slack
            counts.append(size if is_whole else limit)
        return counts

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `rows`, in this order; indices may repeat."""
        super().reorder(rows)
        if "limits" in self.state:
            limits = self.state["limits"]
            self.state["limits"] = limits.index_select(0, rows.to(limits.device))
            self._limits = None  # it refers to the old tensor

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        if state:
            _check_limits(state, self._task)
        super().load_state_dict(state)
        self._limits = None


def measure_distances(
    vectors: Float[Tensor, "*batch key_heads width"],
) -> Float[Tensor, "*batch key_heads"]:
    """Return the distance of each head's vector from the mean over the heads.

    The distances follow from those between pairs of heads. So equally distant heads have equal results, as
    the only two heads of a layer do.
    """
    squares = (vectors.unsqueeze(-2) - vectors.unsqueeze(-3)).square().sum(dim=-1).mean(dim=-1)
    return (squares - squares.mean(dim=-1, keepdim=True) / 2).clamp(min=0).sqrt()


def _check_limits(state: dict[str, Tensor], policy: TaskKVPolicy) -> None:
    """Raise TypeError if the limits of a state are not those of a layer under the policy."""
    if "limits" not in state or "lengths" not in state:
        raise TypeError("a layer lacks the tensor 'limits' or 'lengths'")
    limits, lengths = state["limits"], state["lengths"]
    fits = limits.shape == lengths.shape and limits.dtype == torch.int64
    if fits:
        is_full, is_open = limits == _FULL, limits == _UNDECIDED
        fits = bool((is_full | is_open | ((limits >= policy._least) & (limits <= policy.num_tokens))).all())
        fits = fits and not bool(is_full.all(dim=1).any() | (is_open.any(dim=1) != is_open.all(dim=1)).any())
        most = torch.where(is_open, policy.num_tokens, limits) + policy.window - 1
        fits = fits and bool((is_full | (lengths <= most)).all())
    if not fits:
        raise TypeError(f"the limits {limits.flatten()[:9].tolist()} do not fit the policy and its tokens")
