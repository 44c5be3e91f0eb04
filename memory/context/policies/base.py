"""Base classes of context policies, with the four stages of a key-value cache.

The stages are those of SCBench (Li et al. 2024, arXiv 2412.10319): attention of new tokens (generate),
eviction (compress), selection of the tokens that a query reads (retrieve), and loading of offloaded tokens
(load). `ContextPolicy` is a frozen config; `LayerMemory` is the state of one layer of one cache.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.memory.context.policies.buffers import count_bytes, find_tensors
from scrubjay.memory.context.policies.dense import PromptReader, Scoring, causal_attention
from scrubjay.memory.context.policies.rotary import PairLayout, Rotary

Shared = TypeVar("Shared")


@dataclass(frozen=True)
class CacheShape:
    """Sizes of a key-value cache."""

    layers: int
    """Number of attention layers."""
    batch: int
    """Batch size."""
    heads: int
    """Number of query heads."""
    key_heads: int
    """Number of key and value heads."""
    key_width: int
    """Width of a key vector."""
    value_width: int
    """Width of a value vector."""
    itemsize: int
    """Bytes per element."""
    device: str = "cpu"
    """Type of the model's device, such as cpu or cuda."""

    @property
    def token_bytes(self) -> int:
        """Number of bytes for one token in each batch row: its keys and values in all layers."""
        return self.layers * self.batch * self.key_heads * (self.key_width + self.value_width) * self.itemsize


class LayerStats(NamedTuple):
    """Statistics of a layer about the prompt that it has just read."""

    columns: int
    """Number of tokens in the longest batch row, before eviction."""
    preference: float
    """Weight of the layer in the split of a joint budget, as the mean over the batch rows.

    Only the ratio to the weights of other layers matters."""


@dataclass(eq=False)
class Step:
    """New tokens of one model call. All layers share one object."""

    time: Int[Tensor, "batch length"]
    """Index of each token in its text, negative for padding."""
    position_ids: Int[Tensor, "batch length"]
    """Position that the model used for each token."""
    past_length: int
    """Number of tokens per row before the call, padding included."""
    before: Int[Tensor, " batch"]
    """Number of tokens of each row before the call, without padding."""
    after: Int[Tensor, " batch"]
    """Number of tokens of each row after the call, without padding."""
    padded: bool
    """True if any row has padding, in this call or an earlier one."""
    _rotary: Rotary | None
    """The model's rotary positions; None for a policy that keeps the model's positions."""

    def __post_init__(self) -> None:
        self._values: dict[str, object] = {}
        self._by_policy: dict[Hashable, Step] = {}

    @property
    def length(self) -> int:
        """Number of new tokens per row, padding included."""
        return self.time.shape[1]

    @property
    def rotary(self) -> Rotary:
        """The model's rotary positions."""
        if self._rotary is None:
            raise ValueError("this policy uses rotary positions; set `moves_positions = True` in its class")
        return self._rotary

    def for_policy(self, policy: Hashable, rotary: Rotary | None = None) -> Step:
        """Return the copy of this step that all layers of one policy share.

        In the copy, `compute_once` returns results of this policy only.
        `rotary` has the rotary positions of these layers; None if the policy keeps the model's positions.
        """
        if policy not in self._by_policy:
            own = self._by_policy[policy] = copy.copy(self)
            own._values, own._rotary = {}, rotary
        return self._by_policy[policy]

    def compute_once(self, name: str, make: Callable[[], Shared]) -> Shared:
        """Call `make` on the first request for `name`, and return this result to all layers of the policy.

        The result may depend on the sizes of the policy. It must not depend on the layer.
        """
        if name not in self._values:
            self._values[name] = make()
        return self._values[name]  # pyright: ignore[reportReturnType]

    @property
    def bounds(self) -> tuple[int, int]:
        """Token count of the shortest row before the step, and of the longest row after the step."""
        return self.compute_once("bounds", self._bounds)

    def _bounds(self) -> tuple[int, int]:
        if self.padded:
            return int(self.before.min()), int(self.after.max())
        before = int(self.before[0])
        return before, before + self.length

    def narrow(self, first: int, length: int) -> Step:
        """Return a step with only `length` of this step's tokens, beginning at index `first`."""
        if first == 0 and length == self.length:
            return self
        return self.compute_once(f"part {first} {length}", lambda: self._narrow(first, length))

    def _narrow(self, first: int, length: int) -> Step:
        columns = slice(first, first + length)
        if self.padded:
            before, after = (
                self.before + (self.time[:, :c] >= 0).sum(dim=1) for c in (first, first + length)
            )
        else:
            before, after = self.before + first, self.before + first + length
        return Step(
            self.time[:, columns],
            self.position_ids[:, columns],
            self.past_length + first,
            before,
            after,
            self.padded,
            self._rotary,
        )


class PastKeyValues(NamedTuple):
    """Past keys and values for the queries of a piece, that is, of some consecutive new tokens.

    The queries also read the keys and values of the piece itself. `valid` is True for past tokens that are
    read; None means that all past tokens are read.
    """

    keys: Float[Tensor, "batch key_heads columns width"]
    values: Float[Tensor, "batch key_heads columns value_width"]
    valid: Bool[Tensor, "batch columns"] | None


class RetainedValues(NamedTuple):
    """Value vectors that a memory retains, in any order. Heads with fewer vectors are padded with zeros."""

    values: Float[Tensor, "batch key_heads columns width"]
    """All retained values."""
    read_values: Float[Tensor, "batch key_heads read width"] | None = None
    """Values that the last token read; None if it read all values."""
    fetched_values: Float[Tensor, "batch key_heads fetched width"] | None = None
    """Values of the tokens that were selected by score for the last token; None without such a selection."""


class LayerMemory(ABC):
    """Memory of one layer.

    `state` is a flat dict of tensors with the batch as first axis. It is empty before the first token.

    `attend` splits new tokens into pieces. For each piece it calls `retrieve`, `generate` and `compress`.
    `retrieve` calls `load` for offloaded tokens. A policy overrides the methods that it changes.
    """

    layout: PairLayout = PairLayout(0)
    """Layout of the model's rotary pairs; no pairs for a policy that keeps the model's positions."""
    longest_piece: int | None = None
    """Largest number of tokens in a piece; None for no limit."""
    tracks_reads: bool = False
    """True if the memory records which tokens were read, for `get_retained_values`."""
    num_marks: int = 0
    """Number of last coordinates of each value vector that only identify its token."""
    state_names: ClassVar[frozenset[str]] = frozenset()
    """Names of tensors that each state with tokens has, for the check of a file."""

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
        """Return the attention output of the new tokens, and update the state.

        Args:
            query: Queries of the new tokens, [batch, heads, length, width].
            keys: Keys of the new tokens, [batch, key_heads, length, width].
            values: Values of the new tokens, [batch, key_heads, length, value_width].
            step: Times and positions of the new tokens.
            scoring: The model's scale, soft cap and learned sinks.
        """
        pieces = step.compute_once("pieces", lambda: self.pieces(step))
        if len(pieces) == 1:
            return self._piece(query, keys, values, step, scoring)
        out, first = [], 0
        for length in pieces:
            part, columns = step.narrow(first, length), slice(first, first + length)
            new = (query[:, :, columns], keys[:, :, columns], values[:, :, columns])
            out.append(self._piece(*new, part, scoring))
            first += length
        return torch.cat(out, dim=2)

    def _piece(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        past = self.retrieve(query, step, scoring)
        out = self.generate(query, keys, values, past, step, scoring)
        self.compress(query, keys, values, step, scoring)
        return out

    def pieces(self, step: Step) -> list[int]:
        """Return the lengths of the pieces into which `attend` splits a step, by default `longest_piece`."""
        longest = self.longest_piece or step.length
        return [min(longest, step.length - first) for first in range(0, step.length, longest)]

    def retrieve(self, query: Tensor, step: Step, scoring: Scoring) -> PastKeyValues | None:
        """Return the past keys and values for a piece, by default all that are in the state; None for none.

        Arguments are those of `generate`.
        """
        if "keys" not in self.state:
            return None
        return PastKeyValues(self.state["keys"], self.state["values"], self.state.get("valid"))

    def load(self, chunks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of offloaded chunks, on the model's device."""
        raise NotImplementedError(
            f"{type(self).__name__} does not support offloading: all tokens are on the model's device"
        )

    def generate(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        past: PastKeyValues | None,
        step: Step,
        scoring: Scoring,
    ) -> Tensor:
        """Return the attention output of a piece, that is, of some consecutive new tokens.

        The queries read `past` and, causally, the piece itself. By default one softmax covers all keys.

        Args:
            query: Queries of the piece, "batch heads length width".
            keys: Keys of the piece, "batch key_heads length width".
            values: Values of the piece, "batch key_heads length value_width".
            past: Result of `retrieve`; None if there is no past.
            step: The piece as a step.
            scoring: The model's scale, soft cap and learned sinks.
        """
        valid = step.time >= 0 if step.padded else None
        if past is not None:
            if past.valid is not None or valid is not None:
                valid = extend_valid(past.valid, past.keys.shape[2], step)
            keys, values = torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2)
        return causal_attention(query, keys, values, valid, scoring)

    @abstractmethod
    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Add the new tokens to the state, and evict those above the budget; arguments as for `attend`."""

    def get_retained_values(self, count: Int[Tensor, " batch"]) -> RetainedValues | None:
        """Return the retained values (V) after `count` tokens of each text; None before the first token.

        By default, the method returns the values in the state and assumes that the last token has read all of
        them. A memory that reads only a part of its tokens, or offloads values, overrides this method.
        """
        values, valid = self.state.get("values"), self.state.get("valid")
        if values is None:
            return None
        return RetainedValues(
            values if valid is None else values[:, :, : valid.shape[1]] * valid[:, None, :, None]
        )

    def count_retained(self, count: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return the number of tokens of each text that a key head retains; `count` is the text's length.

        By default these are the tokens in the state. A memory with another state overrides this method.
        """
        keys, valid = self.state.get("keys"), self.state.get("valid")
        if keys is None:
            return count
        return count.clamp(max=keys.shape[2]) if valid is None else valid.sum(dim=1).to(count.device)

    def measure(self) -> LayerStats:
        """Return statistics of the prompt that the layer has just read, for `ContextPolicy.allocate`."""
        raise NotImplementedError(
            f"{type(self).__name__} does not implement measure(), which a policy with allocate() needs"
        )

    def shrink(self, budget: int) -> None:
        """Reduce the budget to `budget` tokens.

        If the prompt that the layer has just read is longer, the call evicts tokens of the prompt, unless
        `settle` was called before.

        Raises:
            ValueError: On a budget that is invalid for the policy.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not implement shrink(), which a policy with allocate() needs"
        )

    def settle(self) -> None:
        """Make the budget final. Free the tensors of the prompt that only `shrink` needs."""
        raise NotImplementedError(
            f"{type(self).__name__} does not implement settle(), which a policy with allocate() needs"
        )

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens of every row; `count` is the number of tokens of each row.

        Raises:
            ValueError: If the earlier state cannot be restored.
        """
        raise ValueError(f"{type(self).__name__} cannot be cropped; reset the cache, or load a saved cache")

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `rows`, in this order; indices may repeat."""
        self.state = {name: x.index_select(0, rows.to(x.device)) for name, x in self.state.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that `load_state_dict` needs; by default the state."""
        return self.state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        self.state = state

    def get_tensors(self, place: str | None = None) -> Iterator[Tensor]:
        """Yield all tensors in the memory of the model's device, or those offloaded to `place` instead.

        By default nothing is offloaded.
        """
        return iter(()) if place else find_tensors(vars(self))

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes in the memory of the model's device, or those offloaded to `place` instead."""
        return count_bytes(self.get_tensors(place))


class ContextPolicy(ABC):
    """Config of a policy: a frozen dataclass that raises ValueError on invalid sizes.

    Its class variables apply to all layers, even if `for_layer` returns different policies.
    """

    moves_positions: ClassVar[bool] = False
    """True if the policy gives tokens other positions than the model does."""
    reads_hidden: ClassVar[bool] = False
    """True if the policy reads the inputs of the attention layers."""
    reads_twice: ClassVar[bool] = False
    """True if the model reads every prompt a second time, for the scores of its tokens."""
    reads_rotary: ClassVar[bool] = False
    """True if the policy computes with the model's rotary positions, although it moves no token."""
    drops: ClassVar[bool] = True
    """False if the policy keeps all tokens."""
    exact_bytes: ClassVar[bool] = True
    """False if the number of tokens depends on the text; `nbytes` then returns an upper bound."""
    can_crop: ClassVar[bool] = False
    """True if a cache can be cropped to any shorter length."""
    split_invariant: ClassVar[bool] = True
    """True if the split of a text into calls changes no result; assisted decoding needs it and `can_crop`."""
    query_aware: ClassVar[bool] = False
    """True if the last tokens of a prompt decide which cached tokens the generated tokens read.

    The prompt should then be passed in one call, with the question at its end."""

    reads_whole: ClassVar[bool] = False
    """True if the tokens of a prompt read all tokens before them, so another policy may read the prompt."""

    @property
    def inner(self) -> ContextPolicy:
        """Policy of the cache; `self`, unless the policy only changes how another one reads a prompt."""
        return self

    def map_inner(self, change: Callable[[ContextPolicy], ContextPolicy]) -> ContextPolicy:
        """Return this policy with a changed policy of the cache."""
        return change(self)

    @property
    def file_policy(self) -> ContextPolicy:
        """Policy whose name and fields a cache file has; by default `self`."""
        return self

    @property
    def prompt_reader(self) -> PromptReader | None:
        """Object that reads the first tokens of a text; None for the attention of the memory."""
        return None

    def for_tokenizer(self, tokenize: Callable[[str], Sequence[int]]) -> ContextPolicy:
        """Return the policy for texts of a tokenizer; `tokenize` returns the token ids of a text."""
        del tokenize
        return self

    def call_length(self, prompt: int, block: int) -> int:
        """Return the number of tokens to read per call: `prompt` if `query_aware`, else `block`."""
        return max(prompt, 1) if self.query_aware else block

    def for_layer(self, index: int, count: int) -> ContextPolicy:
        """Return the policy of layer `index` of `count` layers with full attention; by default `self`."""
        return self

    @property
    def allocates(self) -> bool:
        """True if layer budgets are set while a prompt is read, that is, if `allocate` is overridden."""
        return type(self).allocate is not ContextPolicy.allocate

    def allocate(self, stats: Sequence[LayerStats], shape: CacheShape) -> Sequence[int] | None:
        """Return one token budget for each layer that has read the prompt so far, in order.

        The cache calls this method after each layer of a call with several tokens. So only one layer at a
        time stores the whole prompt, and earlier layers store at most their budgets of tokens. Evicted tokens
        cannot be restored, so the budget of a layer should only decrease from one call of this method to the
        next. All rows of a batch have equal budgets. If the method returns None, the layer that has just read
        the prompt uses its configured budget.

        The memories of a policy that overrides this method must implement `measure`, `shrink` and `settle`.
        """
        return None

    @abstractmethod
    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""

    @abstractmethod
    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of a cache of this shape on the model's device after `tokens` tokens per row.

        A policy without `exact_bytes` returns an upper bound; `PolicyCache.nbytes` has the exact number.
        A policy with `split_invariant` returns the same number for both values of `at_once`.

        Args:
            tokens: Tokens of each row.
            shape: Sizes of the cache.
            at_once: True if the tokens came in one call, False if they came one by one.
        """


def extend_valid(valid: Tensor | None, count: int, step: Step) -> Bool[Tensor, "batch columns"]:
    """Return the mask of tokens that are not padding, after a step.

    `valid` is the mask of the `count` past tokens; None if none of them is padding.
    """
    own = step.time >= 0
    return torch.cat([own.new_ones(len(own), count) if valid is None else valid, own], dim=1)


def check_minimums(policy: ContextPolicy, **minimums: int) -> None:
    """Raise ValueError if a field of a policy is below its minimum."""
    for name, least in minimums.items():
        if getattr(policy, name) < least:
            raise ValueError(f"{name}={getattr(policy, name)}: must be at least {least}")


def check_kernel(kernel: int) -> None:
    """Raise ValueError unless the width of a pooling along the text is odd and positive."""
    if kernel < 1:
        raise ValueError(f"kernel={kernel}: must be at least 1")
    if kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}: must be odd, so that pooled scores stay aligned with tokens")
