"""StreamingLLM: the first tokens of a text and the last, at positions inside the cache, without end.

Xiao et al. 2023 (arXiv 2309.17453, section 3.2). Queries spend on the first tokens what a softmax must spend
somewhere; a window without them collapses. Positions are slots of the cache, so that no distance ever exceeds
what the model was trained on: the query of token t stands at slot p(t) = min(t, budget - 1). In the window
that changes no distance, so only the sinks are read by a query turned to p(t), and no key is ever turned
again. So said, all queries of a long prompt can read at once (one band and a column of sinks, one softmax),
with gradients, in time linear in the prompt: the paper and its code go token by token.

A prompt is read by `kernels.sink_attention`, a single token by two products and one softmax: the kernel has
one query a token, so that what sinks score is told to it by coordinates of all keys, and those are copied for
every token. With it a token takes 1.83 times as long as under transformers' own cache at SmolLM2's sizes, and
without it 1.00 times (the bench `decoding`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels import sink_attention
from scrubjay.memory.context.parts.dense import BLOCK, masked_attention
from scrubjay.memory.context.parts.room import writable
from scrubjay.memory.context.parts.rotary import Turn
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, LayerMemory, Step
from scrubjay.memory.parts.sinks import held as held_in_slots

# Columns attended at once where no gradient binds them: the band's copies of keys stay small.
_PIECE = 1024


@dataclass(frozen=True)
class SinksPolicy(ContextPolicy):
    """Keep the first `num_sinks` and the last `budget - num_sinks` tokens."""

    budget: int = 1024
    """Tokens kept, and read by a query, its own included."""
    num_sinks: int = 4
    """First tokens of the text among them; every model of the paper is content with 4."""

    moves_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_sinks < 0:
            raise ValueError(f"num_sinks={self.num_sinks}: must not be negative")
        if self.budget < self.num_sinks + 1:
            raise ValueError(
                f"budget={self.budget}: must be at least {self.num_sinks + 1}, the sinks and the token itself"
            )

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return StreamMemory(self.budget, self.num_sinks)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of at most `budget` tokens' keys and values."""
        return min(tokens, self.budget) * shape.token_bytes


class StreamMemory(LayerMemory):
    """State: `keys` and `values`, sinks first, then a ring (`kernels.sink_slot`).

    Keys at their exact text positions.
    """

    def __init__(self, budget: int, num_sinks: int) -> None:
        super().__init__()
        self.num_sinks, self.window = num_sinks, budget - num_sinks
        self.slots = budget

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return what the new tokens read: one of them from its ring, more of them from a band."""
        if step.length > 1 or step.padded or torch.is_grad_enabled():
            return super().attend(query, keys, values, step, scoring)
        return self._read_one(query, keys, values, step, scoring)

    def pieces(self, step: Step) -> list[int]:
        """Return all columns where gradients need them, otherwise some."""
        if torch.is_grad_enabled():
            return [step.length]
        whole, rest = divmod(step.length, _PIECE)
        return [_PIECE] * whole + [rest] * (rest > 0)

    def generate(self, query, keys, values, held, step, scoring) -> Tensor:
        """Read the band of the window and the sinks, each at its own turn of the query, in one softmax.

        Args: those of `LayerMemory.generate`.
        """
        place = step.once("place", lambda: step.rotary.turn(step.given, step.time))
        keys, query_time = place(keys), step.time
        key_time = self._key_time(step)
        if held is not None:
            keys, values = torch.cat([held.keys, keys], dim=2), torch.cat([held.values, values], dim=2)
        in_window, width = place(query), values.shape[-1]
        query, keys = (
            self._with_sink_scores(query, in_window, keys, key_time, step)
            if self.num_sinks
            else (in_window, keys)
        )
        if not scoring.is_plain:
            return self._read_band(query, keys, values, key_time, step, scoring)
        # As wide as keys, which torch's fused attention on a CPU asks for.
        padded = functional.pad(values, (0, max(keys.shape[-1] - width, 0))).to(keys.dtype)
        return (
            sink_attention(
                query.transpose(1, 2),
                keys.transpose(1, 2),
                padded.transpose(1, 2),
                query_time,
                key_time,
                torch.zeros_like(query_time),
                window=self.window,
                num_sinks=self.num_sinks,
                scale=scoring.scale,
            )[..., :width]
            .transpose(1, 2)
            .to(values.dtype)
        )

    def _read_band(
        self, query: Tensor, keys: Tensor, values: Tensor, key_time: Tensor, step: Step, scoring: Scoring
    ) -> Tensor:
        """Return what new tokens read by scores that the kernel does not know, some rows at a time."""
        column, out = torch.arange(keys.shape[2], device=keys.device), []
        new = column[-step.length :]
        for first in range(0, step.length, BLOCK):
            rows = slice(first, first + BLOCK)
            age = step.time[:, rows, None] - key_time[:, None]
            seen = (age >= 0) & (key_time >= 0)[:, None]
            seen &= (age < self.window) | (key_time < self.num_sinks)[:, None]
            mask = seen | (column == new[rows, None])
            out.append(masked_attention(query[:, :, rows], keys, values, mask, scoring))
        return torch.cat(out, dim=2)

    def _with_sink_scores(
        self, query: Tensor, in_window: Tensor, keys: Tensor, key_time: Tensor, step: Step
    ) -> tuple[Tensor, Tensor]:
        """Return queries and keys of which the product is a sink's score at its own turn of the query.

        They are as many coordinates wider as there are sinks: a query has its scores there, the sinks a one.
        """
        sink = torch.arange(self.num_sinks, device=keys.device)
        is_sink = step.once(f"is sink {keys.shape[2]}", lambda: key_time[:, :, None] == sink)
        column = step.once(f"sinks {keys.shape[2]}", lambda: is_sink.byte().argmax(dim=1))
        slot = step.once("slot", lambda: step.rotary.turn(step.given, step.time.clamp(max=self.slots - 1)))
        batch, groups, _, width = keys.shape
        sinks = keys.gather(2, column[:, None, :, None].expand(-1, groups, -1, width))
        # Half precision would round the scores twice.
        dtype = torch.promote_types(query.dtype, torch.float32)
        scores = (slot(query).reshape(batch, groups, -1, width).to(dtype) @ sinks.to(dtype).mT).view(
            *query.shape[:3], -1
        )
        ones = is_sink[:, None].expand(-1, groups, -1, -1)
        keys = keys.masked_fill(ones.any(dim=-1, keepdim=True), 0)
        return torch.cat([in_window, scores], dim=-1).to(dtype), torch.cat(
            [keys, ones.to(keys.dtype)], -1
        ).to(dtype)

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Fill each slot with the last token that belongs there."""
        held = self.state["keys"].shape[2] if self.state else 0
        source = step.once(f"source {held}", lambda: self._sources(step, held))
        turned = {
            "keys": step.once("place", lambda: step.rotary.turn(step.given, step.time))(keys),
            "values": values,
        }
        for name, new in turned.items():
            joined = torch.cat([self.state[name], new], dim=2) if held else new
            index = source[:, None, :, None].expand(-1, joined.shape[1], -1, joined.shape[3])
            self.state[name] = joined.gather(2, index)

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Forget the last tokens, which nothing has to come back for while no row has dropped any."""
        if int(count.max()) > self.slots:
            raise ValueError(
                f"crop: a budget of {self.slots} has dropped tokens of {int(count.max())} that would be read "
                "again; save the cache before you try something, and load it"
            )
        kept = int(count.max()) - columns
        self.state = {name: tensor[:, :, :kept] for name, tensor in self.state.items()}

    def _read_one(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        count = step.once("count", lambda: int(step.time[0, 0]))
        heads, groups, past = query.shape[1], keys.shape[1], self.num_sinks > 0 and count >= self.slots
        turn = step.once(f"turn {heads} {groups}", lambda: self._turn_of_heads(heads, groups, past, step))
        turned = turn(torch.cat([query, keys, query] if past else [query, keys], dim=1))
        self._put(turned[:, heads : heads + groups], values, count)
        in_window, keys, values = turned[:, :heads], self.state["keys"], self.state["values"]
        if not past:
            return masked_attention(in_window, keys, values, None, scoring)
        return self._read_past(in_window, turned[:, heads + groups :], keys, values, scoring)

    def _turn_of_heads(self, heads: int, groups: int, past: bool, step: Step) -> Turn:
        """Return what turns a token's query and key to its place; if `past` the budget, also to a slot."""
        if not past:
            return step.rotary.turn(step.given, step.time)
        wanted = torch.cat([step.time, torch.full_like(step.time, self.slots - 1)], dim=1)
        return step.rotary.turn(step.given, wanted).by_heads([heads + groups, heads])

    def _put(self, key: Tensor, value: Tensor, count: int) -> None:
        """Append a token, the `count`-th of its text from 0, or let it take the place of the oldest."""
        held = self.state["keys"].shape[2] if self.state else 0
        self.state = writable(self.state)
        for name, new in (("keys", key), ("values", value)):
            if held == self.slots:
                self.state[name].select(2, self.num_sinks + (count - self.num_sinks) % self.window).copy_(
                    new[:, :, 0]
                )
            else:
                self.state[name] = torch.cat([self.state[name], new], dim=2) if held else new

    def _read_past(
        self, in_window: Tensor, at_slot: Tensor, keys: Tensor, values: Tensor, scoring: Scoring
    ) -> Tensor:
        """Return what a token past the budget reads: sinks by a query at a slot, others by one in place."""
        batch, groups, slots, width = keys.shape
        table, sinks = keys.flatten(0, 1), slice(0, self.num_sinks)
        scores = torch.bmm(in_window.reshape(batch * groups, -1, width), table.mT)
        scores[..., sinks] = torch.bmm(at_slot.reshape(batch * groups, -1, width), table[:, sinks].mT)
        attention = scoring.weights(scores.view(batch, groups, -1, 1, slots)).reshape(scores.shape)
        return torch.bmm(attention.to(values.dtype), values.flatten(0, 1)).view(
            batch, -1, 1, values.shape[-1]
        )

    def _key_time(self, step: Step) -> Int[Tensor, "batch held"]:
        held = self.state["keys"].shape[2] if self.state else 0
        if not held:
            return step.time
        return step.once(
            f"key time {held}", lambda: torch.cat([self._held(step.before)[:, :held], step.time], dim=1)
        )

    def _held(self, count: Int[Tensor, " batch"]) -> Int[Tensor, "batch slots"]:
        return held_in_slots(count, self.num_sinks, self.window)

    def _sources(self, step: Step, held: int) -> Int[Tensor, "batch slots"]:
        """Return which column, of those held and the new, each slot is filled with."""
        token = self._held(step.after)[:, : min(self.slots, int(step.after.max()))]
        first = step.before[:, None]
        slot = torch.arange(token.shape[1], device=token.device)
        # The new columns of a row's tokens, which padding may lie among.
        column = torch.searchsorted(
            step.time.cummax(dim=1).values.contiguous(), (token).contiguous().clamp(min=0)
        )
        return torch.where(token >= first, held + column, slot).clamp(max=held + step.length - 1)
