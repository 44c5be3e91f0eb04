"""SnapKV: of a prompt, keep what its last tokens attend to.

Li et al. 2024 (arXiv 2404.14469, section 4): a prompt is read in full; then every head keeps its last
`window` tokens and those that these attended to most, after a pooling along the text that keeps neighbours
together. So a question at the end of a prompt chooses what of the text is kept. Beyond the paper: what is
generated is compressed in the same way as it piles up, so that the cache is bounded; the first tokens are
always kept; and query heads that share a key head choose together, so that what is dropped is freed.
Positions are those of the text, which therefore must not be longer than the texts of training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.context.parts.eviction import keep_best, take
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerMemory, LayerStats, Step


@dataclass(frozen=True)
class SnapKVPolicy(ContextPolicy):
    """Keep the last `window` tokens of a prompt, and of those before what they attend to."""

    budget: int = 1024
    """Tokens kept of a prompt; what is generated adds up to `window - 1` more before it is compressed."""
    window: int = 32
    """Last tokens, which choose and are kept."""
    kernel: int = 15
    """Width of the pooling along the text, an odd number. The paper's 5 or 7 keep half a number of seven
    digits where each is a token."""
    num_sinks: int = 4
    """First tokens, which are kept."""

    any_cut: ClassVar[bool] = False
    chooses_by_end: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("window", 1), ("num_sinks", 0), ("kernel", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: must be odd, so that a pooled score stays at its token")
        if self.budget < self.window + self.num_sinks:
            raise ValueError(
                f"budget={self.budget}: must be at least {self.window + self.num_sinks}, the window of "
                f"{self.window} and {self.num_sinks} sinks"
            )

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return SnapKVMemory(self)

    def prefer(self, weights: Float[Tensor, "batch heads window columns"]) -> Float[Tensor, " batch"]:
        """Return a layer's preference in each row, by what the window attends to, for `allocate`: all alike.

        Where a row has not so many queries yet, those before its first attend to nothing.
        """
        return weights.new_ones(len(weights))

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of what is kept, and of the queries of the window."""
        kept = min(tokens, self.budget)
        if not at_once and tokens >= self.budget:
            kept += (tokens - self.budget) % self.window
        queries = shape.layers * shape.batch * shape.heads * shape.key_width * shape.itemsize
        return kept * shape.token_bytes + min(tokens, self.window) * queries


class SnapKVMemory(LayerMemory):
    """State: `keys`, `values`, the last `queries`.

    Where rows differ, also `valid`, and what they have comes last.
    """

    def __init__(self, policy: SnapKVPolicy) -> None:
        super().__init__()
        self.policy, self.budget = policy, policy.budget
        self._read: _Read | None = None

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Append; after a prompt, or when enough was generated, keep what the window attends to.

        A prompt of a policy that allocates waits for its budget.
        """
        valid = self._append(query, keys, values, step)
        waits = step.length > 1 and self.policy.allocates
        if not waits and not self._any_full(valid, step):
            return
        columns = self.state["keys"].shape[2]
        count = step.after.new_full((len(keys),), columns) if valid is None else valid.sum(dim=1)
        weights = self._weights(count, step, scoring)
        preference = float(self.policy.prefer(weights.flatten(1, 2)).mean()) if waits else 1.0
        worth = self._worth(weights.sum(dim=(2, 3)), count)
        self._read = _Read(worth, count, step.after - step.before > 1, LayerStats(columns, preference))
        if not waits:
            self.settle()

    def measured(self) -> LayerStats:
        """Return what is held of the prompt, and what the policy makes of the window's attention."""
        assert self._read is not None
        return self._read.stats

    def shrink(self, budget: int) -> None:
        """Keep `budget` tokens from now on, of the prompt just read as well."""
        # Which says what is wrong with it.
        self.budget = replace(self.policy, budget=budget).budget
        if self._read is None:
            return
        valid, columns = self.state.get("valid"), self.state["keys"].shape[2]
        full = self._full(self._read.count, self._read.prompt)
        held = self._read.count.clamp(max=columns) if valid is None else valid.sum(dim=1)
        kept = torch.where(full, budget, held).minimum(held)
        if bool((kept == held).all()):
            return
        most = int(kept.max())
        best = keep_best(self._read.worth, kept, most)
        self.state |= {name: take(self.state[name], best) for name in ("keys", "values")}
        known = torch.arange(most, device=kept.device) >= most - kept[:, None]
        if valid is not None:
            self.state["valid"] = known
        worth = self._read.worth.gather(2, best).masked_fill(~known[:, None], float("-inf"))
        self._read = self._read._replace(worth=worth)

    def settle(self) -> None:
        """Keep no more of the prompt than the budget, and forget what its tokens are worth."""
        if self._read is not None:
            self.shrink(self.budget)
            self._read = None

    def _any_full(self, valid: Tensor | None, step: Step) -> bool:
        columns = self.state["keys"].shape[2]
        if valid is None:
            return columns > self.budget and (step.length > 1 or columns >= self.budget + self.policy.window)
        return step.once(
            f"any full {columns}",
            lambda: bool(self._full(valid.sum(dim=1), step.after - step.before > 1).any()),
        )

    def _full(self, count: Int[Tensor, " batch"], prompt: Bool[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Return which rows have more than they may: at once after a prompt, else a window more."""
        return (count >= self.budget + self.policy.window) | (prompt & (count > self.budget))

    def _append(self, query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor | None:
        """Put new tokens at the end, a row's padding before all it has; return what is none."""
        window = self.policy.window
        new = {"keys": keys, "values": values, "queries": query}
        if self.state:
            new = {name: torch.cat([self.state[name], tensor], dim=2) for name, tensor in new.items()}
        valid = self.state.get("valid")
        if valid is None and not step.padded:
            new["queries"] = new["queries"][:, :, -window:]
            self.state = new
            return None
        held, asked = (new[name].shape[2] - step.length for name in ("keys", "queries"))
        own = step.time >= 0
        if valid is None:
            valid = own.new_ones(len(own), held)
        valid = torch.cat([valid, own], dim=1)
        column = torch.arange(asked, device=own.device)
        was_asked = torch.cat([column >= asked - step.before.clamp(max=window)[:, None], own], dim=1)
        for name, known in (("keys", valid), ("values", valid), ("queries", was_asked)):
            order = known.byte().argsort(dim=1, stable=True)[:, None].expand(-1, new[name].shape[1], -1)
            new[name] = take(new[name], order)
        most = int(valid.sum(dim=1).max())
        new = {name: tensor[:, :, -(window if name == "queries" else most) :] for name, tensor in new.items()}
        valid = valid.sort(dim=1).values[:, -most:]
        self.state = new | {"valid": valid}
        return valid

    def _weights(
        self, count: Int[Tensor, " batch"], step: Step, scoring: Scoring
    ) -> Float[Tensor, "batch key_heads shared window columns"]:
        """Return what the window attends to; nothing for what of it a row has not asked."""
        query, keys = self.state["queries"], self.state["keys"]
        batch, _, asked, width = query.shape
        groups, columns = keys.shape[1:3]
        slot = torch.arange(columns, device=keys.device) - columns + count[:, None]
        row = torch.arange(asked, device=keys.device)
        grouped = query.detach().reshape(batch, groups, -1, width)
        products = (grouped @ keys.detach().mT).unflatten(2, (-1, asked))
        later = torch.arange(columns, device=keys.device) > columns - asked + row[:, None]
        hidden = later | (slot < 0)[:, None]
        was_asked = row >= asked - step.after.clamp(max=asked)[:, None]
        return scoring.weights(products, hidden[:, None, None]) * was_asked[:, None, None, :, None]

    def _worth(
        self, received: Float[Tensor, "batch key_heads columns"], count: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch key_heads columns"]:
        """Return what each key's neighbourhood received, infinity for what is kept anyway."""
        columns = received.shape[2]
        slot = torch.arange(columns, device=received.device) - columns + count[:, None]
        sink = (slot >= 0) & (slot < self.policy.num_sinks)
        last = slot >= (count - self.policy.window)[:, None]
        # Before the pooling: a sink's weight would be smeared over its neighbours.
        received = received.masked_fill((sink | last | (slot < 0))[:, None], 0)
        pooled = functional.avg_pool1d(
            received, self.policy.kernel, stride=1, padding=self.policy.kernel // 2
        )
        pooled = pooled.masked_fill((slot < 0)[:, None], float("-inf"))
        return pooled.masked_fill(((sink | last) & (slot >= 0))[:, None], float("inf"))


class _Read(NamedTuple):
    """What of a prompt's end is known until it is settled how much of the prompt is kept."""

    worth: Float[Tensor, "batch key_heads columns"]
    count: Int[Tensor, " batch"]
    """Tokens of each row before any was dropped."""
    prompt: Bool[Tensor, " batch"]
    """Whether a row has read several tokens, or one."""
    stats: LayerStats
