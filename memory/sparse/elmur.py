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
module by default. `make("elmur", paper=True)` sets `follow_paper`, which takes these parts from the code:

=====================  ========================================  ==========================================
part                   authors' code                             this module
=====================  ========================================  ==========================================
unwritten slots        steps read them                           never read; the output is zero without slots
first write of a slot  blended with the initial content          replaces the initial content
attention of writing   bias by the distance in time              bias by the place of a step in its chunk
slots at the start     random                                    zero
norms                  after residual connections                before sublayers
=====================  ========================================  ==========================================

Steps read no unwritten slot by default because of law 7: an empty store reads zero. With `follow_paper`, law
7 does not apply. The initial contents of slots are drawn once for a memory and saved with its weights. The
authors' code draws them for each episode, so the same episode would give other outputs (law 2).

These are also choices of the default: blocks are pre-norm, as in all memories of this package. The new
content of a slot is normalized as well, so that slots do not grow without bound. Each head has one learned
bias for each range of distances in steps: 0 to 1, 2 to 3, 4 to 7 and so on; the paper clips distances, as
`follow_paper` does. A learned vector is added to the query of a slot, since empty slots are zero. In both
variants, gradients flow into slots, back to the start of a segment, and positions inside a chunk are rotary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, PaperValues, Read, Recall, State, add_affixes, select_part
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
from scrubjay.memory.sparse.local_chunk import ChunkTokens, score_own_chunk
from scrubjay.memory.sparse.slot_layer import PaperSlotLayer, SlotConfig, SlotLayer, Slots

_CHUNKS_AT_ONCE = 4  # chunks of a segment that are processed at once, with one table of slots


@dataclass(frozen=True)
class ELMURConfig(SlotConfig):
    """Configuration of `ELMUR`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {"follow_paper": True}

    def build(self) -> ELMUR:
        """Return a freshly initialized memory."""
        return ELMUR(self)


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
        layer_class = PaperSlotLayer if config.follow_paper else SlotLayer
        layers = nn.ModuleList(layer_class(config) for _ in range(config.num_layers))
        self.layers = cast("list[SlotLayer]", layers)
        self.retrieves = not config.follow_paper
        self.no_gradient = tuple(
            f"layers.{layer}.{name}"
            for layer in range(config.num_layers)
            for name in layer_class.unused_parameters(config)
        )

    def initial_state(self, batch_size: int) -> State:
        """Return empty slots, or their initial content with `follow_paper`."""
        recent = (self.chunk_size, self.dim)
        shapes = {
            "slots": (self.num_slots, self.dim),
            "recent_keys": recent,
            "recent_values": recent,
            "recent": recent,
        }
        state = build_empty_state(self, batch_size, len(self.layers), shapes)
        for index, layer in enumerate(self.layers):
            if isinstance(layer, PaperSlotLayer):
                state[f"slots_{index}"] = self._initial_slots(layer, batch_size).clone()
        return state

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return the attention output of queries `x` over the slots, summed over layers.

        The output is zero until a slot is written.
        """
        time = state["time"]
        write_steps = self.last_write_steps(time // self.chunk_size)
        total = torch.zeros_like(x)
        for index, layer in enumerate(self.layers):
            slots = self._slots(state[f"slots_{index}"], write_steps)
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
            y = layer.attend(y, tokens.query, keys, values, place)
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
        if not self.retrieves or not self.can_use_stepper(ELMUR, state):
            return super().stepper(state)
        return ELMURStepper(
            self.layers, self.blank_unwritten(state), self.chunk_size, self.last_write_steps, Slots
        )

    def _project_step(
        self, layer: SlotLayer, y: Float[Tensor, "batch 1 dim"], own: State, time: Int[Tensor, " batch"]
    ) -> tuple[ChunkTokens, Tensor, Tensor, Slots]:
        """Return the query, key and value of one step, the recent keys and values, and the slots."""
        is_visited = visited_slots(time, self.chunk_size)
        write_steps = self.last_write_steps(time // self.chunk_size)
        tokens = layer.project(y, (time % self.chunk_size)[:, None], self.state_dtype)
        keys, values = (
            torch.cat([zero_slots(own[f"recent_{name}"], is_visited), new.flatten(2)], dim=1)
            for name, new in (("keys", tokens.key), ("values", tokens.value))
        )
        return tokens, keys, values, self._slots(own["slots"], write_steps)

    def _slots(
        self, content: Float[Tensor, "batch slots dim"], write_steps: Int[Tensor, "batch slots"]
    ) -> Slots:
        """Return the slots, with zeros in unwritten ones unless these have an initial content."""
        return Slots(zero_slots(content, write_steps >= 0) if self.retrieves else content, write_steps)

    def _initial_slots(self, layer: SlotLayer, batch_size: int) -> Float[Tensor, "batch slots dim"]:
        """Return the contents of all slots before the first write."""
        if isinstance(layer, PaperSlotLayer):
            return layer.initial_slots.to(self.state_dtype).expand(batch_size, -1, -1)
        shape = batch_size, self.num_slots, self.dim
        return torch.zeros(shape, dtype=self.state_dtype, device=self.device)

    @torch.no_grad()
    def recall(self, x: Float[Tensor, "batch dim"], state: State) -> Recall:
        """Return all layers' attention weights over steps of the query's own chunk and over steps in slots.

        The weight of a slot is divided equally among the steps of its last chunk. The weight of a rewritten
        slot is first multiplied by `blend`, the share of the last chunk.
        """
        time, y = state["time"], x[:, None]
        place, size = time % self.chunk_size, self.chunk_size
        steps = self.last_write_steps(time // size)[..., None] + torch.arange(1 - size, 1, device=time.device)
        is_rewritten = steps[..., -1] >= (self.num_slots * size if self.retrieves else 0)
        reads = {}
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            tokens, keys, values, slots = self._project_step(layer, y, own, time)
            near = torch.softmax(score_own_chunk(tokens.query[:, 0], keys, place), dim=-1).mean(1)
            reads[f"own chunk, layer {index}"] = Read.from_weights(last_steps(time, size), near)
            y = layer.attend(y, tokens.query, keys, values, place[:, None])
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
            x = layer.attend(x, tokens.query, keys, values, place)
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
        layer: SlotLayer,
        slot_schedule: _SlotSchedule,
        before: Float[Tensor, "batch chunk_and_time dim"],
        slots: Float[Tensor, "batch slots dim"],
    ) -> Slots:
        """Return all versions of the slots (see `_SlotSchedule`), concatenated."""
        size = self.chunk_size
        empty = self._initial_slots(layer, len(slots)).to(slots.dtype)
        versions = [empty, slots]
        for index in range(slot_schedule.steps.shape[1]):
            chunk = slot_schedule.chunk[:, index]
            content = torch.where((chunk == 0)[:, None, None], empty, versions[-1])
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
        last = self.last_write_steps(time // self.chunk_size)
        return {
            name: value
            if name == "time"
            else self._slots(value, last).content
            if name.startswith("slots")
            else zero_slots(value, is_visited)
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
