"""HCAM: hierarchical chunk attention memory (Lampinen et al. 2021, arXiv 2105.14039).

Every `chunk_size` steps of an episode are stored as one chunk whose summary is their mean. To remember, a
query scores all summaries, keeps the best `top_k`, attends inside those chunks with one shared multi-head
attention, and adds the read-outs weighted by a softmax over the kept scores.

The paper's published code is the read path alone; what it leaves open is decided here. A block is local
causal attention (a sliding window of at least one chunk, so that the chunk being filled is readable), then
the memory read, then a feed-forward layer, each on a layer-normed input with a plain residual. A layer
stores its own layer-normed inputs. Chunk boundaries are multiples of `chunk_size` in episode time; a chunk
is readable from the step after its last; the oldest of `num_chunks` is dropped first. As in the paper no
gradient flows into what is stored, so learners should switch on their reconstruction loss where reward
alone does not shape the encoding. Unlike the published code, a query that may read nothing gets zeros.

With `bottleneck` the read is the conscious state of the Consciousness Prior (Bengio 2017, arXiv 1709.08568):
stores are the unconscious state, a few of whose elements are chosen, and only they reach what acts. There the
choice is also told the conscious state before; here it is told what the window holds, so that segments run in
one pass. The auxiliary loss `verifier` is that paper's; a policy with `skip` sees the present beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.memory.contract.base import LATER, Memory, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.recalled import Read, Recalled
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
from scrubjay.memory.parts.hierarchy import ReadWeights, attend, weigh
from scrubjay.memory.parts.recent import shift_window
from scrubjay.memory.parts.sinusoids import sinusoids
from scrubjay.memory.parts.window import (
    WindowAttention,
    WindowOptions,
    resolve_heads,
)
from scrubjay.memory.stepping.hcam import HCAMStepper


@dataclass(frozen=True)
class HCAMConfig(WindowOptions, MemoryConfig):
    """Sizes of `HCAM`. Raises ValueError on a size that cannot work."""

    chunk_size: int = 16
    """Steps per chunk."""
    num_chunks: int = 32
    """Chunks kept; the oldest is dropped first."""
    top_k: int = 4
    """Chunks each query attends to."""
    num_layers: int = 1
    """Blocks, each with a store of its own."""
    num_heads: int | None = None
    """Attention heads; by default the largest divisor of `dim` up to 4."""
    window: int | None = None
    """Previous steps seen by local attention, at least `chunk_size`, which is the default."""
    stop_memory_gradient: bool = True
    """Whether what is stored is cut from the graph, as in the paper."""
    bottleneck: bool = field(default=False, metadata=LATER)
    """Whether a block passes on what it read alone, a few chunks, in answer to its input."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_options()
        for name in ("chunk_size", "num_chunks", "top_k", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        resolve_heads(self.dim, self.num_heads)
        if self.window is not None and self.window < self.chunk_size:
            raise ValueError(
                f"window={self.window} is shorter than chunk_size={self.chunk_size}: "
                f"the chunk being filled could not be read; use at least {self.chunk_size}"
            )

        if self.bottleneck and min(self.top_k, self.num_chunks) == self.chunk_size == 1:
            raise ValueError(
                f"bottleneck=True with top_k={self.top_k}, num_chunks={self.num_chunks} and chunk_size=1: "
                "one step is read whatever is asked; use at least 2 chunks, or chunks of at least 2 steps"
            )

    def build(self) -> HCAM:
        """Return a freshly initialised HCAM of these sizes."""
        return HCAM(self)


class HCAM(Memory):
    """Blocks of local attention, hierarchical chunk attention and feed-forward, width to width.

    State, per layer l: `recent_l [batch, before, dim]`, `contents_l [batch, chunks, chunk_size, dim]` and
    `summaries_l [batch, chunks, dim]`, oldest first and aligned to the end, zeros where nothing was written
    yet; and `time [batch]`, steps since the episode began.
    """

    retrieves = True

    def __init__(self, config: HCAMConfig) -> None:
        super().__init__(config)
        self.chunk_size = config.chunk_size
        self.num_chunks = config.num_chunks
        self.window = config.window or config.chunk_size
        self.blocks = nn.ModuleList(_Block(config, self.window) for _ in range(config.num_layers))
        self.before = self._layers[0].local.before
        self.no_gradient = _indifferent_parameters(config)

    def initial_state(self, batch_size: int) -> State:
        """Return empty stores."""
        shapes = {
            "recent": (self.before, self.dim),
            "contents": (self.num_chunks, self.chunk_size, self.dim),
            "summaries": (self.num_chunks, self.dim),
        }
        return empty_layers(self, batch_size, len(self.blocks), shapes)

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return what the stores answer to the queries `x`, summed over layers: zeros while all are empty."""
        readable = written_slots(state["time"], self.chunk_size, self.num_chunks)[:, None].expand(
            -1, x.shape[1], -1
        )
        total = torch.zeros_like(x)
        for layer, block in enumerate(self._layers):
            own = part_of(state, suffix=f"_{layer}")
            stored = _Stored(own["contents"], own["summaries"], readable)
            total = total + block.read(x, stored)
        return total

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance by one step: read the chunks completed so far, then store this step."""
        time = state["time"]
        readable = written_slots(time, self.chunk_size, self.num_chunks)[:, None]
        completes = time % self.chunk_size == self.chunk_size - 1
        after: State = {"time": time + 1}
        for layer, block in enumerate(self._layers):
            own = part_of(state, suffix=f"_{layer}")
            recent, contents, summaries = own["recent"], own["contents"], own["summaries"]
            stored = _Stored(contents, summaries, readable)
            x, written = block.step(x, recent, time, stored)
            recent = torch.cat([recent[:, 1:], written[:, None].to(recent.dtype)], dim=1)
            chunk = recent[:, -self.chunk_size :]
            chunk = chunk.detach() if block.stop_memory_gradient else chunk
            own = {
                "recent": recent,
                "contents": push(contents, chunk, completes),
                "summaries": push(summaries, chunk.mean(dim=1), completes),
            }
            after |= named(own, suffix=f"_{layer}")
        return x, after

    @torch.no_grad()
    def recalled(self, x: Float[Tensor, "batch dim"], state: State) -> Recalled:
        """Return what windows and chosen chunks of all layers give to a step."""
        time = state["time"]
        readable = written_slots(time, self.chunk_size, self.num_chunks)[:, None]
        window = last_steps(time, self.window)
        chunks = stored_steps(time, self.chunk_size, self.num_chunks)
        reads = {}
        for layer, block in enumerate(self._layers):
            own = part_of(state, suffix=f"_{layer}")
            recent, stored = own["recent"], _Stored(own["contents"], own["summaries"], readable)
            near, x, far = block.weigh(x, recent, time, stored)
            reads[f"window, layer {layer}"] = Read.of(window, near)
            reads[f"chunks, layer {layer}"] = Read.of(chunks, far)
        return Recalled(reads, {})

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows in place, one step after the other if attention does not fold."""
        if not self._layers[0].local.folds or not self.steps_as(HCAM, state):
            return super().stepper(state)
        return HCAMStepper(self._layers, self._blanked(state), self.chunk_size)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance by a segment in one batched pass, whatever the pattern of `start`."""
        clock = Clock.of(state["time"], start)
        plan = plan_chunks(clock, self.chunk_size, self.num_chunks, self.before)
        after: State = {"time": clock.after}
        for layer, block in enumerate(self._layers):
            own = part_of(state, suffix=f"_{layer}")
            recent = own["recent"]
            contents, summaries = (own[name][:, plan.unwritten :] for name in ("contents", "summaries"))
            normed = block.local_norm(x)
            history = torch.cat([recent, normed.to(recent.dtype)], dim=1)
            history = history.detach() if block.stop_memory_gradient else history
            new = take(history, plan.steps)
            table = torch.cat([contents, new], dim=1)
            summary_table = torch.cat([summaries, new.mean(dim=2)], dim=1)
            stored = _Stored(table, summary_table, plan.readable, plan.most)
            x = block.finish(x, normed, recent, clock, stored)
            own = {
                "recent": shift_window(recent, normed.to(recent.dtype), clock),
                "contents": plan.store(table, self.num_chunks),
                "summaries": plan.store(summary_table, self.num_chunks),
            }
            after |= named(own, suffix=f"_{layer}")
        return x, after

    @property
    def _layers(self) -> list[_Block]:
        return cast(list[_Block], self.blocks)

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in the slots that no step has reached, as it is where they do no harm."""
        # A segment reads what is written alone.
        return state if is_harmless(state) else self._blanked(state)

    def _blanked(self, state: State) -> State:
        written = written_slots(state["time"], self.chunk_size, self.num_chunks)
        seen = seen_steps(state["time"], self.before)
        masks = {"contents": written, "summaries": written, "recent": seen}
        blank = {"time": state["time"]}
        for layer in range(len(self.blocks)):
            own = {
                name: blanked(value, masks[name])
                for name, value in part_of(state, suffix=f"_{layer}").items()
            }
            blank |= named(own, suffix=f"_{layer}")
        return blank


class _Stored(NamedTuple):
    """What a query may read."""

    contents: Float[Tensor, "batch chunks chunk_size dim"]
    summaries: Float[Tensor, "batch chunks dim"]
    readable: Bool[Tensor, "batch time chunks"]
    most: int | None = None
    """How many of them any query may read at most; None if that is not known."""


class _Block(nn.Module):
    """Local attention, memory read and feed-forward, each normed and added."""

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
        # The published code's variance. Torch's own initialisation, six times smaller in variance, makes
        # every attention nearly uniform, and a cue among hundreds of steps is then drowned. What is read
        # starts at half that strength, lest a policy be thrown off course when its first chunk becomes
        # readable.
        for projection in (self.summary_query, self.summary_key, self.query, self.key, self.value):
            nn.init.normal_(projection.weight, std=(2.0 / dim) ** 0.5)
        nn.init.normal_(self.out.weight, std=(0.5 / dim) ** 0.5)
        self.feed_forward = feed_forward(dim, 2 * dim)

    def read(self, x: Tensor, stored: _Stored) -> Tensor:
        read = attend(
            self.read_norm(x),
            stored.summaries.to(x.dtype),
            stored.contents.to(x.dtype),
            stored.readable,
            self._weights(),
            self.positions,
            # Who may read no more than are kept need not choose.
            self.top_k if stored.most is None or stored.most > self.top_k else stored.summaries.shape[1],
            self.num_heads,
            self.stop_memory_gradient,
        )
        return read.to(x.dtype)

    def pass_on(self, x: Tensor, read: Tensor) -> Tensor:
        """Return what the feed-forward layer gets of a question and its answer."""
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
        self, x: Tensor, recent: Tensor, time: Tensor, stored: _Stored
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return how much of a step's window it reads, its output, and how much of each stored step."""
        normed = self.local_norm(x)
        near = self.local.step_weights(normed, recent.to(x.dtype), time).mean(1)
        asking = x + self.local.step(normed, recent.to(x.dtype), time)
        far = weigh(
            self.read_norm(asking)[:, None],
            stored.summaries.to(x.dtype),
            stored.contents.to(x.dtype),
            stored.readable,
            self._weights(),
            self.positions,
            self.top_k,
            self.num_heads,
        )
        y, _ = self.step(x, recent, time, stored)
        return near, y, far[:, 0].mean(1)

    def step(self, x: Tensor, recent: Tensor, time: Tensor, stored: _Stored) -> tuple[Tensor, Tensor]:
        normed = self.local_norm(x)
        x = x + self.local.step(normed, recent.to(x.dtype), time)
        x = self.pass_on(x, self.read(x[:, None], stored)[:, 0])
        return x + self.feed_forward(x), normed

    def finish(self, x: Tensor, normed: Tensor, recent: Tensor, clock: Clock, stored: _Stored) -> Tensor:
        x = x + self.local(normed, recent.to(x.dtype), clock)
        x = self.pass_on(x, self.read(x, stored))
        return x + self.feed_forward(x)


def _indifferent_parameters(config: HCAMConfig) -> tuple[str, ...]:
    """Name the parameters that only weigh a single item, where a softmax is 1 whatever they are."""
    one_chunk = min(config.top_k, config.num_chunks) == 1
    one_step = config.chunk_size == 1
    names = ["summary_query.weight", "summary_key.weight"] if one_chunk else []
    names += ["query.weight", "query.bias", "key.weight"] if one_step else []
    names += ["read_norm.weight", "read_norm.bias"] if one_chunk and one_step else []
    return tuple(f"blocks.{layer}.{name}" for layer in range(config.num_layers) for name in names)
