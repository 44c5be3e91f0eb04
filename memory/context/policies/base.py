"""The contract of context policies: four slots, and what of a model and a call they see.

The slots are SCBench's (Li et al. 2024, arXiv 2412.10319): how new tokens read (generate), what of them is
kept (compress), what of the kept a query reads (retrieve), and where that lies (load). `ContextPolicy` is a
frozen config; `LayerMemory` is what it keeps for one layer of one cache.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.memory.context.parts.dense import causal_attention
from scrubjay.memory.context.parts.scoring import Scoring

if TYPE_CHECKING:
    from scrubjay.memory.context.parts.rotary import Layout, Rotary

Shared = TypeVar("Shared")


@dataclass(frozen=True)
class CacheShape:
    """Sizes of a cache of keys and values."""

    layers: int
    """Layers that attend."""
    batch: int
    """Rows."""
    heads: int
    """Heads of queries."""
    key_heads: int
    """Heads of keys and values."""
    key_width: int
    """Width of a key."""
    value_width: int
    """Width of a value."""
    itemsize: int
    """Bytes of a number."""

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values in all rows and layers."""
        return self.layers * self.batch * self.key_heads * (self.key_width + self.value_width) * self.itemsize


class LayerStats(NamedTuple):
    """What a layer has measured of a prompt that it has just read."""

    columns: int
    """Tokens that it holds before any is dropped, of the fullest row."""
    preference: float
    """How much it would have of what all layers may keep together, in the policy's own units; of several
    rows their mean."""


class Step:
    """The new tokens of one call, the same for every layer.

    Args:
        time: Each token's place in its row's own text, negative for padding.
        given: The position that the model turned it to.
        seen: Columns that came before, padding included.
        before: Tokens that a row has before the step.
        after: Tokens that it has after the step.
        padded: Whether any row has had padding.
        rotary: The model's rotary positions; None for a policy that moves none.
    """

    def __init__(
        self,
        time: Int[Tensor, "batch length"],
        given: Int[Tensor, "batch length"],
        seen: int,
        before: Int[Tensor, " batch"],
        after: Int[Tensor, " batch"],
        padded: bool,
        rotary: Rotary | None,
    ) -> None:
        self.time, self.given, self.seen, self.padded = time, given, seen, padded
        self.before, self.after = before, after
        self._rotary = rotary
        self._made: dict[str, object] = {}
        self._under: dict[Hashable, Step] = {}

    @property
    def length(self) -> int:
        """How many columns are new."""
        return self.time.shape[1]

    @property
    def rotary(self) -> Rotary:
        """The model's rotary positions."""
        if self._rotary is None:
            raise ValueError("this policy moves positions; it must say so by `moves_positions = True`")
        return self._rotary

    def under(self, policy: Hashable, rotary: Rotary | None = None) -> Step:
        """Return the same tokens as layers under one policy see them, with values of their own for `once`.

        `rotary` is how these layers turn keys; None for a policy that moves none.
        """
        if policy not in self._under:
            own = self._under[policy] = copy.copy(self)
            own._made, own._rotary = {}, rotary
        return self._under[policy]

    def once(self, name: str, make: Callable[[], Shared]) -> Shared:
        """Return what `make` returned in the first layer under the same policy that asked for `name`.

        So it may depend on the policy's sizes, and on nothing else in which layers differ.
        """
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]  # pyright: ignore[reportReturnType]

    def part(self, first: int, length: int) -> Step:
        """Return the `length` columns from `first` as a step of their own."""
        if first == 0 and length == self.length:
            return self
        return self.once(f"part {first} {length}", lambda: self._part(first, length))

    def _part(self, first: int, length: int) -> Step:
        columns = slice(first, first + length)
        if self.padded:
            before, after = (
                self.before + (self.time[:, :c] >= 0).sum(dim=1) for c in (first, first + length)
            )
        else:
            before, after = self.before + first, self.before + first + length
        return Step(
            self.time[:, columns],
            self.given[:, columns],
            self.seen + first,
            before,
            after,
            self.padded,
            self._rotary,
        )


class Held(NamedTuple):
    """Keys and values that a piece's queries read beside the piece's own.

    `valid` says which, None for all.
    """

    keys: Float[Tensor, "batch key_heads held width"]
    values: Float[Tensor, "batch key_heads held value_width"]
    valid: Bool[Tensor, "batch held"] | None


class Kept(NamedTuple):
    """The values of what a memory keeps, in any order and of zeros where a head has fewer than others."""

    held: Float[Tensor, "batch key_heads held width"]
    """Of all that may be read."""
    read: Float[Tensor, "batch key_heads read width"] | None = None
    """Of what of it the last token read; None for all."""
    fetched: Float[Tensor, "batch key_heads fetched width"] | None = None
    """Of what of it was chosen to be read; None for nothing, where all that is held is read."""


class LayerMemory(ABC):
    """What a policy keeps for one layer: `state`, a flat dict of tensors, batch first, empty at the start.

    `attend` cuts new tokens into pieces and calls the slots for each: `retrieve` (which calls `load` where
    something lies elsewhere), `generate`, `compress`. A policy overrides the slots it has something to say
    about.
    """

    layout: Layout | None = None
    """How the model lays out the pairs of coordinates that it turns; None where no token is moved."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def attend(
        self,
        query: Float[Tensor, "batch heads length width"],
        keys: Float[Tensor, "batch key_heads length width"],
        values: Float[Tensor, "batch key_heads length value_width"],
        step: Step,
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads length value_width"]:
        """Return what the new tokens read, and keep of them what the policy keeps."""
        pieces = step.once("pieces", lambda: self.pieces(step))
        if len(pieces) == 1:
            return self._piece(query, keys, values, step, scoring)
        out, first = [], 0
        for length in pieces:
            part, columns = step.part(first, length), slice(first, first + length)
            new = (query[:, :, columns], keys[:, :, columns], values[:, :, columns])
            out.append(self._piece(*new, part, scoring))
            first += length
        return torch.cat(out, dim=2)

    def _piece(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        held = self.retrieve(query, step, scoring)
        out = self.generate(query, keys, values, held, step, scoring)
        self.compress(query, keys, values, step, scoring)
        return out

    def pieces(self, step: Step) -> list[int]:
        """Return how many columns are attended at once, one number after another; by default all."""
        return [step.length]

    def retrieve(self, query: Tensor, step: Step, scoring: Scoring) -> Held | None:
        """Return what of the kept the piece's queries read, None for nothing; by default all."""
        if "keys" not in self.state:
            return None
        return Held(self.state["keys"], self.state["values"], self.state.get("valid"))

    def load(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, on the model's device, of what lies elsewhere."""
        raise NotImplementedError(f"{type(self).__name__} keeps everything on the model's device")

    def generate(
        self, query: Tensor, keys: Tensor, values: Tensor, held: Held | None, step: Step, scoring: Scoring
    ) -> Tensor:
        """Return what the piece reads of `held` and, causally, of itself.

        By default one softmax over both.

        Args:
            query: Of the piece, "batch heads length width".
            keys: Its own, "batch key_heads length width".
            values: Its own, "batch key_heads length value_width".
            held: What `retrieve` gave; None for nothing.
            step: The piece as a step.
            scoring: What the model does to scores.
        """
        valid = step.time >= 0 if step.padded else None
        if held is not None:
            valid = _join_valid(held, valid, step)
            keys, values = torch.cat([held.keys, keys], dim=2), torch.cat([held.values, values], dim=2)
        return causal_attention(query, keys, values, valid, scoring)

    @abstractmethod
    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Put the piece into the state, and drop from it what the policy drops."""

    def kept(self, count: Int[Tensor, " batch"]) -> Kept | None:
        """Return the values of what is kept of texts of `count` tokens; by default the state's, all read.

        None before the first token. A memory that passes over some of what it holds, or holds values
        elsewhere, overrides it.
        """
        values, valid = self.state.get("values"), self.state.get("valid")
        if values is None:
            return None
        return Kept(values if valid is None else values[:, :, : valid.shape[1]] * valid[:, None, :, None])

    def measured(self) -> LayerStats:
        """Return what `allocate` goes by, right after a prompt was read."""
        raise NotImplementedError(f"{type(self).__name__} measures nothing that budgets could go by")

    def shrink(self, budget: int) -> None:
        """Keep `budget` tokens from now on, and of the prompt just read, until it is settled how many.

        Raises ValueError on a budget that the policy could not have.
        """
        raise NotImplementedError(f"{type(self).__name__} has one budget, and cannot be given another")

    def settle(self) -> None:
        """Forget what only `shrink` asks: all layers have read the prompt, and no budget falls any more."""
        raise NotImplementedError(f"{type(self).__name__} has one budget, and nothing to settle")

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Forget the last `columns` tokens of every row, of which there were `count`.

        Raises ValueError where the state that was cannot be had back.
        """
        raise ValueError(f"{type(self).__name__} cannot be cropped; reset the cache, or load a saved one")

    def reorder(self, rows: Int[Tensor, " chosen"]) -> None:
        """Keep of each state the given rows, in their order, repeated where they repeat."""
        self.state = {name: x.index_select(0, rows.to(x.device)) for name, x in self.state.items()}

    def saved(self) -> dict[str, Tensor]:
        """Return all that `restore` needs to go on; by default the state."""
        return self.state

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take up what `saved` returned."""
        self.state = saved

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes of the state: with the model, or those offloaded to "cpu" or "disk"."""
        return 0 if place else sum(tensor.nbytes for tensor in self.state.values())


class ContextPolicy(ABC):
    """Sizes of a policy, a frozen dataclass that raises ValueError on one that cannot work.

    What it says of itself, it says of all layers, which `for_layer` may make differ.
    """

    moves_positions: ClassVar[bool] = False
    """Whether tokens are moved to other positions than the model gave them."""
    can_crop: ClassVar[bool] = False
    """Whether a cache can be cropped after any number of tokens."""
    any_cut: ClassVar[bool] = True
    """Whether a text is read alike however it is cut into calls; with `can_crop`, drafts can be read, too."""
    chooses_by_end: ClassVar[bool] = False
    """Whether the end of a call chooses what is read later: a prompt should come in one call, its question
    last."""

    def call_length(self, prompt: int, block: int) -> int:
        """Return how many tokens of a prompt to read in one call, where blocks of `block` would do."""
        return max(prompt, 1) if self.chooses_by_end else block

    def for_layer(self, index: int, count: int) -> ContextPolicy:
        """Return the policy of layer `index`, from 0, of `count`: by default this one, in all of them."""
        return self

    @property
    def allocates(self) -> bool:
        """Whether the budgets of layers are set while a prompt is read: whether `allocate` is overridden."""
        return type(self).allocate is not ContextPolicy.allocate

    def allocate(self, seen: Sequence[LayerStats], shape: CacheShape) -> Sequence[int] | None:
        """Return the tokens that each layer keeps, of those that have read a prompt so far, the first first.

        Called after each layer of a call of several tokens, so that no more than the budgets and one layer's
        prompt is ever held. What a layer drops does not come back, and so its budget should only fall as more
        layers are seen. All rows of a batch share it. None leaves the last layer as it is configured.

        Its memories must have `measured`, `shrink` and `settle`.
        """
        return None

    @abstractmethod
    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""

    @abstractmethod
    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes that a cache of this shape holds with the model after `tokens` tokens a row.

        `at_once` says whether they came in one call or one by one, which is the same to a policy of
        `any_cut`.
        """


def _join_valid(held: Held, valid: Tensor | None, step: Step) -> Tensor | None:
    if held.valid is None and valid is None:
        return None
    batch, count = step.time.shape[0], held.keys.shape[2]
    old = held.valid if held.valid is not None else step.time.new_ones(batch, count, dtype=torch.bool)
    return torch.cat([old, step.time >= 0], dim=1)
