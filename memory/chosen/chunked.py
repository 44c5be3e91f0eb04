"""What memories of chosen chunks share: a query reads the chunk that is being filled, and those it chooses.

Every `chunk_size` steps of an episode become a chunk, of which a layer keeps keys, values and a summary per
head. A head of a query scores the summaries and keeps the best `top_k`. What it reads there is joined with
what it reads of its own chunk, causally, by the logarithms of the softmaxes' sums (`kernels.chunk_retrieval`,
`kernels.merge`). Gradients flow into what is stored, to the beginning of the segment.

Positions are rotary and compact: a key is turned by its place in its chunk, a query by its own for its own
chunk, and by a chunk more for all others: each stands right before its own, however long ago it was.
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
from scrubjay.memory.chosen.own import OwnChunkAttention, Tokens, attend_own_chunk, own_scores
from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.recalled import Read as Recall
from scrubjay.memory.contract.recalled import Recalled
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.parts.chunks import (
    blanked,
    empty_layers,
    is_harmless,
    last_steps,
    plan_chunks,
    push,
    seen_steps,
    stored_steps,
    take,
    written_slots,
)
from scrubjay.memory.parts.feed_forward import feed_forward
from scrubjay.memory.parts.recent import shift_window
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.stepping.chunked import ChunkedStepper, LayerSteps


@dataclass(frozen=True)
class ChunkedConfig(MemoryConfig):
    """Sizes of a memory of chosen chunks. Raises ValueError on a size that cannot work."""

    chunk_size: int = 16
    """Steps per chunk."""
    num_chunks: int = 32
    """Chunks kept; the oldest is dropped first."""
    top_k: int = 4
    """Chunks each head of a query reads, beside the one being filled."""
    num_layers: int = 1
    """Layers, each with a store of its own."""
    num_heads: int | None = None
    """Attention heads; by default the largest divisor of `dim` up to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chunk_size", "num_chunks", "top_k", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        resolve_heads(self.dim, self.num_heads)


class Stored(NamedTuple):
    """What a query may choose from."""

    keys: Float[Tensor, "batch chunks chunk_size heads width"]
    values: Float[Tensor, "batch chunks chunk_size heads width"]
    summaries: Float[Tensor, "batch chunks heads summary_width"]
    readable: Bool[Tensor, "batch time chunks"]


Read = tuple[Float[Tensor, "batch time heads width"], Float[Tensor, "batch time heads"]]
"""What was read, and the logarithm of its softmax's sum."""

Landmarks = Float[Tensor, "batch chunks dim"]
"""What runs through the layers for a chunk that is complete."""


def scores_within(
    query: Float[Tensor, "batch heads width"], stored: Stored
) -> Float[Tensor, "batch heads chunks chunk_size"]:
    """Return the scores of single queries with all steps that are stored."""
    return torch.einsum("bhd,bmchd->bhmc", query, stored.keys) * query.shape[-1] ** -0.5


def joined(
    own: Float[Tensor, "batch heads chunk_and_1"],
    of_chunks: Float[Tensor, "batch heads chunks 1"],
    within: Float[Tensor, "batch heads chunks chunk_size"],
    combine: Literal["hierarchical", "joint"],
) -> tuple[Float[Tensor, "batch heads chunk_and_1"], Float[Tensor, "batch heads chunks chunk_size"]]:
    """Return the weights of steps of the own chunk and of others, of which those not chosen score -inf."""
    if combine == "hierarchical":
        far = of_chunks + torch.log_softmax(within, dim=-1)
    else:
        far = within
    far = far.masked_fill(of_chunks == float("-inf"), float("-inf"))
    weights = torch.softmax(torch.cat([own, far.flatten(2)], dim=2), dim=2)
    return weights[..., : own.shape[2]], weights[..., own.shape[2] :].unflatten(2, far.shape[2:])


class ChunkedLayer(OwnChunkAttention):
    """Attention to the own chunk and to chosen ones, and feed-forward, each normed and added."""

    combine: ClassVar[Literal["hierarchical", "joint"]]
    """How what is read of several chunks is weighted: `kernels.chunk_retrieval`."""
    summary_ratio: ClassVar[int] = 1
    """Width of a summary, in units of a head's."""

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
        """Return the summaries of chunks, and what the layer makes of their landmarks."""

    def choose(self, query: Float[Tensor, "batch time heads width"], stored: Stored) -> Read:
        """Return what queries, turned by their places, read of the chunks that their heads choose.

        And the log-normaliser.
        """
        return chunk_retrieval(
            self.turned(query, self.chunk_size),
            stored.keys,
            stored.values,
            stored.summaries,
            stored.readable,
            top_k=self.top_k,
            combine=self.combine,
            return_lse=True,
        )

    def recall(
        self,
        x: Float[Tensor, "batch time dim"],
        query: Float[Tensor, "batch time heads width"],
        stored: Stored,
    ) -> Float[Tensor, "batch time heads width"]:
        """Return what inputs `x`, by their queries, read of stored chunks alone."""
        return self.choose(query, stored)[0]

    def mix(
        self,
        x: Float[Tensor, "batch time dim"],
        own: Read,
        query: Float[Tensor, "batch time heads width"],
        stored: Stored,
    ) -> Float[Tensor, "batch time heads width"]:
        """Return what inputs `x` read in all, `own` of it of their own chunk."""
        return merge([own, self.choose(query, stored)])

    def weigh(
        self,
        x: Float[Tensor, "batch dim"],
        query: Float[Tensor, "batch heads width"],
        own: Float[Tensor, "batch heads chunk_and_1"],
        stored: Stored,
    ) -> tuple[Float[Tensor, "batch heads chunk_and_1"], Float[Tensor, "batch heads chunks chunk_size"]]:
        """Return how much of what `mix` reads is of steps of inputs' own chunks, and of others.

        `own` are the scores of the former.
        """
        far = self.turned(query, self.chunk_size)[:, None]
        chosen = choose_chunks(
            stored.readable, top_k=self.top_k, summary_query=far, summaries=stored.summaries
        )
        # Of each chunk its score, -inf where it is not chosen.
        count = stored.keys.shape[1]
        scores = chosen.scores.new_full((*far.shape[:3], count + 1), float("-inf"))
        place = chosen.chunks.long().remainder(count + 1)
        scores = scores.scatter_(3, place, chosen.scores)[:, 0, :, :count, None]
        return joined(own, scores, scores_within(far[:, 0], stored), self.combine)

    def steps_in_place(self) -> type[LayerSteps] | None:
        """Return what takes the steps of such a layer in place, None if nothing does."""
        return LayerSteps if self.keeps(ChunkedLayer, "tokens", "turned", "choose", "mix", "finish") else None

    def keeps(self, written: type[ChunkedLayer], *names: str) -> bool:
        """Return whether the layer does what is named as `written` does."""
        return all(getattr(type(self), name) is getattr(written, name) for name in names)

    def finish(
        self,
        x: Float[Tensor, "batch time dim"],
        tokens: Tokens,
        keys: Float[Tensor, "batch chunk_and_time dim"],
        values: Float[Tensor, "batch chunk_and_time dim"],
        place: Int[Tensor, "batch time"],
        stored: Stored,
    ) -> Float[Tensor, "batch time dim"]:
        """Return what comes out of the layer.

        Args:
            x: What comes in.
            tokens: What the layer makes of it.
            keys: Of the chunk before the segment, and of the segment.
            values: Likewise.
            place: Of the inputs in their chunks.
            stored: The chunks there are.
        """
        own = attend_own_chunk(tokens.query, keys, values, place, self.chunk_size)
        read = self.mix(x, own, tokens.query, stored)
        x = x + self.out(read.flatten(2).to(self.out.weight.dtype))
        return x + self.feed_forward(x)


class _Moment(NamedTuple):
    """What all layers see of a step's time."""

    seen: Bool[Tensor, "batch chunk_size"]
    """Which of the last steps there have been."""
    readable: Bool[Tensor, "batch 1 chunks"]
    place: Int[Tensor, "batch 1"]
    """Of the step in its chunk."""


class ChunkedMemory(Memory):
    """Layers of attention to the own chunk and to chosen ones.

    State, per layer l: `keys_l` and `values_l` `[batch, chunks, chunk_size, dim]`, `summaries_l`
    `[batch, chunks, dim]`, oldest first and aligned to the end, zeros where nothing was written yet;
    `recent_keys_l` and `recent_values_l` `[batch, chunk_size, dim]`, those of the last steps; and
    `time [batch]`, steps since the episode began.
    """

    retrieves = True

    def __init__(self, config: ChunkedConfig, layers: Sequence[ChunkedLayer]) -> None:
        super().__init__(config)
        self.chunk_size, self.num_chunks = config.chunk_size, config.num_chunks
        self.layers = cast("list[ChunkedLayer]", nn.ModuleList(layers))

    def landmarks(self, batch: int, chunks: int) -> Landmarks | None:
        """Return what runs through the layers for chunks that are complete; by default nothing."""
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
        return empty_layers(self, batch_size, len(self.layers), shapes)

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return what the stores answer to the queries `x`, summed over layers: zeros while all are empty."""
        time = state["time"]
        readable = written_slots(time, self.chunk_size, self.num_chunks)[:, None].expand(-1, x.shape[1], -1)
        place = (time % self.chunk_size)[:, None].expand(-1, x.shape[1])
        total = torch.zeros_like(x)
        for index, layer in enumerate(self.layers):
            stored = self._stored(part_of(state, suffix=f"_{index}"), readable)
            read = layer.recall(x, layer.tokens(x, place, self.state_dtype).query, stored)
            total = total + layer.out(read.flatten(2).to(layer.out.weight.dtype))
        return total

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance by one step: read the chunks completed so far, then store this step."""
        time, y = state["time"], x[:, None]
        at = self._moment(time)
        completes = time % self.chunk_size == self.chunk_size - 1
        # Rows fill their chunks at different steps; only for those that do is something made of one.
        everywhere = torch.compiler.is_compiling() or bool(completes.any())
        landmarks = self.landmarks(x.shape[0], 1)
        after: State = {"time": time + 1}
        for index, layer in enumerate(self.layers):
            own = part_of(state, suffix=f"_{index}")
            tokens, keys, values, stored = self._seen(layer, y, own, at)
            y = layer.finish(y, tokens, keys, values, at.place, stored)
            own |= {"recent_keys": keys[:, 1:].clone(), "recent_values": values[:, 1:].clone()}
            if everywhere:
                chunk = {"keys": keys[:, None, 1:], "values": values[:, None, 1:]}
                summaries, landmarks = layer.summarise(*map(self._by_heads, chunk.values()), landmarks)
                chunk["summaries"] = summaries.flatten(2)
                own |= {name: push(own[name], item[:, 0], completes) for name, item in chunk.items()}
            after |= named(own, suffix=f"_{index}")
        return y[:, 0], after

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows in place."""
        kinds = {layer.steps_in_place() for layer in self.layers}
        steps = kinds.pop()
        if steps is None or kinds or not self.steps_as(ChunkedMemory, state):
            return super().stepper(state)
        return ChunkedStepper(
            self.layers, self.blank_unwritten(state), self.chunk_size, self.landmarks, steps
        )

    def _moment(self, time: Int[Tensor, " batch"]) -> _Moment:
        return _Moment(
            seen_steps(time, self.chunk_size),
            written_slots(time, self.chunk_size, self.num_chunks)[:, None],
            (time % self.chunk_size)[:, None],
        )

    def _seen(
        self, layer: ChunkedLayer, y: Float[Tensor, "batch 1 dim"], own: State, at: _Moment
    ) -> tuple[Tokens, Tensor, Tensor, Stored]:
        """Return what a layer makes of one step, keys and values of the last steps and it, and the chunks."""
        tokens = layer.tokens(y, at.place, self.state_dtype)
        keys, values = (
            torch.cat([blanked(own[f"recent_{name}"], at.seen), new.flatten(2)], dim=1)
            for name, new in (("keys", tokens.key), ("values", tokens.value))
        )
        return tokens, keys, values, self._stored(own, at.readable)

    @torch.no_grad()
    def recalled(self, x: Float[Tensor, "batch dim"], state: State) -> Recalled:
        """Return what all layers read of a step's own chunk and of those that it chooses."""
        time, y = state["time"], x[:, None]
        at = self._moment(time)
        recent = last_steps(time, self.chunk_size)
        chunks = stored_steps(time, self.chunk_size, self.num_chunks)
        reads = {}
        for index, layer in enumerate(self.layers):
            own = part_of(state, suffix=f"_{index}")
            tokens, keys, values, stored = self._seen(layer, y, own, at)
            query = tokens.query[:, 0]
            near, far = layer.weigh(y[:, 0], query, own_scores(query, keys, at.place[:, 0]), stored)
            reads[f"own chunk, layer {index}"] = Recall.of(recent, near.mean(1))
            reads[f"chunks, layer {index}"] = Recall.of(chunks, far.mean(1))
            y = layer.finish(y, tokens, keys, values, at.place, stored)
        return Recalled(reads, {})

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance by a segment in one batched pass, whatever the pattern of `start`."""
        clock = Clock.of(state["time"], start)
        plan = plan_chunks(clock, self.chunk_size, self.num_chunks, self.chunk_size)
        place = clock.place(self.chunk_size)
        landmarks = self.landmarks(*plan.steps.shape[:2])
        after: State = {"time": clock.after}
        for index, layer in enumerate(self.layers):
            own = part_of(state, suffix=f"_{index}")
            tokens = layer.tokens(x, place, self.state_dtype)
            new = {"keys": tokens.key.flatten(2), "values": tokens.value.flatten(2)}
            recent = part_of(own, prefix="recent_")
            history = {name: torch.cat([recent[name], new[name]], dim=1) for name in new}
            chunks = {name: take(history[name], plan.steps) for name in new}
            summaries, landmarks = layer.summarise(*map(self._by_heads, chunks.values()), landmarks)
            chunks["summaries"] = summaries.flatten(2)
            table = {
                name: torch.cat([own[name][:, plan.unwritten :], items], dim=1)
                for name, items in chunks.items()
            }
            x = layer.finish(x, tokens, *history.values(), place, self._stored(table, plan.readable))
            own = {name: plan.store(items, self.num_chunks) for name, items in table.items()}
            own |= {f"recent_{name}": shift_window(recent[name], new[name], clock) for name in new}
            after |= named(own, suffix=f"_{index}")
        return x, after

    def _by_heads(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch heads width"]:
        return x.unflatten(-1, (self.layers[0].heads, -1))

    def _stored(self, own: State, readable: Bool[Tensor, "batch time chunks"]) -> Stored:
        keys, values, summaries = (self._by_heads(own[name]) for name in ("keys", "values", "summaries"))
        return Stored(keys, values, summaries, readable)

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in the slots that no step has reached, as it is where they do no harm."""
        if is_harmless(state):
            return state
        time = state["time"]
        chunks = written_slots(time, self.chunk_size, self.num_chunks)
        seen = seen_steps(time, self.chunk_size)
        return {
            name: value if name == "time" else blanked(value, seen if name.startswith("recent") else chunks)
            for name, value in state.items()
        }
