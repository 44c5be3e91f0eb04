"""Base classes of memories with selected chunks: a query reads its own chunk and the top-k stored chunks.

Every `chunk_size` steps of an episode form a chunk. For each chunk a layer stores keys, values and a summary
per head. Each head of a query scores the summaries and reads the best `top_k` chunks
(`kernels.chunk_retrieval`). `kernels.merge` combines this attention with causal attention to the query's own
chunk, weighted by the softmax normalizers. Gradients flow into stored chunks, back to the start of the
segment.

Rotary positions are compact. A key is rotated by its position in its chunk. A query is rotated by its
position in its own chunk. To read stored chunks, the query is rotated by `chunk_size` more. Every stored
chunk therefore appears to be the previous one, regardless of its age.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.kernels import choose_chunks, chunk_retrieval, merge
from scrubjay.memory.contract.base import Memory, MemoryConfig, Read, Recall, State, add_affixes, select_part
from scrubjay.memory.contract.clock import Clock, shift_window
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.incremental.chunked import ChunkedLayerStepper, ChunkedStepper
from scrubjay.memory.parts.chunks import (
    build_empty_state,
    is_finite_state,
    last_steps,
    plan_chunks,
    push,
    stored_steps,
    take,
    visited_slots,
    written_slots,
    zero_slots,
)
from scrubjay.memory.parts.layers import feed_forward
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.sparse.local_chunk import (
    ChunkTokens,
    OwnChunkAttention,
    attend_own_chunk,
    score_own_chunk,
)


@dataclass(frozen=True)
class ChunkedConfig(MemoryConfig):
    """Base configuration of memories with selected chunks. Raises ValueError on an invalid size."""

    chunk_size: int = 16
    """Steps per chunk."""
    num_chunks: int = 32
    """Number of stored chunks; the oldest is dropped first."""
    top_k: int = 4
    """Number of stored chunks that each head of a query reads, besides the query's own chunk."""
    num_layers: int = 1
    """Number of layers, each with its own store."""
    num_heads: int | None = None
    """Attention heads; by default the largest divisor of `dim` up to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("chunk_size", "num_chunks", "top_k", "num_layers")
        resolve_heads(self.dim, self.num_heads)


class StoredChunks(NamedTuple):
    """Stored chunks that queries select from."""

    keys: Float[Tensor, "batch chunks chunk_size heads width"]
    values: Float[Tensor, "batch chunks chunk_size heads width"]
    summaries: Float[Tensor, "batch chunks heads summary_width"]
    readable: Bool[Tensor, "batch time chunks"]


ChunkAttention = tuple[Float[Tensor, "batch time heads width"], Float[Tensor, "batch time heads"]]
"""Attention output and its log-normaliser (logsumexp of the scores)."""

Landmarks = Float[Tensor, "batch chunks dim"]
"""Vector per completed chunk that passes through the layers."""


def scores_within(
    query: Float[Tensor, "batch heads width"], stored_chunks: StoredChunks
) -> Float[Tensor, "batch heads chunks chunk_size"]:
    """Return the attention scores between one query per batch row and all stored steps."""
    return torch.einsum("bhd,bmchd->bhmc", query, stored_chunks.keys) * query.shape[-1] ** -0.5


def join_weights(
    own: Float[Tensor, "batch heads chunk_and_1"],
    chunk_scores: Float[Tensor, "batch heads chunks 1"],
    within: Float[Tensor, "batch heads chunks chunk_size"],
    combine: Literal["hierarchical", "joint"],
) -> tuple[Float[Tensor, "batch heads chunk_and_1"], Float[Tensor, "batch heads chunks chunk_size"]]:
    """Return the attention weights of the steps of the query's own chunk, and of the steps of stored chunks.

    `own` and `within` hold the scores of these steps. `chunk_scores` holds the scores of chunks, -inf for
    chunks that are not selected.
    """
    if combine == "hierarchical":
        far = chunk_scores + torch.log_softmax(within, dim=-1)
    else:
        far = within
    far = far.masked_fill(chunk_scores == float("-inf"), float("-inf"))
    weights = torch.softmax(torch.cat([own, far.flatten(2)], dim=2), dim=2)
    return weights[..., : own.shape[2]], weights[..., own.shape[2] :].unflatten(2, far.shape[2:])


class ChunkedLayer(OwnChunkAttention):
    """Layer with attention to the query's own chunk and to selected chunks, and a feed-forward block."""

    combine: ClassVar[Literal["hierarchical", "joint"]]
    """Value of the argument `combine` of `kernels.chunk_retrieval`, which weights the selected chunks."""
    summary_ratio: ClassVar[int] = 1
    """Width of a summary, in units of a head's width."""

    def __init__(self, config: ChunkedConfig) -> None:
        super().__init__(config.dim, config.num_heads, config.chunk_size)
        self.top_k = config.top_k
        self.feed_forward = feed_forward(config.dim, 2 * config.dim)

    @abstractmethod
    def summarise(
        self,
        keys: Float[Tensor, "batch chunks chunk_size heads width"],
        values: Float[Tensor, "batch chunks chunk_size heads width"],
        landmarks: Landmarks | None,
    ) -> tuple[Float[Tensor, "batch chunks heads summary_width"], Landmarks | None]:
        """Return the summaries of chunks, and the landmarks for the next layer; None without landmarks."""

    def choose(
        self, query: Float[Tensor, "batch time heads width"], stored_chunks: StoredChunks
    ) -> ChunkAttention:
        """Return the attention output of rotated queries over the chunks that their heads select."""
        return chunk_retrieval(
            self.rotate(query, self.chunk_size),
            stored_chunks.keys,
            stored_chunks.values,
            stored_chunks.summaries,
            stored_chunks.readable,
            top_k=self.top_k,
            combine=self.combine,
            return_lse=True,
        )

    def recall(
        self,
        x: Float[Tensor, "batch time dim"],
        query: Float[Tensor, "batch time heads width"],
        stored_chunks: StoredChunks,
    ) -> Float[Tensor, "batch time heads width"]:
        """Return the attention output of the inputs `x` over stored chunks alone."""
        return self.choose(query, stored_chunks)[0]

    def mix(
        self,
        x: Float[Tensor, "batch time dim"],
        own: ChunkAttention,
        query: Float[Tensor, "batch time heads width"],
        stored_chunks: StoredChunks,
    ) -> Float[Tensor, "batch time heads width"]:
        """Return the attention output of each input in `x` over its own chunk and selected chunks.

        `own` is the result of `attend_own_chunk`: the attention of each input to its own chunk alone.
        """
        return merge([own, self.choose(query, stored_chunks)])

    def weigh(
        self,
        x: Float[Tensor, "batch dim"],
        query: Float[Tensor, "batch heads width"],
        own: Float[Tensor, "batch heads chunk_and_1"],
        stored_chunks: StoredChunks,
    ) -> tuple[Float[Tensor, "batch heads chunk_and_1"], Float[Tensor, "batch heads chunks chunk_size"]]:
        """Return the attention weights of `mix`: over steps of the query's own chunk, and over stored steps.

        `own` contains the scores of the steps of the query's own chunk.
        """
        far = self.rotate(query, self.chunk_size)[:, None]
        choice = choose_chunks(
            stored_chunks.readable, top_k=self.top_k, summary_query=far, summaries=stored_chunks.summaries
        )
        # Score of each chunk, -inf if it is not selected.
        count = stored_chunks.keys.shape[1]
        scores = choice.scores.new_full((*far.shape[:3], count + 1), float("-inf"))
        place = choice.chunks.long().remainder(count + 1)
        scores = scores.scatter_(3, place, choice.scores)[:, 0, :, :count, None]
        return join_weights(own, scores, scores_within(far[:, 0], stored_chunks), self.combine)

    def stepper_class(self) -> type[ChunkedLayerStepper] | None:
        """Return the stepper class of the layer; None if the layer has no in-place stepper."""
        return (
            ChunkedLayerStepper
            if self.uses_methods_of(ChunkedLayer, "project", "rotate", "choose", "mix", "finish")
            else None
        )

    def uses_methods_of(self, base_class: type[ChunkedLayer], *names: str) -> bool:
        """Return True if the layer inherits these methods of `base_class` unchanged."""
        return all(getattr(type(self), name) is getattr(base_class, name) for name in names)

    def finish(
        self,
        x: Float[Tensor, "batch time dim"],
        tokens: ChunkTokens,
        keys: Float[Tensor, "batch chunk_and_time dim"],
        values: Float[Tensor, "batch chunk_and_time dim"],
        place: Int[Tensor, "batch time"],
        stored_chunks: StoredChunks,
    ) -> Float[Tensor, "batch time dim"]:
        """Return the output of the layer.

        Args:
            x: Inputs of the layer.
            tokens: Queries, keys and values of the inputs.
            keys: Keys of the last `chunk_size` steps before the segment, and of the segment.
            values: Values of the same steps.
            place: Positions of the inputs in their chunks.
            stored_chunks: Stored chunks.
        """
        own = attend_own_chunk(tokens.query, keys, values, place, self.chunk_size)
        read = self.mix(x, own, tokens.query, stored_chunks)
        x = x + self.out(read.flatten(2).to(self.out.weight.dtype))
        return x + self.feed_forward(x)


class _StepContext(NamedTuple):
    """Masks and positions of a step, shared by all layers."""

    visible: Bool[Tensor, "batch chunk_size"]
    """Mask of the last `chunk_size` steps: True for steps of the current episode."""
    readable: Bool[Tensor, "batch 1 chunks"]
    place: Int[Tensor, "batch 1"]
    """Position of the step in its chunk."""


class ChunkedMemory(Memory):
    """Stack of layers with attention to the query's own chunk and to selected chunks.

    State entries of layer l:

    - `keys_l` and `values_l` `[batch, chunks, chunk_size, dim]` and `summaries_l`
      `[batch, chunks, summary_ratio * dim]`: stored chunks, oldest first, in the last slots. Unused slots are
      zero.
    - `recent_keys_l` and `recent_values_l` `[batch, chunk_size, dim]`: keys and values of the last steps.

    The entry `time` `[batch]` is the number of steps in the episode.
    """

    retrieves = True
    max_segment = 4096  # each step has a mask over all chunks of the segment

    def __init__(self, config: ChunkedConfig, layers: Sequence[ChunkedLayer]) -> None:
        super().__init__(config)
        self.chunk_size, self.num_chunks = config.chunk_size, config.num_chunks
        self.layers = cast("list[ChunkedLayer]", nn.ModuleList(layers))

    def landmarks(self, batch: int, chunks: int) -> Landmarks | None:
        """Return the initial landmark of each chunk, which the first layer updates; None for no landmarks."""
        return None

    def initial_state(self, batch_size: int) -> State:
        """Return empty stores."""
        shapes = {
            "keys": (self.num_chunks, self.chunk_size, self.dim),
            "values": (self.num_chunks, self.chunk_size, self.dim),
            "summaries": (self.num_chunks, self.layers[0].summary_ratio * self.dim),
            "recent_keys": (self.chunk_size, self.dim),
            "recent_values": (self.chunk_size, self.dim),
        }
        return build_empty_state(self, batch_size, len(self.layers), shapes)

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return the attention output of queries `x` over stored chunks, summed over layers.

        The output is zero until a chunk is stored.
        """
        time = state["time"]
        readable = written_slots(time, self.chunk_size, self.num_chunks)[:, None].expand(-1, x.shape[1], -1)
        place = (time % self.chunk_size)[:, None].expand(-1, x.shape[1])
        total = torch.zeros_like(x)
        for index, layer in enumerate(self.layers):
            stored_chunks = self._split_chunks(select_part(state, suffix=f"_{index}"), readable)
            read = layer.recall(x, layer.project(x, place, self.state_dtype).query, stored_chunks)
            total = total + layer.out(read.flatten(2).to(layer.out.weight.dtype))
        return total

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance by one step: read the completed chunks, then store this step."""
        time, y = state["time"], x[:, None]
        context = self._step_context(time)
        completes = time % self.chunk_size == self.chunk_size - 1
        # Rows complete their chunks at different steps; skip the summaries if no row does.
        everywhere = torch.compiler.is_compiling() or bool(completes.any())
        landmarks = self.landmarks(x.shape[0], 1)
        after: State = {"time": time + 1}
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            tokens, keys, values, stored_chunks = self._project_step(layer, y, own, context)
            y = layer.finish(y, tokens, keys, values, context.place, stored_chunks)
            own |= {"recent_keys": keys[:, 1:].clone(), "recent_values": values[:, 1:].clone()}
            if everywhere:
                chunk = {"keys": keys[:, None, 1:], "values": values[:, None, 1:]}
                summaries, landmarks = layer.summarise(*map(self._by_heads, chunk.values()), landmarks)
                chunk["summaries"] = summaries.flatten(2)
                own |= {name: push(own[name], item[:, 0], completes) for name, item in chunk.items()}
            after |= add_affixes(own, suffix=f"_{index}")
        return y[:, 0], after

    def stepper(self, state: State) -> Stepper:
        """Return a `Stepper` that continues from `state` and updates its own buffers in place."""
        classes = {layer.stepper_class() for layer in self.layers}
        steps = classes.pop()
        if steps is None or classes or not self.can_use_stepper(ChunkedMemory, state):
            return super().stepper(state)
        return ChunkedStepper(
            self.layers, self.blank_unwritten(state), self.chunk_size, self.landmarks, steps
        )

    def _step_context(self, time: Int[Tensor, " batch"]) -> _StepContext:
        return _StepContext(
            visited_slots(time, self.chunk_size),
            written_slots(time, self.chunk_size, self.num_chunks)[:, None],
            (time % self.chunk_size)[:, None],
        )

    def _project_step(
        self, layer: ChunkedLayer, y: Float[Tensor, "batch 1 dim"], own: State, context: _StepContext
    ) -> tuple[ChunkTokens, Tensor, Tensor, StoredChunks]:
        """Return the query, key and value of one step, the recent keys and values, and the stored chunks."""
        tokens = layer.project(y, context.place, self.state_dtype)
        keys, values = (
            torch.cat([zero_slots(own[f"recent_{name}"], context.visible), new.flatten(2)], dim=1)
            for name, new in (("keys", tokens.key), ("values", tokens.value))
        )
        return tokens, keys, values, self._split_chunks(own, context.readable)

    @torch.no_grad()
    def recall(self, x: Float[Tensor, "batch dim"], state: State) -> Recall:
        """Return the attention weights of all layers over a step's own chunk and over stored chunks."""
        time, y = state["time"], x[:, None]
        context = self._step_context(time)
        recent = last_steps(time, self.chunk_size)
        chunks = stored_steps(time, self.chunk_size, self.num_chunks)
        reads = {}
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            tokens, keys, values, stored_chunks = self._project_step(layer, y, own, context)
            query = tokens.query[:, 0]
            near, far = layer.weigh(
                y[:, 0], query, score_own_chunk(query, keys, context.place[:, 0]), stored_chunks
            )
            reads[f"own chunk, layer {index}"] = Read.from_weights(recent, near.mean(1))
            reads[f"chunks, layer {index}"] = Read.from_weights(chunks, far.mean(1))
            y = layer.finish(y, tokens, keys, values, context.place, stored_chunks)
        return Recall(reads, {})

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment in one batched pass; `start` may be True at any step."""
        clock = Clock.from_starts(state["time"], start)
        plan = plan_chunks(clock, self.chunk_size, self.num_chunks, self.chunk_size)
        place = clock.chunk_position(self.chunk_size)
        landmarks = self.landmarks(*plan.steps.shape[:2])
        after: State = {"time": clock.age_after}
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            tokens = layer.project(x, place, self.state_dtype)
            new = {"keys": tokens.key.flatten(2), "values": tokens.value.flatten(2)}
            recent = select_part(own, prefix="recent_")
            history = {name: torch.cat([recent[name], new[name]], dim=1) for name in new}
            chunks = {name: take(history[name], plan.steps) for name in new}
            summaries, landmarks = layer.summarise(*map(self._by_heads, chunks.values()), landmarks)
            chunks["summaries"] = summaries.flatten(2)
            table = {
                name: torch.cat([own[name][:, plan.num_unwritten :], items], dim=1)
                for name, items in chunks.items()
            }
            x = layer.finish(x, tokens, *history.values(), place, self._split_chunks(table, plan.readable))
            own = {name: plan.store(items, self.num_chunks) for name, items in table.items()}
            own |= {f"recent_{name}": shift_window(recent[name], new[name], clock) for name in new}
            after |= add_affixes(own, suffix=f"_{index}")
        return x, after

    def _by_heads(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch heads width"]:
        return x.unflatten(-1, (self.layers[0].heads, -1))

    def _split_chunks(self, own: State, readable: Bool[Tensor, "batch time chunks"]) -> StoredChunks:
        keys, values, summaries = (self._by_heads(own[name]) for name in ("keys", "values", "summaries"))
        return StoredChunks(keys, values, summaries, readable)

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in unused slots, which may hold NaN. Return a finite state unchanged."""
        if is_finite_state(state):
            return state
        time = state["time"]
        chunks = written_slots(time, self.chunk_size, self.num_chunks)
        is_visited = visited_slots(time, self.chunk_size)
        return {
            name: value
            if name == "time"
            else zero_slots(value, is_visited if name.startswith("recent") else chunks)
            for name, value in state.items()
        }
