"""H2O: keep the tokens with the highest accumulated attention, and the last ones.

Zhang et al. 2023 (arXiv 2306.14048, algorithm 1): every head sums, for each key, the attention that the key
receives from all later queries. A full cache evicts the key with the smallest sum. Beyond the paper, the
first tokens are never evicted. Their sums are rarely the smallest anyway.

Tokens are evicted `interval` at a time. The points of eviction depend only on the token count of a row, so
results do not depend on how a text is split into calls. Tokens get consecutive positions inside the cache,
as in StreamingLLM, so the text may be longer than the training texts. Query heads that share a key head share
one sum, so that the memory of evicted tokens can be freed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.memory.context.policies.base import (
    CacheShape,
    LayerMemory,
    PastKeyValues,
    Step,
    check_minimums,
)
from scrubjay.memory.context.policies.budget import BudgetPolicy
from scrubjay.memory.context.policies.buffers import (
    append,
    compute_capacity,
    drop_worst,
    gather_columns,
    keep_best,
    make_writable,
)
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.rotary import PairedRotation
from scrubjay.memory.context.policies.slots import (
    attend_at_slots,
    rotate_new_to_slots,
    rotate_to_origin,
    rotate_to_slots,
)

Count = TypeVar("Count", int, Tensor)


@dataclass(frozen=True)
class H2OPolicy(BudgetPolicy):
    """Keep the last `recent` tokens and, per key head, the earlier tokens with the most attention."""

    budget: int | None = None
    """Largest number of tokens in the cache. A query reads all of them, its own token included. Default: the
    model's window, at most 8,192."""
    recent: int | None = None
    """Number of last tokens that are never evicted. Default: half of the budget, as in the paper."""
    num_sinks: int = 4
    """Number of first tokens that are never evicted."""
    interval: int = 16
    """Number of tokens that are evicted at a time."""

    moves_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_minimums(self, num_sinks=0, interval=1)
        if self.recent is not None and self.recent < 1:
            raise ValueError(f"recent={self.recent}: must be at least 1")
        others = self.num_sinks + self.interval
        # By default the last tokens take half of the budget, and half is left for the others.
        least = max(2 * others - 1, 2) if self.recent is None else others + self.recent
        if self.num_tokens < least:
            raise ValueError(
                f"budget={self.num_tokens}: too small for num_sinks={self.num_sinks}, {self.num_recent} "
                f"recent tokens and interval={self.interval}; raise budget to at least {least}, or lower "
                "these sizes"
            )

    @property
    def num_recent(self) -> int:
        """Number of last tokens that are never evicted."""
        return self.num_tokens // 2 if self.recent is None else self.recent

    def count_retained(self, tokens: Count) -> Count:
        """Return the number of tokens that the cache retains after it has read `tokens` tokens."""
        evictions = (tokens - self.num_tokens) // self.interval + 1
        return tokens - self.interval * evictions * (evictions > 0)

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return H2OMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of keys, values and one float32 sum per key, unused capacity included."""
        sums = 4 * shape.layers * shape.batch * shape.key_heads
        return compute_capacity(self.count_retained(tokens), self.num_tokens) * (shape.token_bytes + sums)


class H2OMemory(LayerMemory):
    """Memory of one layer.

    State: buffers `keys` (rotated to position 0, with interleaved pairs), `values` and `sums` (of attention).
    The first `columns` entries of each buffer are in use, followed by zeros. A row with fewer tokens than
    other rows has unused entries before its tokens.
    """

    longest_piece: int = 128
    """Number of queries whose attention weights are in memory at once."""

    state_names = frozenset(("keys", "values", "sums"))

    def __init__(self, policy: H2OPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.columns = 0

    def get_columns(self, name: str) -> Tensor:
        """Return the used part of the buffer `name`."""
        return self.state[name][:, :, : self.columns]

    def pieces(self, step: Step) -> list[int]:
        """Return the lengths of the pieces into which a step is split.

        A piece ends where the cache of any row is full, or after 128 tokens.
        """
        if step.length == 1:
            return [1]
        token_counts = step.before[:, None] + (step.time >= 0).cumsum(dim=1)
        before = torch.cat([step.before[:, None], token_counts[:, :-1]], dim=1)
        full = (self.policy.count_retained(token_counts) <= self.policy.count_retained(before)) & (
            token_counts > before
        )
        ends = {*full.any(dim=0).nonzero().flatten().add(1).tolist(), step.length}
        begin, pieces = 0, []
        for end in sorted(ends):
            while begin < end:
                pieces.append(min(end - begin, self.longest_piece))
                begin += pieces[-1]
        return pieces

    def retrieve(self, query: Tensor, step: Step, scoring: Scoring) -> None:
        """Return None: nothing is read before `generate`, which appends the new tokens and reads the whole
        state."""

    def generate(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        past: PastKeyValues | None,
        step: Step,
        scoring: Scoring,
    ) -> Tensor:
        """Append new tokens, return their attention output, and update the attention sum of each key.

        Args: those of `LayerMemory.generate`.
        """
        before, most = self.columns, self.policy.num_tokens
        slots = self._slots(step, before)
        query, keys = self._rotate(query, keys, slots, step)
        for name, new in (("keys", keys), ("values", values)):
            self.state[name] = append(self.state.get(name), before, new, most)
        self.columns += step.length
        slot_keys = rotate_to_slots(self.get_columns("keys"), slots, step)
        out, weights = attend_at_slots(query, slot_keys, self.get_columns("values"), slots, step, scoring)
        if step.padded:
            weights = weights * (step.time >= 0)[:, None, None, :, None]
        self._add_up(weights.detach().sum(dim=(2, 3)), before)
        return out

    def _add_up(self, attention: Float[Tensor, "batch key_heads columns"], before: int) -> None:
        """Add `attention`, received from the new queries, to the attention sums of all tokens.

        Tokens from index `before` on are new. Their sums start at 0.
        """
        sums, columns = self.state.get("sums"), attention.shape[2]
        if sums is None or sums.shape[2] < columns:
            new = attention.new_zeros(*attention.shape[:2], columns - before)
            sums = append(sums, before, new, self.policy.num_tokens)
        self.state = make_writable(self.state | {"sums": sums})
        self.state["sums"][:, :, :columns].add_(attention)

    def _rotate(self, query: Tensor, keys: Tensor, slots: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Rotate new queries to their positions in the cache, and rotate new keys to position 0."""
        if step.length > 1:
            return rotate_new_to_slots(query, slots, step), rotate_to_origin(keys, step)
        heads, groups = query.shape[1], keys.shape[1]

        def build_rotation() -> PairedRotation:
            slot = slots[:, -1:].clamp(min=0)
            targets = torch.cat([slot, torch.zeros_like(slot)], dim=1)
            return step.rotary.make_paired_rotation(step.position_ids, targets).expand_to_heads(
                [heads, groups]
            )

        vectors = step.compute_once(f"both {heads} {groups}", build_rotation).interleave_and_rotate(
            torch.cat([query, keys], dim=1)
        )
        query, keys = vectors.split_with_sizes([heads, groups], dim=1)
        return query, keys

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Evict the least attended tokens of full rows."""
        if not step.compute_once("drops", lambda: self._must_drop(step)):
            return
        counts = step.compute_once("kept", lambda: self.policy.count_retained(step.after))
        slots = self._slots(step, self.columns - step.length)
        most = step.compute_once("most", lambda: int(counts.max()))
        last = step.compute_once("last", lambda: slots.amax(dim=1, keepdim=True) + 1)
        safe = (slots >= 0) & ((slots < self.policy.num_sinks) | (slots >= last - self.policy.num_recent))
        sums = self.get_columns("sums")
        worth = sums.masked_fill(safe[:, None], float("inf")).masked_fill((slots < 0)[:, None], float("-inf"))
        best = keep_best(worth, counts, most) if step.padded else drop_worst(worth, most)
        tensors = {name: gather_columns(self.get_columns(name), best) for name in ("keys", "values")}
        tensors["sums"] = sums.gather(2, best)
        self.columns = most
        self._set_state(tensors)

    def count_retained(self, count: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return the number of tokens of each text that a key head retains."""
        return self.policy.count_retained(count)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state without unused capacity, with keys in the model's pair layout."""
        tensors = {name: self.get_columns(name) for name in self.state}
        return tensors | {"keys": self.layout.deinterleave(tensors["keys"])} if tensors else tensors

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned, and allocate capacity for more tokens."""
        self.columns = state["keys"].shape[2] if state else 0
        self._set_state(state | {"keys": self.layout.interleave(state["keys"])} if state else state)

    def _set_state(self, tensors: dict[str, Tensor]) -> None:
        """Store these tensors as the state, with capacity for more tokens."""
        self.state = {
            name: append(None, 0, tensor, self.policy.num_tokens) for name, tensor in tensors.items()
        }

    def _must_drop(self, step: Step) -> bool:
        """Return True if tokens must be removed, because a row is full or has padding."""
        count_retained = self.policy.count_retained
        if step.padded:
            counts = count_retained(step.before) + step.length
            return bool((count_retained(step.after) != counts).any())
        before, after = step.bounds
        return count_retained(after) != count_retained(before) + step.length

    def _slots(self, step: Step, count: int) -> Int[Tensor, "batch columns"]:
        """Return the cache positions of all stored tokens and all new tokens; negative for padding.

        `count` is the number of stored columns.
        """

        def make_slots() -> Tensor:
            if not step.padded:
                return torch.arange(count + step.length, device=step.time.device).expand(len(step.time), -1)
            counts = self.policy.count_retained(step.before)[:, None]
            old = torch.arange(count, device=counts.device) - count + counts
            new = torch.where(step.time < 0, -1, counts + step.time - step.before[:, None])
            return torch.cat([old, new], dim=1)

        return step.compute_once("slots", make_slots)
