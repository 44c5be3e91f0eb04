"""HCAM: hierarchical chunk attention memory (Lampinen et al. 2021, arXiv 2105.14039).

Every `chunk_size` steps of an episode are stored as one chunk whose summary is their mean. To read, a query
scores all summaries, selects the best `top_k`, attends inside those chunks with one shared multi-head
attention, and sums the read-outs weighted by a softmax over the selected scores.

The paper's published code contains only the read path. This module makes the following choices for the other
parts. A block is local causal attention, then the memory read, then a feed-forward layer. All three have a
layer-normed input and a plain residual connection. The sliding window of the local attention is at least one
chunk long, so that the current chunk is readable. A layer stores its own layer-normed inputs. Chunk
boundaries are multiples of `chunk_size` in episode time. A chunk is readable from the step after its last
step. If `num_chunks` chunks are stored, a new chunk replaces the oldest. As in the paper, no gradient flows
into stored chunks. Enable the learner's reconstruction loss if reward alone does not train the encoding.
Unlike in the published code, a query without readable chunks gets zeros.

With `bottleneck`, HCAM follows the Consciousness Prior (Bengio 2017, arXiv 1709.08568). The stored chunks are
the unconscious state. A query selects a few of the chunks, and only the read-out of these, the conscious
state, reaches the policy. In that paper, the selection also depends on the previous conscious state. Here it
depends only on the local attention window, so all steps of a segment are computed in one pass. The auxiliary
loss `verifier` is from that paper. A policy with `skip` also receives the present input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.kernels import choose_chunks
from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.memory.contract.base import (
    SAME_AS_PAPER,
    Memory,
    MemoryConfig,
    Read,
    Recall,
    State,
    add_affixes,
    select_part,
)
from scrubjay.memory.contract.clock import Clock, shift_window
from scrubjay.memory.contract.stepper import Stepper, load_fast_path
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
from scrubjay.memory.parts.hierarchy import ReadWeights, hierarchical_attention
from scrubjay.memory.parts.layers import feed_forward, sinusoids
from scrubjay.memory.parts.window import (
    WindowAttention,
    WindowOptions,
    resolve_heads,
)


@dataclass(frozen=True)
class HCAMConfig(WindowOptions, MemoryConfig):
    """Sizes of `HCAM`. Raises ValueError on an invalid size."""

    paper_values = SAME_AS_PAPER

    chunk_size: int = 16
    """Steps per chunk."""
    num_chunks: int = 32
    """Largest number of stored chunks. When the store is full, a new chunk replaces the oldest chunk."""
    top_k: int = 4
    """Number of chunks to which each query attends."""
    num_layers: int = 1
    """Number of blocks, each with its own store."""
    num_heads: int | None = None
    """Attention heads; by default the largest divisor of `dim` up to 4."""
    window: int | None = None
    """Number of earlier steps in the local attention window, at least `chunk_size`. Default: `chunk_size`."""
    stop_memory_gradient: bool = True
    """Stop the gradient at stored chunks, as in the paper."""
    bottleneck: bool = False
    """Pass only the read-out of the selected chunks, without the residual stream, to the feed-forward
    layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options()
        self.check_positive("chunk_size", "num_chunks", "top_k", "num_layers")
        resolve_heads(self.dim, self.num_heads)
        if self.window is not None and self.window < self.chunk_size:
            raise ValueError(
                f"window={self.window} is shorter than chunk_size={self.chunk_size}: "
                f"the current chunk would not be readable; use at least {self.chunk_size}"
            )

        if self.bottleneck and min(self.top_k, self.num_chunks) == self.chunk_size == 1:
            raise ValueError(
                f"bottleneck=True with top_k={self.top_k}, num_chunks={self.num_chunks} and chunk_size=1: "
                "every query would read the same step; set top_k and num_chunks to at least 2, "
                "or chunk_size to at least 2"
            )

    def build(self) -> HCAM:
        """Return a newly initialized HCAM of these sizes."""
        return HCAM(self)


def weigh(
    queries: Float[Tensor, "batch time width"],
    keys: Float[Tensor, "batch chunks dim"],
    contents: Float[Tensor, "batch chunks chunk_size dim"],
    mask: Bool[Tensor, "batch time chunks"],
    weights: ReadWeights,
    positions: Float[Tensor, "chunk_size dim"] | None,
    top_k: int,
    num_heads: int,
) -> Float[Tensor, "batch time heads chunks chunk_size"]:
    """Return the weight of each stored step in a hierarchical read (section 3 of the paper).

    The read-out of a head is the weighted sum of the projected steps: sum over m, c of weight[m, c] times
    (contents[m, c] + positions[c]) @ value. `hierarchical_attention` computes the read-outs faster.

    Args:
        queries: One query per step.
        keys: Summaries of the chunks.
        contents: Steps of the chunks.
        mask: True for chunks that a query may read.
        weights: Projections for the selection of chunks and for the attention inside chunks.
        positions: Encodings to add to the steps of a chunk; None adds nothing.
        top_k: Chunks selected per query.
        num_heads: Heads of the attention inside chunks.
    """
    # The summaries of the top_k chunks are weighted by a softmax of their scores.
    chunks, features = contents.shape[1], weights.query.shape[1]
    summary_query = (queries @ weights.summary_query @ weights.summary_key.T)[:, :, None]
    scale = features**-0.5
    selection = choose_chunks(
        mask, top_k=top_k, summary_query=summary_query, summaries=keys[:, :, None], summary_scale=scale
    )
    shares = softmax_or_zero(selection.scores[:, :, 0])
    place = selection.chunks[:, :, 0].long().remainder(chunks + 1)  # -1 (no chunk) maps to an extra column
    shares = shares.new_zeros(*mask.shape[:2], chunks + 1).scatter_(2, place, shares)[..., :chunks]
    # The steps inside each of these chunks are weighted by a second softmax, one for each head.
    query = queries @ weights.query
    query = query if weights.query_bias is None else query + weights.query_bias
    key = (contents if positions is None else contents + positions) @ weights.key
    query, key = (part.unflatten(-1, (num_heads, -1)) for part in (query, key))
    scores = torch.einsum("bthe,bmche->bthmc", query, key) * query.shape[-1] ** -0.5
    shares = shares[:, :, None, :, None]
    return torch.where(shares > 0, shares * torch.softmax(scores, dim=-1), 0)


class HCAM(Memory):
    """Blocks of local attention, hierarchical chunk attention and feed-forward.

    State, for every layer l: `recent_l [batch, before, dim]` (last inputs), `contents_l [batch, chunks,
    chunk_size, dim]` (stored chunks) and `summaries_l [batch, chunks, dim]` (their summaries). All three are
    sorted oldest first. Unwritten slots precede written slots and are zero. `time [batch]` is the number of
    steps since the start of the episode.
    """

    retrieves = True
    max_segment = 4096  # each step has a mask over all chunks of the segment

    def __init__(self, config: HCAMConfig) -> None:
        super().__init__(config)
        self.chunk_size = config.chunk_size
        self.num_chunks = config.num_chunks
        self.window = config.window or config.chunk_size
        self.blocks = nn.ModuleList(_HCAMBlock(config, self.window) for _ in range(config.num_layers))
        self.before = self._layers[0].local.before
        self.no_gradient = _find_unused_parameters(config)

    def initial_state(self, batch_size: int) -> State:
        """Return empty stores of chunks."""
        shapes = {
            "recent": (self.before, self.dim),
            "contents": (self.num_chunks, self.chunk_size, self.dim),
            "summaries": (self.num_chunks, self.dim),
        }
        return build_empty_state(self, batch_size, len(self.blocks), shapes)

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return the read-outs for queries `x`, summed over layers; zero while no chunk is stored."""
        readable = written_slots(state["time"], self.chunk_size, self.num_chunks)[:, None].expand(
            -1, x.shape[1], -1
        )
        total = torch.zeros_like(x)
        for layer, block in enumerate(self._layers):
            own = select_part(state, suffix=f"_{layer}")
            store = _ReadableStore(own["contents"], own["summaries"], readable)
            total = total + block.read(x, store)
        return total

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Process one step: read the chunks completed so far, then store this step."""
        time = state["time"]
        readable = written_slots(time, self.chunk_size, self.num_chunks)[:, None]
        completes = time % self.chunk_size == self.chunk_size - 1
        after: State = {"time": time + 1}
        for layer, block in enumerate(self._layers):
            own = select_part(state, suffix=f"_{layer}")
            recent, contents, summaries = own["recent"], own["contents"], own["summaries"]
            store = _ReadableStore(contents, summaries, readable)
            x, new_input = block.step(x, recent, time, store)
            recent = torch.cat([recent[:, 1:], new_input[:, None].to(recent.dtype)], dim=1)
            chunk = recent[:, -self.chunk_size :]
            chunk = chunk.detach() if block.stop_memory_gradient else chunk
            own = {
                "recent": recent,
                "contents": push(contents, chunk, completes),
                "summaries": push(summaries, chunk.mean(dim=1), completes),
            }
            after |= add_affixes(own, suffix=f"_{layer}")
        return x, after

    @torch.no_grad()
    def recall(self, x: Float[Tensor, "batch dim"], state: State) -> Recall:
        """Return the attention weights of one step over the window and the stored chunks of each layer."""
        time = state["time"]
        readable = written_slots(time, self.chunk_size, self.num_chunks)[:, None]
        window = last_steps(time, self.window)
        chunks = stored_steps(time, self.chunk_size, self.num_chunks)
        reads = {}
        for layer, block in enumerate(self._layers):
            own = select_part(state, suffix=f"_{layer}")
            recent, store = own["recent"], _ReadableStore(own["contents"], own["summaries"], readable)
            near, x, far = block.weigh(x, recent, time, store)
            reads[f"window, layer {layer}"] = Read.from_weights(window, near)
            reads[f"chunks, layer {layer}"] = Read.from_weights(chunks, far)
        return Recall(reads, {})

    def stepper(self, state: State) -> Stepper:
        """Return an `HCAMStepper` if this memory and `state` support one, and the default stepper otherwise.

        A memory with a convolution gets the default stepper.
        """
        if not self._layers[0].local.is_foldable or not self.can_use_stepper(HCAM, state):
            return super().stepper(state)
        return load_fast_path("hcam stepper")(self._layers, self._zero_unwritten(state), self.chunk_size)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment in one batched pass, for any pattern of `start`."""
        clock = Clock.from_starts(state["time"], start)
        plan = plan_chunks(clock, self.chunk_size, self.num_chunks, self.before)
        after: State = {"time": clock.age_after}
        for layer, block in enumerate(self._layers):
            own = select_part(state, suffix=f"_{layer}")
            recent = own["recent"]
            contents, summaries = (own[name][:, plan.num_unwritten :] for name in ("contents", "summaries"))
            normalized = block.local_norm(x)
            history = torch.cat([recent, normalized.to(recent.dtype)], dim=1)
            history = history.detach() if block.stop_memory_gradient else history
            new = take(history, plan.steps)
            table = torch.cat([contents, new], dim=1)
            summary_table = torch.cat([summaries, new.mean(dim=2)], dim=1)
            store = _ReadableStore(table, summary_table, plan.readable, plan.max_readable)
            x = block.finish(x, normalized, recent, clock, store)
            own = {
                "recent": shift_window(recent, normalized.to(recent.dtype), clock),
                "contents": plan.store(table, self.num_chunks),
                "summaries": plan.store(summary_table, self.num_chunks),
            }
            after |= add_affixes(own, suffix=f"_{layer}")
        return x, after

    @property
    def _layers(self) -> list[_HCAMBlock]:
        return cast(list[_HCAMBlock], self.blocks)

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in slots that were never written.

        If all values are finite, return `state` unchanged, because these slots then have no effect.
        """
        # A segment reads only written slots, so finite values in other slots are harmless.
        return state if is_finite_state(state) else self._zero_unwritten(state)

    def _zero_unwritten(self, state: State) -> State:
        is_written = written_slots(state["time"], self.chunk_size, self.num_chunks)
        is_visited = visited_slots(state["time"], self.before)
        masks = {"contents": is_written, "summaries": is_written, "recent": is_visited}
        blank = {"time": state["time"]}
        for layer in range(len(self.blocks)):
            own = {
                name: zero_slots(value, masks[name])
                for name, value in select_part(state, suffix=f"_{layer}").items()
            }
            blank |= add_affixes(own, suffix=f"_{layer}")
        return blank


class _ReadableStore(NamedTuple):
    """Stored chunks and summaries, and a mask of the readable ones."""

    contents: Float[Tensor, "batch chunks chunk_size dim"]
    summaries: Float[Tensor, "batch chunks dim"]
    readable: Bool[Tensor, "batch time chunks"]
    max_readable: int | None = None
    """Largest number of chunks that any query may read; None if unknown."""


class _HCAMBlock(nn.Module):
    """Local attention, memory read and feed-forward layer, each with pre-norm and residual connection."""

    positions: Tensor

    def __init__(self, config: HCAMConfig, window: int) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = resolve_heads(dim, config.num_heads)
        self.top_k = config.top_k
        self.stop_memory_gradient = config.stop_memory_gradient
        self.bottleneck = config.bottleneck
        self.local_norm = nn.LayerNorm(dim)
        self.local = WindowAttention(dim, self.num_heads, window, config)
        self.read_norm = nn.LayerNorm(dim)
        self.summary_query = nn.Linear(dim, dim, bias=False)
        self.summary_key = nn.Linear(dim, dim, bias=False)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)  # a key bias cancels in the softmax
        self.value = nn.Linear(dim, dim, bias=False)  # a value bias is the output's bias
        self.out = nn.Linear(dim, dim)
        positions = sinusoids(torch.arange(config.chunk_size), dim).flip(0).to(torch.get_default_dtype())
        self.register_buffer("positions", positions, persistent=False)
        # The published code's variance. Torch's default initialization has a sixth of it, makes every
        # attention nearly uniform, and a cue among hundreds of steps is averaged out. The output projection
        # starts smaller, so that the first readable chunk does not disturb the policy.
        for projection in (self.summary_query, self.summary_key, self.query, self.key, self.value):
            nn.init.normal_(projection.weight, std=(2.0 / dim) ** 0.5)
        nn.init.normal_(self.out.weight, std=(0.5 / dim) ** 0.5)
        self.feed_forward = feed_forward(dim, 2 * dim)

    def read(self, x: Tensor, store: _ReadableStore) -> Tensor:
        # If no query may read more than top_k chunks, all are selected.
        reads_all = store.max_readable is not None and store.max_readable <= self.top_k
        read = hierarchical_attention(
            self.read_norm(x),
            store.summaries.to(x.dtype),
            store.contents.to(x.dtype),
            store.readable,
            self._weights(),
            self.positions,
            top_k=store.summaries.shape[1] if reads_all else self.top_k,
            num_heads=self.num_heads,
            stop_memory_gradient=self.stop_memory_gradient,
        )
        return read.to(x.dtype)

    def pass_on(self, x: Tensor, read: Tensor) -> Tensor:
        """Return the feed-forward layer's input: `x` plus `read`, or only `read` if `bottleneck` is set."""
        return read if self.bottleneck else x + read

    def _weights(self) -> ReadWeights:
        return ReadWeights(
            summary_key=self.summary_key.weight.T,
            summary_query=self.summary_query.weight.T,
            key=self.key.weight.T,
            query=self.query.weight.T,
            query_bias=self.query.bias,
            value=self.value.weight.T,
            out=self.out.weight.T,
            out_bias=self.out.bias,
        )

    def weigh(
        self, x: Tensor, recent: Tensor, time: Tensor, store: _ReadableStore
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the attention weights and the output of one step.

        The results are the weights over the window, the output, and the weights over stored steps.
        """
        normalized = self.local_norm(x)
        near = self.local.step_weights(normalized, recent.to(x.dtype), time).mean(1)
        query_input = x + self.local.step(normalized, recent.to(x.dtype), time)
        far = weigh(
            self.read_norm(query_input)[:, None],
            store.summaries.to(x.dtype),
            store.contents.to(x.dtype),
            store.readable,
            self._weights(),
            self.positions,
            self.top_k,
            self.num_heads,
        )
        y, _ = self.step(x, recent, time, store)
        return near, y, far[:, 0].mean(1)

    def step(self, x: Tensor, recent: Tensor, time: Tensor, store: _ReadableStore) -> tuple[Tensor, Tensor]:
        normalized = self.local_norm(x)
        x = x + self.local.step(normalized, recent.to(x.dtype), time)
        x = self.pass_on(x, self.read(x[:, None], store)[:, 0])
        return x + self.feed_forward(x), normalized

    def finish(
        self, x: Tensor, normalized: Tensor, recent: Tensor, clock: Clock, store: _ReadableStore
    ) -> Tensor:
        x = x + self.local(normalized, recent.to(x.dtype), clock)
        x = self.pass_on(x, self.read(x, store))
        return x + self.feed_forward(x)


def _find_unused_parameters(config: HCAMConfig) -> tuple[str, ...]:
    """Return the names of parameters that never get a gradient.

    These parameters only affect scores in a softmax over a single chunk or a single step, whose weight is
    always 1.
    """
    one_chunk = min(config.top_k, config.num_chunks) == 1
    one_step = config.chunk_size == 1
    names = ["summary_query.weight", "summary_key.weight"] if one_chunk else []
    names += ["query.weight", "query.bias", "key.weight"] if one_step else []
    names += ["read_norm.weight", "read_norm.bias"] if one_chunk and one_step else []
    return tuple(f"blocks.{layer}.{name}" for layer in range(config.num_layers) for name in names)
