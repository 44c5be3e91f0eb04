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
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.memory.context.parts.eviction import all_but_worst, keep_best, take
from scrubjay.memory.context.parts.room import append, columns_of_room, writable
from scrubjay.memory.context.parts.rotary import Layout, Spin
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, Held, LayerMemory, Step
from scrubjay.memory.context.policies.slots import attend_at_slots, place, to_slots, unturn

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
        if self.recent is not None and self.recent < 1:
            raise ValueError(f"recent={self.recent}: must be at least 1")
        beside = self.num_sinks + self.interval
        # Where the last tokens are half of the budget, half is left for the others.
        least = max(2 * beside - 1, 2) if self.recent is None else beside + self.recent
        if self.budget < least:
            raise ValueError(
                f"budget={self.budget}: too small for {self.num_sinks} sinks, {self.last} recent tokens and "
                f"{self.interval} to drop at once; make it at least {least} or these smaller"
            )

    @property
    def last(self) -> int:
        """Last tokens that are not dropped."""
        return self.budget // 2 if self.recent is None else self.recent

    def kept(self, tokens: Int[Tensor, "*rows"]) -> Int[Tensor, "*rows"]:
        """Return how many tokens are kept of so many."""
        past = tokens - self.budget
        return torch.where(past < 0, tokens, self.budget - self.interval + past % self.interval)

    def kept_of(self, tokens: int) -> int:
        """Return how many tokens are kept of so many, without a tensor's detour."""
        past = tokens - self.budget
        return tokens if past < 0 else self.budget - self.interval + past % self.interval

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return H2OMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of what is kept and of a float32 sum for each key, with room for the next ones."""
        sums = 4 * shape.layers * shape.batch * shape.key_heads
        return columns_of_room(self.kept_of(tokens), self.budget) * (shape.token_bytes + sums)


class H2OMemory(LayerMemory):
    """State: room for `keys`, turned to position 0 and with pairs side by side, `values` and `sums`.

    The first `columns` are held, and behind them are zeros. A row that keeps fewer than others has them last.
    """

    def __init__(self, policy: H2OPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.columns = 0

    def held(self, name: str) -> Tensor:
        """Return the columns held of one tensor of the state."""
        return self.state[name][:, :, : self.columns]

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

    def retrieve(self, query: Tensor, step: Step, scoring: Scoring) -> None:
        """Return nothing: what is kept is read where it lies, and new tokens behind it."""

    def generate(
        self, query: Tensor, keys: Tensor, values: Tensor, held: Held | None, step: Step, scoring: Scoring
    ) -> Tensor:
        """Append, attend causally at slot positions, and add up what attention each key receives.

        Args: those of `LayerMemory.generate`.
        """
        before, most = self.columns, self.policy.budget
        slots = step.once("slots", lambda: self._slots(step, before))
        query, keys = self._turned(query, keys, slots, step)
        for name, new in (("keys", keys), ("values", values)):
            self.state[name] = append(self.state.get(name), before, new, most)
        self.columns += step.length
        paired = to_slots(self.held("keys"), slots, step)
        out, weights = attend_at_slots(query, paired, self.held("values"), slots, step, scoring)
        if step.padded:
            weights = weights * (step.time >= 0)[:, None, None, :, None]
        self._add_up(weights.detach().sum(dim=(2, 3)), before)
        return out

    def _add_up(self, received: Float[Tensor, "batch key_heads columns"], before: int) -> None:
        """Add what columns have received, of which `before` have been there before."""
        sums, columns = self.state.get("sums"), received.shape[2]
        if sums is None or sums.shape[2] < columns:
            new = received.new_zeros(*received.shape[:2], columns - before)
            sums = append(sums, before, new, self.policy.budget)
        self.state = writable(self.state | {"sums": sums})
        self.state["sums"][:, :, :columns].add_(received)

    def _turned(self, query: Tensor, keys: Tensor, slots: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Return new queries at their slots, and new keys at position 0."""
        if step.length > 1:
            return place(query, slots, step), unturn(keys, step)
        heads, groups = query.shape[1], keys.shape[1]

        def both() -> Spin:
            slot = slots[:, -1:].clamp(min=0)
            wanted = torch.cat([slot, torch.zeros_like(slot)], dim=1)
            return step.rotary.spin(step.given, wanted).by_heads([heads, groups])

        turned = step.once(f"both {heads} {groups}", both).together(torch.cat([query, keys], dim=1))
        query, keys = turned.split_with_sizes([heads, groups], dim=1)
        return query, keys

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Drop the least attended of a row that is full."""
        if not step.once("drops", lambda: self._drops(step)):
            return
        kept = step.once("kept", lambda: self.policy.kept(step.after))
        slots = step.once("slots", lambda: self._slots(step, self.columns - step.length))
        most = step.once("most", lambda: int(kept.max()))
        last = step.once("last", lambda: slots.amax(dim=1, keepdim=True) + 1)
        safe = (slots >= 0) & ((slots < self.policy.num_sinks) | (slots >= last - self.policy.last))
        sums = self.held("sums")
        worth = sums.masked_fill(safe[:, None], float("inf")).masked_fill((slots < 0)[:, None], float("-inf"))
        best = keep_best(worth, kept, most) if step.padded else all_but_worst(worth, most)
        left = {name: take(self.held(name), best) for name in ("keys", "values")}
        left["sums"] = sums.gather(2, best)
        self.columns = most
        self._take_up(left)

    def saved(self) -> dict[str, Tensor]:
        """Return the state without the spare room, keys as the model lays them."""
        saved = {name: self.held(name) for name in self.state}
        return saved | {"keys": self._layout().apart(saved["keys"])} if saved else saved

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take up what `saved` returned, and make room for more."""
        self.columns = saved["keys"].shape[2] if saved else 0
        self._take_up(saved | {"keys": self._layout().together(saved["keys"])} if saved else saved)

    def _layout(self) -> Layout:
        assert self.layout is not None
        return self.layout

    def _take_up(self, held: dict[str, Tensor]) -> None:
        """Make what is held the state, with room behind it."""
        self.state = {name: append(None, 0, tensor, self.policy.budget) for name, tensor in held.items()}

    def _drops(self, step: Step) -> bool:
        """Return whether columns must go: of a row that is full, or of padding."""
        if not step.padded:
            before = int(step.before[0])
            return self.policy.kept_of(before + step.length) != self.policy.kept_of(before) + step.length
        kept = step.once("kept", lambda: self.policy.kept(step.after))
        return bool((kept != self.policy.kept(step.before) + step.length).any())

    def _slots(self, step: Step, count: int) -> Int[Tensor, "batch columns"]:
        """Return the slot of every column, those kept and the new, -1 for none."""
        if not step.padded:
            return torch.arange(count + step.length, device=step.time.device).expand(len(step.time), -1)
        kept = self.policy.kept(step.before)[:, None]
        old = torch.arange(count, device=kept.device) - count + kept
        new = torch.where(step.time < 0, -1, kept + step.time - step.before[:, None])
        return torch.cat([old, new], dim=1)
