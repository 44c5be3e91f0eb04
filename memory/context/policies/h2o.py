"""H2O: keep the tokens that have received most attention, and the last ones.

Zhang et al. 2023 (arXiv 2306.14048, algorithm 1): every head adds up what attention each of its keys has
received from all queries since, and where a cache is full, drops the one with least. Beyond the paper: the
first tokens are never dropped, though they would hardly ever be; tokens go `interval` at a time, and at
moments that only depend on how many tokens a row has had, so that a text is read alike however it is fed; and
positions are slots of the cache, as in StreamingLLM, so that a text longer than those of training can be
read. Query heads that share a key head add up in one sum, and what is dropped is freed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from scrubjay.memory.context.parts.eviction import keep_best, take
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, Held, LayerMemory, Step
from scrubjay.memory.context.policies.slots import attend_at_slots, unturn

# Queries whose weights exist at once.
_LONGEST_PIECE = 128


@dataclass(frozen=True)
class H2OPolicy(ContextPolicy):
    """Keep `recent` last tokens, and of those before the most attended, different ones in every key head."""

    budget: int = 1024
    """Tokens kept at most, and read by a query, its own included."""
    recent: int | None = None
    """Last tokens that are not dropped; by default half of the budget, as in the paper."""
    num_sinks: int = 4
    """First tokens that are not dropped."""
    interval: int = 16
    """Tokens dropped at once."""

    moves_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in (("num_sinks", 0), ("interval", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")
        least = self.num_sinks + self.last + self.interval
        if self.last < 1 or self.budget < least:
            raise ValueError(
                f"budget={self.budget}: too small for {self.num_sinks} sinks, {self.last} recent tokens and "
                f"{self.interval} to drop at once; make it at least {max(least, 2)} or these smaller"
            )

    @property
    def last(self) -> int:
        """Last tokens that are not dropped."""
        return self.budget // 2 if self.recent is None else self.recent

    def kept(self, tokens: Int[Tensor, "*rows"]) -> Int[Tensor, "*rows"]:
        """Return how many tokens are kept of so many."""
        past = tokens - self.budget
        return torch.where(past < 0, tokens, self.budget - self.interval + past % self.interval)

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return H2OMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of what is kept, and of a float32 sum for each key."""
        sums = 4 * shape.layers * shape.batch * shape.key_heads
        return int(self.kept(torch.tensor(tokens))) * (shape.token_bytes + sums)


class H2OMemory(LayerMemory):
    """State: `keys`, turned to position 0, `values` and `sums`.

    A row that keeps fewer than others has them last.
    """

    def __init__(self, policy: H2OPolicy) -> None:
        super().__init__()
        self.policy = policy
        # Of what is held and the piece that has just read it.
        self._joined: dict[str, Tensor] = {}

    def pieces(self, step: Step) -> list[int]:
        """Return pieces that end where a row's cache is full."""
        if step.length == 1:
            return [1]
        counted = step.before[:, None] + (step.time >= 0).cumsum(dim=1)
        before = torch.cat([step.before[:, None], counted[:, :-1]], dim=1)
        full = (self.policy.kept(counted) <= self.policy.kept(before)) & (counted > before)
        ends = {*full.any(dim=0).nonzero().flatten().add(1).tolist(), step.length}
        begin, pieces = 0, []
        for end in sorted(ends):
            while begin < end:
                pieces.append(min(end - begin, _LONGEST_PIECE))
                begin += pieces[-1]
        return pieces

    def generate(
        self, query: Tensor, keys: Tensor, values: Tensor, held: Held | None, step: Step, scoring: Scoring
    ) -> Tensor:
        """Attend causally at slot positions, and note what attention each key receives.

        Args: those of `LayerMemory.generate`.
        """
        count, keys = 0 if held is None else held.keys.shape[2], unturn(keys, step)
        if held is not None:
            keys, values = torch.cat([held.keys, keys], dim=2), torch.cat([held.values, values], dim=2)
        slots = step.once("slots", lambda: self._slots(step, count))
        out, weights = attend_at_slots(query, keys, values, slots, step, scoring)
        given = weights.detach()
        if step.padded:
            given = given * (step.time >= 0)[:, None, None, :, None]
        received = given.sum(dim=(2, 3))
        if count:
            received[:, :, :count] += self.state["sums"]
        self._joined = {"keys": keys, "values": values, "sums": received}
        return out

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Append, and drop the least attended of a row that is full."""
        joined, self._joined = self._joined, {}
        count, sums = joined["keys"].shape[2] - step.length, joined["sums"]
        slots = step.once("slots", lambda: self._slots(step, count))
        kept = step.once("kept", lambda: self.policy.kept(step.after))
        most = step.once("most", lambda: int(kept.max()))
        if slots.shape[1] == most and not step.padded:
            self.state = joined
            return
        last = step.once("last", lambda: slots.amax(dim=1, keepdim=True) + 1)
        safe = (slots >= 0) & ((slots < self.policy.num_sinks) | (slots >= last - self.policy.last))
        worth = sums.masked_fill(safe[:, None], float("inf")).masked_fill((slots < 0)[:, None], float("-inf"))
        best = keep_best(worth, kept, most)
        self.state = {name: take(joined[name], best) for name in ("keys", "values")}
        self.state["sums"] = sums.gather(2, best)

    def _slots(self, step: Step, count: int) -> Int[Tensor, "batch columns"]:
        """Return the slot of every column, those kept and the new, -1 for none."""
        kept = self.policy.kept(step.before)[:, None]
        old = torch.arange(count, device=kept.device) - count + kept
        new = torch.where(step.time < 0, -1, kept + step.time - step.before[:, None])
        return torch.cat([old, new], dim=1)
