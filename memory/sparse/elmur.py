"""ELMUR: layers with memory slots that every step reads; one slot is rewritten at the end of each chunk.

Cherepanov et al. 2025 (External Layer Memory with Update/Rewrite, arXiv 2510.07151). Steps attend to their
own chunk (the paper's segment), then to the slots. The score of a slot has a bias that depends on the time
since the slot was written. At the end of a chunk, one slot m attends to the layer outputs of the chunk's
steps. A feed-forward block then computes the vector `new`, and the slot becomes

    m <- new                             if it was empty,
    m <- blend * new + (1 - blend) * m   otherwise.

Empty slots are filled first. Afterwards the least recently written slot is rewritten. Since every chunk
rewrites one slot, the slots are rewritten in turn, and the age of a slot follows from the step number. A slot
holds its last chunk with weight `blend` and earlier chunks with decreasing weights. With `blend=0`, the first
chunks stay forever.

The authors' code is public (CognitiveAISystems/RATE, `offline_rl_baselines/ELMUR`). It differs from this
module:

=====================  ========================================  ==========================================
part                   authors' code                             this module
=====================  ========================================  ==========================================
unwritten slots        steps read them                           never read; the output is zero without slots
first write of a slot  blended with the initial content          replaces the initial content
attention of writing   bias by the distance in time              bias by the place of a step in its chunk
slots at the start     random                                    zero
=====================  ========================================  ==========================================

Steps read no unwritten slot here because of law 7: an empty store reads zero.

These are also choices of this module: blocks are pre-norm, as in all memories of this package. The new
content of a slot is normalized as well, so that slots do not grow without bound. Each head has one learned
bias for each range of distances in steps: 0 to 1, 2 to 3, 4 to 7 and so on; the paper clips distances. A
learned vector is added to the query of a slot, since empty slots are zero. Gradients flow into slots, back to
the start of a segment. Positions inside a chunk are rotary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.memory.contract.base import Memory, MemoryConfig, Read, Recall, State, add_affixes, select_part
from scrubjay.memory.contract.clock import Clock, shift_window
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.incremental.elmur import ELMURStepper
from scrubjay.memory.parts.chunks import (
    build_empty_state,
    is_finite_state,
    last_steps,
    plan_chunks,
    take,
    visited_slots,
    zero_slots,
)
from scrubjay.memory.parts.layers import feed_forward
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.sparse.local_chunk import (
    ChunkTokens,
    OwnChunkAttention,
    attend_own_chunk,
    projections,
    score_own_chunk,
)

_BUCKETS = 32  # number of distance buckets, at powers of two
_CHUNKS_AT_ONCE = 4  # chunks of a segment that are processed at once, with one table of slots


@dataclass(frozen=True)
class ELMURConfig(MemoryConfig):
    """Configuration of `ELMUR`. Raises ValueError on an invalid value."""

    paper_values = "the published variant is not implemented"

    chunk_size: int = 16
    """Steps per chunk; one slot of each layer is rewritten at the end of a chunk."""
    num_slots: int = 16
    """Number of slots per layer."""
    blend: float = 0.5
    """Weight of the new content when a filled slot is rewritten, from 0 to 1."""
    num_layers: int = 1
    """Number of layers, each with its own slots."""
    num_heads: int | None = None
    """Attention heads; by default the largest divisor of `dim` up to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("chunk_size", "num_slots", "num_layers")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend={self.blend}: must be from 0 to 1")
        resolve_heads(self.dim, self.num_heads)

    def build(self) -> ELMUR:
        """Return a freshly initialized memory."""
        return ELMUR(self)


class Slots(NamedTuple):
    """Contents of slots, and the episode step at which each slot was last written; negative if empty."""

    content: Float[Tensor, "batch slots dim"]
    write_steps: Int[Tensor, "batch slots"]


class ELMUR(Memory):
    """Stack of layers with attention to the query's chunk, attention to slots, and a feed-forward block.

    State entries of layer l:

    - `slots_l` `[batch, slots, dim]`: slots, zero while empty.
    - `recent_keys_l`, `recent_values_l` and `recent_l` `[batch, chunk_size, dim]`: keys, values and layer
      outputs of the last `chunk_size` steps.

    The entry `time` `[batch]` is the number of steps in the episode.
    """

    retrieves = True

    def __init__(self, config: ELMURConfig) -> None:
        super().__init__(config)
        self.chunk_size, self.num_slots = config.chunk_size, config.num_slots
        layers = nn.ModuleList(_ELMURLayer(config) for _ in range(config.num_layers))
        self.layers = cast("list[_ELMURLayer]", layers)
        self.no_gradient = _unused_parameters(config)

    def initial_state(self, batch_size: int) -> State:
        """Return empty slots."""
        recent = (self.chunk_size, self.dim)
        shapes = {
            "slots": (self.num_slots, self.dim),
            "recent_keys": recent,
            "recent_values": recent,
            "recent": recent,
        }
        return build_empty_state(self, batch_size, len(self.layers), shapes)

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return the attention output of queries `x` over the slots, summed over layers.

        The output is zero until a slot is written.
        """
        time = state["time"]
        write_steps = self.last_write_steps(time // self.chunk_size)
        total = torch.zeros_like(x)
        for index, layer in enumerate(self.layers):
            slots = Slots(zero_slots(state[f"slots_{index}"], write_steps >= 0), write_steps)
            total = total + layer.read(x, time[:, None].expand(-1, x.shape[1]), slots)
        return total

    def last_write_steps(self, chunks: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch slots"]:
        """Return the step of each slot's last write after `chunks` chunks of an episode; -1 if empty."""
        slot = torch.arange(self.num_slots, device=chunks.device)
        last = chunks[..., None] - 1
        chunk = last - (last - slot) % self.num_slots
        return torch.where(chunk >= 0, (chunk + 1) * self.chunk_size - 1, -1)

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance by one step: read the slots, and rewrite one slot at the end of a chunk."""
        time, y = state["time"], x[:, None]
        place, chunks = (time % self.chunk_size)[:, None], time // self.chunk_size
        completes = place[:, 0] == self.chunk_size - 1
        everywhere = torch.compiler.is_compiling() or bool(completes.any())
        is_visited = visited_slots(time, self.chunk_size)
        after: State = {"time": time + 1}
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            tokens, keys, values, slots = self._project_step(layer, y, own, time)
            y = y + layer.attend(tokens.query, keys, values, place)
            y = layer.finish(y, time[:, None], slots)
            steps = torch.cat([zero_slots(own["recent"], is_visited)[:, 1:], y.to(self.state_dtype)], dim=1)
            content = layer.rewrite_slot(slots, steps, chunks, completes) if everywhere else slots.content
            own = {
                "slots": content,
                "recent_keys": keys[:, 1:].clone(),
                "recent_values": values[:, 1:].clone(),
                "recent": steps,
            }
            after |= add_affixes(own, suffix=f"_{index}")
        return y[:, 0], after

    def stepper(self, state: State) -> Stepper:
        """Return a `Stepper` that continues from `state` and updates its own buffers in place."""
        if not self.can_use_stepper(ELMUR, state):
            return super().stepper(state)
        return ELMURStepper(
            self.layers, self.blank_unwritten(state), self.chunk_size, self.last_write_steps, Slots
        )

    def _project_step(
        self, layer: _ELMURLayer, y: Float[Tensor, "batch 1 dim"], own: State, time: Int[Tensor, " batch"]
    ) -> tuple[ChunkTokens, Tensor, Tensor, Slots]:
        """Return the query, key and value of one step, the recent keys and values, and the slots."""
        is_visited = visited_slots(time, self.chunk_size)
        write_steps = self.last_write_steps(time // self.chunk_size)
        tokens = layer.project(y, (time % self.chunk_size)[:, None], self.state_dtype)
        keys, values = (
            torch.cat([zero_slots(own[f"recent_{name}"], is_visited), new.flatten(2)], dim=1)
            for name, new in (("keys", tokens.key), ("values", tokens.value))
        )
        return tokens, keys, values, Slots(zero_slots(own["slots"], write_steps >= 0), write_steps)

    @torch.no_grad()
    def recall(self, x: Float[Tensor, "batch dim"], state: State) -> Recall:
        """Return all layers' attention weights over steps of the query's own chunk and over steps in slots.

        The weight of a slot is divided equally among the steps of its last chunk. The weight of a rewritten
        slot is first multiplied by `blend`, the share of the last chunk.
        """
        time, y = state["time"], x[:, None]
        place, size = time % self.chunk_size, self.chunk_size
        steps = self.last_write_steps(time // size)[..., None] + torch.arange(1 - size, 1, device=time.device)
        is_rewritten = steps[..., -1] >= self.num_slots * size
        reads = {}
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            tokens, keys, values, slots = self._project_step(layer, y, own, time)
            near = torch.softmax(score_own_chunk(tokens.query[:, 0], keys, place), dim=-1).mean(1)
            reads[f"own chunk, layer {index}"] = Read.from_weights(last_steps(time, size), near)
            y = y + layer.attend(tokens.query, keys, values, place[:, None])
            far = layer.weigh(y, time[:, None], layer.normalize_slots(slots))[:, :, 0].mean(1)
            far = torch.where(is_rewritten, layer.blend * far, far)[..., None].expand(-1, -1, size) / size
            reads[f"slots, layer {index}"] = Read.from_weights(steps.clamp(min=-1), far)
            y = layer.finish(y, time[:, None], slots)
        return Recall(reads, {})

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment, a few chunks at once; `start` may be True at any step."""
        outputs, size = [], _CHUNKS_AT_ONCE * self.chunk_size
        for first in range(0, x.shape[1], size):
            y, state = self._part(x[:, first : first + size], state, start[:, first : first + size])
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    def _part(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Process a part of a segment: a few chunks at once."""
        clock = Clock.from_starts(state["time"], start)
        place = clock.chunk_position(self.chunk_size)
        slot_schedule = self._schedule_slots(clock)
        after: State = {"time": clock.age_after}
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            tokens = layer.project(x, place, self.state_dtype)
            new = {"recent_keys": tokens.key.flatten(2), "recent_values": tokens.value.flatten(2)}
            keys, values = (torch.cat([own[name], new[name]], dim=1) for name in new)
            x = x + layer.attend(tokens.query, keys, values, place)
            before = torch.cat([own["recent"], x.to(self.state_dtype)], dim=1)
            table = self._table(layer, slot_schedule, before, own["slots"])
            x = layer.finish(x, clock.step, table, slot_schedule.readable)
            new["recent"] = x.to(self.state_dtype)
            own = {name: shift_window(own[name], items, clock) for name, items in new.items()}
            own["slots"] = slot_schedule.last(table.content, self.num_slots)
            after |= add_affixes(own, suffix=f"_{index}")
        return x, after

    def _schedule_slots(self, clock: Clock) -> _SlotSchedule:
        """Return the schedule of a part of a segment: chunks, slot writes, slot reads. All layers share
        it."""
        size, device = self.chunk_size, clock.step.device
        steps = plan_chunks(clock, size, 1, size).steps
        ends = steps[..., -1] - size
        chunk = clock.chunk_index(size).gather(1, ends)
        completes = clock.chunk_position(size) == size - 1
        num_completed = completes.cumsum(dim=1)
        exists = torch.arange(ends.shape[1], device=device) < num_completed[:, -1:]
        # Versions of the slots: empty, before the part, and after each of its chunks.
        version = 1 + num_completed - completes.long()
        own = clock.chunk_index(size)
        version = torch.where(own == 0, 0, version)
        count = 2 + ends.shape[1]
        visible = torch.arange(count, device=device) == version[..., None]
        age = clock.age[:, None]
        since = torch.cat([torch.zeros_like(age), age // size, chunk + 1], dim=1)
        last = torch.where(clock.age_after // size == 0, 0, 1 + num_completed[:, -1])
        return _SlotSchedule(steps, chunk, exists, visible, self.last_write_steps(since), last)

    def _table(
        self,
        layer: _ELMURLayer,
        slot_schedule: _SlotSchedule,
        before: Float[Tensor, "batch chunk_and_time dim"],
        slots: Float[Tensor, "batch slots dim"],
    ) -> Slots:
        """Return all versions of the slots (see `_SlotSchedule`), concatenated."""
        size = self.chunk_size
        empty = torch.zeros_like(slots)
        versions = [empty, slots]
        for index in range(slot_schedule.steps.shape[1]):
            chunk = slot_schedule.chunk[:, index]
            content = torch.where((chunk == 0)[:, None, None], 0, versions[-1])
            current = Slots(content, self.last_write_steps(chunk))
            steps = take(before, slot_schedule.steps[:, index])
            time = chunk[:, None] * size + torch.arange(size, device=chunk.device)
            # Steps before the part are final layer outputs; the others still need the rest of the layer.
            outputs = layer.finish(steps.to(layer.out.weight.dtype), time, current).to(steps.dtype)
            steps = torch.where((slot_schedule.steps[:, index] < size)[..., None], steps, outputs)
            versions.append(layer.rewrite_slot(current, steps, chunk, slot_schedule.exists[:, index]))
        return Slots(torch.cat(versions, dim=1), slot_schedule.write_steps.flatten(1))

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in unused slots, or `state` itself if it has no NaN or inf."""
        if is_finite_state(state):
            return state
        time = state["time"]
        is_visited = visited_slots(time, self.chunk_size)
        is_filled = self.last_write_steps(time // self.chunk_size) >= 0
        return {
            name: value
            if name == "time"
            else zero_slots(value, is_filled if name.startswith("slots") else is_visited)
            for name, value in state.items()
        }


class _SlotSchedule(NamedTuple):
    """Schedule of slot updates and slot reads in a part of a segment that completes N chunks.

    A version is the content of all slots at one time. The versions are: empty slots, the slots before the
    part, and the slots after each completed chunk.
    """

    steps: Int[Tensor, "batch N chunk_size"]
    """For each chunk that ends in the part of the segment: the positions of its steps. The first step of the
    part has position `chunk_size`. Smaller positions are steps before the part."""
    chunk: Int[Tensor, "batch N"]
    """Index of each completed chunk in its episode."""
    exists: Bool[Tensor, "batch N"]
    """True for chunks with steps, False for padding."""
    visible: Bool[Tensor, "batch time versions"]
    """True for the version that each step reads. Each step reads exactly one version of the slots."""
    write_steps: Int[Tensor, "batch versions slots"]
    """Episode step at which each slot was last written, for each version (content at one time) of the slots.
    -1 for an empty slot."""
    final: Int[Tensor, " batch"]
    """Index of the version of the slots that the next state contains."""

    @property
    def readable(self) -> Bool[Tensor, "batch time versions_slots"]:
        """Return a mask over the slots of all versions: True where a step can read the slot."""
        return self.visible.repeat_interleave(self.write_steps.shape[-1], dim=2)

    def last(self, table: Float[Tensor, "batch versions_slots dim"], slots: int) -> Tensor:
        """Return the slots that the state after the part contains."""
        versions = table.unflatten(1, (-1, slots))
        return take(versions, self.final[:, None])[:, 0]


class _ELMURLayer(OwnChunkAttention):
    """Layer that attends to the query's own chunk and to slots, and rewrites a slot at the end of a chunk."""

    edges: Tensor

    def __init__(self, config: ELMURConfig) -> None:
        super().__init__(config.dim, config.num_heads, config.chunk_size)
        dim = config.dim
        self.blend, self.num_slots = config.blend, config.num_slots
        self.read_norm, self.slot_norm, self.step_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.read_query, self.read_key, self.read_value, self.read_out = projections(dim)
        self.read_bias = nn.Parameter(torch.zeros(self.heads, _BUCKETS))
        self.feed_forward = feed_forward(dim, 2 * dim)
        self.asker = nn.Parameter(torch.randn(dim))
        self.write_norm = nn.LayerNorm(dim)
        self.write_query, self.write_key, self.write_value, self.write_out = projections(dim)
        self.write_bias = nn.Parameter(torch.zeros(self.heads, config.chunk_size))
        self.write_feed_forward = feed_forward(dim, 2 * dim)
        self.written_norm = nn.LayerNorm(dim)
        self.register_buffer("edges", 2 ** torch.arange(1, _BUCKETS), persistent=False)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, place: Tensor) -> Tensor:
        """Return the attention output of steps over their own chunks."""
        read, _ = attend_own_chunk(query, keys, values, place, self.chunk_size)
        return self.out(read.flatten(2).to(self.out.weight.dtype))

    def read(
        self,
        x: Float[Tensor, "batch time dim"],
        time: Int[Tensor, "batch time"],
        slots: Slots,
        readable: Bool[Tensor, "batch time slots"] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """Return the attention output of inputs over filled slots. A mask `readable` restricts the slots."""
        slots = self.normalize_slots(slots)
        value = self._heads(self.read_value(slots.content))
        weights = self.weigh(x, time, slots, readable).to(value.dtype)
        return self.read_out((weights @ value).transpose(1, 2).flatten(2))

    def normalize_slots(self, slots: Slots) -> Slots:
        """Return the slots with normalized contents."""
        return Slots(self.slot_norm(slots.content.to(self.read_out.weight.dtype)), slots.write_steps)

    def weigh(
        self,
        x: Float[Tensor, "batch time dim"],
        time: Int[Tensor, "batch time"],
        slots: Slots,
        readable: Bool[Tensor, "batch time slots"] | None = None,
    ) -> Float[Tensor, "batch heads time slots"]:
        """Return the attention weights that `read` uses. `slots` is the output of `normalize_slots`."""
        query = self._heads(self.read_query(self.read_norm(x)))
        key = self._heads(self.read_key(slots.content))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        distance = time[:, :, None] - slots.write_steps[:, None]
        bucket = torch.bucketize(distance.clamp(min=0), self.edges, right=True)
        # The backward pass of indexing would take three times as long.
        bias = self.read_bias.gather(1, bucket.flatten().expand(self.heads, -1))
        scores = scores + bias.unflatten(1, bucket.shape).transpose(0, 1).to(scores.dtype)
        mask = (slots.write_steps >= 0)[:, None]
        mask = mask if readable is None else mask & readable
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return softmax_or_zero(scores.masked_fill(~mask[:, None], float("-inf")))

    def finish(
        self, x: Tensor, time: Tensor, slots: Slots, readable: Bool[Tensor, "batch time slots"] | None = None
    ) -> Float[Tensor, "batch time dim"]:
        """Return the layer outputs of steps that have already attended to their own chunks."""
        x = x + self.read(x, time, slots, readable)
        return x + self.feed_forward(x)

    def rewrite_slot(
        self,
        slots: Slots,
        steps: Float[Tensor, "batch chunk_size dim"],
        chunk: Int[Tensor, " batch"],
        where: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "batch slots dim"]:
        """Return the slots after the end of a chunk. One slot is rewritten in rows where `where` is True."""
        is_target = torch.arange(self.num_slots, device=chunk.device) == (chunk % self.num_slots)[:, None]
        old = (slots.content * is_target[..., None]).sum(dim=1)
        dtype = self.write_out.weight.dtype
        full = (chunk >= self.num_slots)[:, None]
        slot_input = old.to(dtype)
        steps = self.step_norm(steps.to(dtype))
        query = self._heads(self.write_query(self.write_norm(slot_input + self.asker))[:, None])
        key, value = self._heads(self.write_key(steps)), self._heads(self.write_value(steps))
        scores = query @ key.mT * query.shape[-1] ** -0.5 + self.write_bias[:, None]
        dtype = torch.promote_types(scores.dtype, torch.float32)
        read = torch.softmax(scores, dim=-1, dtype=dtype).to(value.dtype) @ value
        new = slot_input + self.write_out(read.transpose(1, 2).flatten(2)[:, 0])
        new = self.written_norm(new + self.write_feed_forward(new)).to(old.dtype)
        new = torch.where(full, self.blend * new + (1 - self.blend) * old, new)
        return torch.where((is_target & where[:, None])[..., None], new[:, None], slots.content)

    def _heads(self, x: Float[Tensor, "batch items dim"]) -> Float[Tensor, "batch heads items width"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _unused_parameters(config: ELMURConfig) -> tuple[str, ...]:
    """Return the names of parameters that never get a gradient.

    A softmax over one slot or one step is always 1, so parameters that only affect its scores have no effect.
    """
    names = []
    if config.num_slots == 1:
        names += ["read_norm.weight", "read_norm.bias", "read_query.weight", "read_key.weight", "read_bias"]
    if config.chunk_size == 1:
        names += ["query.weight", "key.weight", "write_query.weight", "write_key.weight", "write_bias"]
        names += ["write_norm.weight", "write_norm.bias", "asker"]
    return tuple(f"layers.{layer}.{name}" for layer in range(config.num_layers) for name in names)
