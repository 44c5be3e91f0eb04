"""DuoAttention: retrieval heads keep all tokens, streaming heads the first and the last ones.

DuoAttention (Xiao et al. 2024, arXiv 2410.10819) divides the key heads of a model into two kinds. A retrieval
head reads the whole text. A streaming head reads the first `num_sinks` and the last `recent` tokens, as in
StreamingLLM, but at the model's positions. A prompt is read in the same way, so the result does not depend on
the number of tokens per call. The defaults for both numbers are those of the paper's code.

Differences from the paper: it learns a gate for each key head, and keeps the heads with the largest gates.
Here the retrieval scores of Wu et al. (`memory.context.retrieval_heads`) rate the heads. The score of a key
head is the largest score of its query heads. The paper's code reads the first call with full attention in
all heads. Here streaming heads never do.
Memory: all tokens in a part `share` of the key heads, `num_sinks + recent` tokens in the others.
Use it for questions about a long text, with a model whose scores are known.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from scrubjay.memory.context.policies.base import (
    CacheShape,
    ContextPolicy,
    LayerMemory,
    RetainedValues,
    Step,
    check_minimums,
)
from scrubjay.memory.context.policies.buffers import compact, compute_capacity, find_tensors
from scrubjay.memory.context.policies.dense import BLOCK, Scoring, masked_attention
from scrubjay.memory.context.policies.flat_table import RaggedTokens
from scrubjay.memory.context.policies.full import FullMemory

_LENGTH_BYTES = 8


@dataclass(frozen=True)
class DuoPolicy(ContextPolicy):
    """Keep all tokens in retrieval heads, and only the first and the last tokens in all other heads."""

    share: float = 0.5
    """Share of the key heads of all layers that keep all tokens, from 0 to 1."""
    num_sinks: int = 128
    """Number of first tokens that the other heads keep."""
    recent: int = 256
    """Number of last tokens that the other heads keep and read, with the newest token."""
    scores: tuple[tuple[float, ...], ...] | None = field(default=None, repr=False)
    """Retrieval score of each query head, by layer with full attention. Default: the stored scores of the
    model (`memory.context.retrieval_heads`)."""

    def __post_init__(self) -> None:
        check_minimums(self, recent=1, num_sinks=0)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}: must be from 0 to 1")
        if self.scores is not None:
            object.__setattr__(self, "scores", tuple(map(tuple, self.scores)))
            for index, row in enumerate(self.scores):
                if not row or not all(map(math.isfinite, row)):
                    raise ValueError(f"scores[{index}]={row}: must be one finite number per query head")

    @property
    def num_streamed(self) -> int:
        """Number of tokens that a streaming head keeps."""
        return self.num_sinks + self.recent

    def count_full(self, key_heads: int) -> int:
        """Return how many of `key_heads` heads keep all tokens."""
        return math.floor(self.share * key_heads + 0.5)

    def select_heads(self, key_heads: int) -> list[list[int]]:
        """Return the key heads of each layer that keep all tokens.

        `key_heads` is the number of key heads of a layer. Among equal scores the earlier head wins.
        """
        if self.scores is None:
            raise ValueError("scores=None: pass the retrieval scores of the model's heads")
        heads_by_layer: list[list[int]] = [[] for _ in self.scores]
        worth = {}
        for layer, row in enumerate(self.scores):
            shared = len(row) // key_heads
            for head in range(key_heads):
                worth[layer, head] = max(row[head * shared : (head + 1) * shared])
        best = sorted(worth, key=lambda place: (-worth[place], place))
        for layer, head in best[: self.count_full(len(worth))]:
            heads_by_layer[layer].append(head)
        return [sorted(heads) for heads in heads_by_layer]

    def for_layer(self, index: int, count: int) -> ContextPolicy:
        """Return the policy of layer `index` of `count` layers with full attention.

        Raises:
            ValueError: If there are no scores, or scores of another number of layers.
        """
        if self.scores is None:
            raise ValueError("scores=None: pass the retrieval scores of the model's heads")
        if len(self.scores) != count:
            raise ValueError(
                f"scores has {len(self.scores)} rows: must have {count}, one for each layer with full "
                "attention"
            )
        return DuoLayerPolicy(self, index)

    def build(self) -> LayerMemory:
        """Return an empty memory for the first layer."""
        return DuoMemory(self, 0)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the keys and values of both kinds of heads, unused capacity included."""
        heads = shape.layers * shape.key_heads
        return self.count_bytes(tokens, shape, self.count_full(heads), heads)

    def count_bytes(self, tokens: int, shape: CacheShape, full_heads: int, heads: int) -> int:
        """Return the bytes of `heads` key heads, `full_heads` of which keep all tokens."""
        streams = heads - full_heads
        columns = compute_capacity(tokens) * full_heads + min(tokens, self.num_streamed) * streams
        lengths = shape.batch * streams * _LENGTH_BYTES if tokens else 0
        width = shape.key_width + shape.value_width
        return columns * shape.batch * width * shape.itemsize + lengths


@dataclass(frozen=True)
class DuoLayerPolicy(ContextPolicy):
    """Policy of one layer under `DuoPolicy`."""

    policy: DuoPolicy
    """Policy of all layers."""
    index: int
    """Index of the layer among those with full attention."""

    def build(self) -> LayerMemory:
        """Return an empty memory for the layer."""
        return DuoMemory(self.policy, self.index)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the layer."""
        full_heads = len(self.policy.select_heads(shape.key_heads)[self.index])
        return self.policy.count_bytes(tokens, replace(shape, layers=1), full_heads, shape.key_heads)


class DuoMemory(LayerMemory):
    """Memory of one layer.

    Retrieval heads have a memory of their own, `full`. State: the tokens of the streaming heads as
    `RaggedTokens` in `stream_keys`, `stream_values` and `stream_lengths`.
    """

    _names: ClassVar[tuple[str, ...]] = ("stream_keys", "stream_values", "stream_lengths")

    def __init__(self, policy: DuoPolicy, index: int) -> None:
        super().__init__()
        self.policy, self.index = policy, index
        self.full = FullMemory()
        # Key heads of each kind, known from the first token on.
        self._full_heads: list[int] = []
        self._streams: list[int] = []
        self._tokens: RaggedTokens | None = None

    @property
    def tokens(self) -> RaggedTokens | None:
        """Tokens of the streaming heads; None before the first token, and without such heads."""
        if "stream_lengths" not in self.state:
            return None
        if self._tokens is None or self._tokens.lengths is not self.state["stream_lengths"]:
            self._tokens = RaggedTokens(*(self.state[name] for name in self._names))
        return self._tokens

    def _store(self, tokens: RaggedTokens) -> None:
        sizes = tokens.sizes
        parts = [compact(part) for part in (tokens.keys, tokens.values, tokens.lengths)]
        self.state = dict(zip(self._names, parts, strict=True))
        self._tokens = RaggedTokens(*parts)
        vars(self._tokens)["sizes"] = sizes

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return the attention output of the new tokens, and update the state."""
        groups = keys.shape[1]
        if not self._full_heads and not self._streams:
            self._select_heads(query.shape[1], groups)
        if not self._streams:
            return self.full.attend(query, keys, values, step, scoring)
        by_group = query.unflatten(1, (groups, -1))
        sinks = None if scoring.sinks is None else scoring.sinks.view(groups, -1)
        out = []
        for heads, attend in ((self._full_heads, self.full.attend), (self._streams, self._stream)):
            if heads:
                own = replace(scoring, sinks=None if sinks is None else sinks[heads].flatten())
                part = attend(by_group[:, heads].flatten(1, 2), keys[:, heads], values[:, heads], step, own)
                out.append(part.unflatten(1, (len(heads), -1)))
        order = [*self._full_heads, *self._streams]
        places = [order.index(head) for head in range(groups)]
        return torch.cat(out, dim=1)[:, places].flatten(1, 2)

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Do nothing: `attend` has already stored the new tokens."""

    def _select_heads(self, heads: int, groups: int) -> None:
        row = (self.policy.scores or ())[self.index]
        if len(row) != heads:
            raise ValueError(
                f"scores[{self.index}] has {len(row)} numbers: must have {heads}, one for each query head"
            )
        self._full_heads = self.policy.select_heads(groups)[self.index]
        self._streams = [head for head in range(groups) if head not in self._full_heads]

    def _stream(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return the attention output of streaming heads, and store their new tokens."""
        past = self.tokens
        if step.length > 1 or step.padded:
            out = self._attend_to_stream(query, keys, values, past, step, scoring)
            self._append(keys, values, past, step)
            return out
        tokens = self._append(keys, values, past, step)
        return masked_attention(query, tokens.pad(tokens.keys), tokens.pad(tokens.values), None, scoring)

    def _append(self, keys: Tensor, values: Tensor, past: RaggedTokens | None, step: Step) -> RaggedTokens:
        """Store the new tokens, without those that no later token reads, and return all tokens."""
        tokens = RaggedTokens.from_columns(keys, values, step.time >= 0 if step.padded else None)
        tokens = tokens if past is None else past.append(tokens)
        sinks, recent = self.policy.num_sinks, self.policy.recent
        if tokens.longest > sinks + recent:
            column = torch.arange(tokens.longest, device=keys.device)
            stays = (column < sinks) | (column >= tokens.lengths[..., None] - recent)
            if tokens.is_uniform:
                stays = stays[0, 0]
                columns = (tokens.pad(part)[:, :, stays] for part in (tokens.keys, tokens.values))
                table_keys, table_values = (part.flatten(0, 2) for part in columns)
                lengths = torch.full_like(tokens.lengths, sinks + recent)
                tokens = RaggedTokens(table_keys, table_values, lengths)
            else:
                tokens = tokens.select(stays[tokens.valid])
        self._store(tokens)
        assert self.tokens is not None
        return self.tokens

    def _attend_to_stream(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        past: RaggedTokens | None,
        step: Step,
        scoring: Scoring,
    ) -> Tensor:
        """Return the attention output of new tokens over the first and the last tokens before each of them.

        Args:
            query: Queries of the new tokens, of the streaming heads.
            keys: Keys of the new tokens.
            values: Values of the new tokens.
            past: Earlier tokens of the streaming heads; None if there are none.
            step: Times of the new tokens.
            scoring: The model's scale and soft cap, and the learned sinks of the streaming heads.
        """
        sinks, recent, time, count = self.policy.num_sinks, self.policy.recent, step.time, 0
        if past is not None:
            keys = torch.cat([past.pad(past.keys), keys], dim=2)
            values = torch.cat([past.pad(past.values), values], dim=2)
            count, length = past.longest, past.lengths[:, :1]
            slot = torch.arange(count, device=time.device)
            earlier = torch.where(slot < sinks, slot, step.before[:, None] - length + slot)
            time = torch.cat([earlier.masked_fill(slot >= length, -1), time], dim=1)
        column, out = torch.arange(time.shape[1], device=time.device), []
        for first in range(count, len(column), BLOCK):
            last = min(first + BLOCK, len(column))
            rows = column[first:last, None]
            # Without padding, columns between the first tokens and the last ones need not be read.
            begin = count if step.padded else max(first - recent + 1, count)
            read = torch.cat([column[: min(count + sinks, begin)], column[begin:last]])
            own, other = time[:, first:last, None], time[:, None, read]
            is_kept = (other < sinks) | (other > own - recent)
            mask = (other >= 0) & (other <= own) & is_kept & (read <= rows) | (read == rows)
            queries = query[:, :, first - count : last - count]
            out.append(masked_attention(queries, keys[:, :, read], values[:, :, read], mask, scoring))
        return torch.cat(out, dim=2)

    def get_retained_values(self, count: Int[Tensor, " batch"]) -> RetainedValues | None:
        """Return the retained attention values, all of which the last token has read."""
        tokens, full = self.tokens, self.full.get_retained_values(count)
        if tokens is None:
            return full
        stream_values = tokens.pad(tokens.values)
        columns = max(stream_values.shape[2], 0 if full is None else full.values.shape[2])
        groups = len(self._full_heads) + len(self._streams)
        values = stream_values.new_zeros(len(stream_values), groups, columns, stream_values.shape[3])
        values[:, self._streams, : stream_values.shape[2]] = stream_values
        if full is not None:
            values[:, self._full_heads, : full.values.shape[2]] = full.values
        return RetainedValues(values)

    def count_retained(self, count: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return the smallest number of tokens of each text that a key head retains."""
        tokens = self.tokens
        return count if tokens is None else tokens.lengths.amin(dim=1).to(count.device)

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens of every row, if streaming heads have the last ones of the rest.

        Raises:
            ValueError: If a streaming head has evicted tokens that the shorter text needs.
        """
        tokens, left = self.tokens, (count - columns).clamp(min=0)
        if tokens is not None:
            left = left.to(tokens.lengths.device)[:, None, None]
            length = tokens.lengths[..., None]
            is_whole = length == count.to(length.device)[:, None, None]
            if not bool((is_whole | (left <= self.policy.num_sinks)).all()):
                raise ValueError(
                    "crop: DuoPolicy has evicted tokens of streaming heads that the shorter text may need; "
                    "save the cache before you add tokens, and load it instead of cropping"
                )
            stays = torch.arange(tokens.longest, device=length.device) < left
            self._store(tokens.select(stays.expand_as(tokens.valid)[tokens.valid]))
            if not bool(left.any()):
                self.state = {}
        if self.full.state:
            # A cache crops a shallow copy of this memory, and discards it if another layer raises.
            self.full = copy.copy(self.full)
            self.full.state = dict(self.full.state)
            self.full.crop(columns, count)

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `rows`, in this order; indices may repeat."""
        self.full.reorder(rows)
        if (tokens := self.tokens) is not None:
            self._store(tokens.reorder(rows))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of both kinds of heads."""
        names = {"keys": "full_keys", "values": "full_values"}
        return self.state | {names.get(name, name): x for name, x in self.full.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        if not state:
            return
        full = {name.removeprefix("full_"): x for name, x in state.items() if name not in self._names}
        streams = {name: state[name] for name in self._names if name in state}
        if streams.keys() not in (set(), set(self._names)) or full.keys() - {"valid"} not in (
            set(),
            {"keys", "values"},
        ):
            raise TypeError(f"the tensors {sorted(state)} are not those of a layer under DuoPolicy")
        numbers = [full["keys"].shape[1] if "keys" in full else 0]
        numbers.append(streams["stream_lengths"].shape[1] if streams else 0)
        if not sum(numbers):
            raise TypeError("the layer has no heads")
        self._select_heads(len((self.policy.scores or ())[self.index]), sum(numbers))
        if numbers != [len(self._full_heads), len(self._streams)]:
            raise TypeError(f"the layer has {numbers[0]} heads with all tokens, not {len(self._full_heads)}")
        if streams:
            lengths = streams["stream_lengths"]
            most = max(int(lengths.max()), 0)
            fits = bool((lengths >= 0).all()) and int(lengths.sum()) == len(streams["stream_keys"])
            if not fits or most > self.policy.num_streamed or bool((lengths != lengths[:, :1]).any()):
                raise TypeError(f"the lengths {lengths.flatten()[:9].tolist()} do not fit the tokens")
        self.state = streams
        self.full.load_state_dict(full)

    def get_tensors(self, place: str | None = None) -> Iterator[Tensor]:
        """Yield all tensors in the memory of the model's device; nothing is offloaded."""
        return iter(()) if place else find_tensors([self.state, self.full.state])
