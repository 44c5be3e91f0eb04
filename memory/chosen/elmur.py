"""ELMUR: slots of a layer that every step reads, one of them rewritten at the end of each chunk.

Cherepanov et al. 2025 (External Layer Memory with Update/Rewrite, arXiv 2510.07151). Steps attend to their
own chunk (the paper's segment), then to the slots, with a bias by how long ago each was written. At the end
of a chunk a slot attends to what the layer made of its steps, passes a feed-forward part of its own, and is

    m <- new                             where it was empty,
    m <- blend new + (1 - blend) m       else;

empty ones are filled first, then the least recently written is rewritten. As one is at the end of each chunk,
that is the next one round, and a slot's age follows from the time. So a slot holds, of the chunks that it
was written at, the last by `blend` and those before by ever less; with 0 the first chunks stay for good.

What was not public and is chosen here: norms come before each part, as everywhere in this house, and what is
new in a slot is normed, too, lest slots grow for ever; heads have biases by the logarithm of distances (0 to
1, to 3, to 7 and so on), where the paper bounds these; a slot asks with a trained vector added, as empty ones
are zeros; gradients flow into slots to the beginning of a segment; positions in a chunk are rotary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.memory.chosen.own import OwnChunkAttention, Tokens, attend_own_chunk, own_scores, projections
from scrubjay.memory.contract.base import Memory, MemoryConfig, State
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
    seen_steps,
    take,
)
from scrubjay.memory.parts.feed_forward import feed_forward
from scrubjay.memory.parts.recent import shift_window
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.stepping.elmur import ELMURStepper

_BUCKETS = 32  # of distances: powers of two
_CHUNKS_AT_ONCE = 4  # of a segment whose steps read one table of slots


@dataclass(frozen=True)
class ELMURConfig(MemoryConfig):
    """Sizes of `ELMUR`. Raises ValueError on a size that cannot work."""

    chunk_size: int = 16
    """Steps at whose end one slot of a layer is rewritten."""
    num_slots: int = 16
    """Slots of a layer."""
    blend: float = 0.5
    """What part of a slot that was written before is new when it is rewritten, from 0 to 1."""
    num_layers: int = 1
    """Layers, each with slots of its own."""
    num_heads: int | None = None
    """Attention heads; by default the largest divisor of `dim` up to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chunk_size", "num_slots", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend={self.blend}: must be from 0 to 1")
        resolve_heads(self.dim, self.num_heads)

    def build(self) -> ELMUR:
        """Return a freshly initialised memory of these sizes."""
        return ELMUR(self)


class Slots(NamedTuple):
    """What steps read: slots, and when each was written, in steps of the episode; below zero while empty."""

    content: Float[Tensor, "batch slots dim"]
    written: Int[Tensor, "batch slots"]


class ELMUR(Memory):
    """Layers of attention to the own chunk and to slots, and feed-forward.

    State, per layer l: `slots_l` `[batch, slots, dim]`, zeros while empty; of the last `chunk_size` steps
    `recent_keys_l`, `recent_values_l` and what came out, `recent_l` `[batch, chunk_size, dim]`; and
    `time [batch]`, steps since the episode began.
    """

    retrieves = True

    def __init__(self, config: ELMURConfig) -> None:
        super().__init__(config)
        self.chunk_size, self.num_slots = config.chunk_size, config.num_slots
        layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.layers = cast("list[_Layer]", layers)
        self.no_gradient = _indifferent_parameters(config)

    def initial_state(self, batch_size: int) -> State:
        """Return empty slots."""
        recent = (self.chunk_size, self.dim)
        shapes = {
            "slots": (self.num_slots, self.dim),
            "recent_keys": recent,
            "recent_values": recent,
            "recent": recent,
        }
        return empty_layers(self, batch_size, len(self.layers), shapes)

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return what the slots answer to the queries `x`, summed over layers: zeros while all are empty."""
        time = state["time"]
        written = self.written(time // self.chunk_size)
        total = torch.zeros_like(x)
        for index, layer in enumerate(self.layers):
            slots = Slots(blanked(state[f"slots_{index}"], written >= 0), written)
            total = total + layer.read(x, time[:, None].expand(-1, x.shape[1]), slots)
        return total

    def written(self, chunks: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch slots"]:
        """Return at which step each slot was last written, after so many chunks of an episode, or -1."""
        slot = torch.arange(self.num_slots, device=chunks.device)
        last = chunks[..., None] - 1
        chunk = last - (last - slot) % self.num_slots
        return torch.where(chunk >= 0, (chunk + 1) * self.chunk_size - 1, -1)

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance by one step: read the slots, and rewrite one at the end of a chunk."""
        time, y = state["time"], x[:, None]
        place, chunks = (time % self.chunk_size)[:, None], time // self.chunk_size
        completes = place[:, 0] == self.chunk_size - 1
        everywhere = torch.compiler.is_compiling() or bool(completes.any())
        seen = seen_steps(time, self.chunk_size)
        after: State = {"time": time + 1}
        for index, layer in enumerate(self.layers):
            own = part_of(state, suffix=f"_{index}")
            tokens, keys, values, slots = self._seen(layer, y, own, time)
            y = y + layer.attend(tokens.query, keys, values, place)
            y = layer.finish(y, time[:, None], slots)
            steps = torch.cat([blanked(own["recent"], seen)[:, 1:], y.to(self.state_dtype)], dim=1)
            content = layer.rewritten(slots, steps, chunks, completes) if everywhere else slots.content
            own = {
                "slots": content,
                "recent_keys": keys[:, 1:].clone(),
                "recent_values": values[:, 1:].clone(),
                "recent": steps,
            }
            after |= named(own, suffix=f"_{index}")
        return y[:, 0], after

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows in place."""
        if not self.steps_as(ELMUR, state):
            return super().stepper(state)
        return ELMURStepper(self.layers, self.blank_unwritten(state), self.chunk_size, self.written, Slots)

    def _seen(
        self, layer: _Layer, y: Float[Tensor, "batch 1 dim"], own: State, time: Int[Tensor, " batch"]
    ) -> tuple[Tokens, Tensor, Tensor, Slots]:
        """Return what a layer makes of one step, keys and values of the last steps and it, and the slots."""
        seen, written = seen_steps(time, self.chunk_size), self.written(time // self.chunk_size)
        tokens = layer.tokens(y, (time % self.chunk_size)[:, None], self.state_dtype)
        keys, values = (
            torch.cat([blanked(own[f"recent_{name}"], seen), new.flatten(2)], dim=1)
            for name, new in (("keys", tokens.key), ("values", tokens.value))
        )
        return tokens, keys, values, Slots(blanked(own["slots"], written >= 0), written)

    @torch.no_grad()
    def recalled(self, x: Float[Tensor, "batch dim"], state: State) -> Recalled:
        """Return what all layers read of a step's own chunk, and of those that slots were last written at.

        Of a slot that was written before, so much is told as its last chunk is of it, by `blend`.
        """
        time, y = state["time"], x[:, None]
        place, size = time % self.chunk_size, self.chunk_size
        steps = self.written(time // size)[..., None] + torch.arange(1 - size, 1, device=time.device)
        rewritten = steps[..., -1] >= self.num_slots * size
        reads = {}
        for index, layer in enumerate(self.layers):
            own = part_of(state, suffix=f"_{index}")
            tokens, keys, values, slots = self._seen(layer, y, own, time)
            near = torch.softmax(own_scores(tokens.query[:, 0], keys, place), dim=-1).mean(1)
            reads[f"own chunk, layer {index}"] = Read.of(last_steps(time, size), near)
            y = y + layer.attend(tokens.query, keys, values, place[:, None])
            far = layer.weigh(y, time[:, None], layer.normed(slots))[:, :, 0].mean(1)
            far = torch.where(rewritten, layer.blend * far, far)[..., None].expand(-1, -1, size) / size
            reads[f"slots, layer {index}"] = Read.of(steps.clamp(min=-1), far)
            y = layer.finish(y, time[:, None], slots)
        return Recalled(reads, {})

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance by a segment, the steps between two rewritings at once, whatever the pattern of `start`."""
        outputs, most = [], _CHUNKS_AT_ONCE * self.chunk_size
        for first in range(0, x.shape[1], most):
            y, state = self._part(x[:, first : first + most], state, start[:, first : first + most])
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    def _part(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Advance by a few chunks."""
        clock = Clock.of(state["time"], start)
        place = clock.place(self.chunk_size)
        course = self._course(clock)
        after: State = {"time": clock.after}
        for index, layer in enumerate(self.layers):
            own = part_of(state, suffix=f"_{index}")
            tokens = layer.tokens(x, place, self.state_dtype)
            new = {"recent_keys": tokens.key.flatten(2), "recent_values": tokens.value.flatten(2)}
            keys, values = (torch.cat([own[name], new[name]], dim=1) for name in new)
            x = x + layer.attend(tokens.query, keys, values, place)
            before = torch.cat([own["recent"], x.to(self.state_dtype)], dim=1)
            table = self._table(layer, course, before, own["slots"])
            x = layer.finish(x, clock.step, table, course.readable)
            new["recent"] = x.to(self.state_dtype)
            own = {name: shift_window(own[name], items, clock) for name, items in new.items()}
            own["slots"] = course.last(table.content, self.num_slots)
            after |= named(own, suffix=f"_{index}")
        return x, after

    def _course(self, clock: Clock) -> _Course:
        """Return what becomes of the slots in a part of a segment; the same for every layer."""
        size, device = self.chunk_size, clock.step.device
        steps = plan_chunks(clock, size, 1, size).steps
        ends = steps[..., -1] - size
        chunk = clock.chunk(size).gather(1, ends)
        completes = clock.place(size) == size - 1
        completed = completes.cumsum(dim=1)
        there = torch.arange(ends.shape[1], device=device) < completed[:, -1:]
        # Versions of the slots: none, those before the part, and those after each of its chunks.
        version = 1 + completed - completes.long()
        own = clock.chunk(size)
        born = own == 0
        version = torch.where(born, 0, version)
        count = 2 + ends.shape[1]
        shown = torch.arange(count, device=device) == version[..., None]
        age = clock.age[:, None]
        since = torch.cat([torch.zeros_like(age), age // size, chunk + 1], dim=1)
        last = torch.where(clock.after // size == 0, 0, 1 + completed[:, -1])
        return _Course(steps, chunk, there, shown, self.written(since), last)

    def _table(
        self,
        layer: _Layer,
        course: _Course,
        before: Float[Tensor, "batch chunk_and_time dim"],
        slots: Float[Tensor, "batch slots dim"],
    ) -> Slots:
        """Return all versions of the slots, one after the other."""
        size = self.chunk_size
        empty = torch.zeros_like(slots)
        versions = [empty, slots]
        for index in range(course.steps.shape[1]):
            chunk = course.chunk[:, index]
            content = torch.where((chunk == 0)[:, None, None], 0, versions[-1])
            current = Slots(content, self.written(chunk))
            steps = take(before, course.steps[:, index])
            time = chunk[:, None] * size + torch.arange(size, device=chunk.device)
            # Those of before the part have come out of the layer, the others only out of attention.
            made = layer.finish(steps.to(layer.out.weight.dtype), time, current).to(steps.dtype)
            steps = torch.where((course.steps[:, index] < size)[..., None], steps, made)
            versions.append(layer.rewritten(current, steps, chunk, course.there[:, index]))
        written = course.written.flatten(1)
        return Slots(torch.cat(versions, dim=1), written)

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros where no step has reached, as it is where that does no harm."""
        if is_harmless(state):
            return state
        time = state["time"]
        seen = seen_steps(time, self.chunk_size)
        written = self.written(time // self.chunk_size) >= 0
        return {
            name: value if name == "time" else blanked(value, written if name.startswith("slots") else seen)
            for name, value in state.items()
        }


class _Course(NamedTuple):
    """What becomes of the slots in a part of a segment."""

    steps: Int[Tensor, "batch N chunk_size"]
    """Where the steps of the chunks lie that it completes, in the chunk before it and the part."""
    chunk: Int[Tensor, "batch N"]
    """Their numbers in their episodes."""
    there: Bool[Tensor, "batch N"]
    """Whether there is such a chunk."""
    shown: Bool[Tensor, "batch time versions"]
    """Which version of the slots each step reads."""
    written: Int[Tensor, "batch versions slots"]
    """When the slots of each version were written."""
    final: Int[Tensor, " batch"]
    """The version that is left."""

    @property
    def readable(self) -> Bool[Tensor, "batch time versions_slots"]:
        """Return which slots of all versions each step reads, if they are written."""
        return self.shown.repeat_interleave(self.written.shape[-1], dim=2)

    def last(self, table: Float[Tensor, "batch versions_slots dim"], slots: int) -> Tensor:
        """Return the slots that are left."""
        versions = table.unflatten(1, (-1, slots))
        return take(versions, self.final[:, None])[:, 0]


class _Layer(OwnChunkAttention):
    """Attention to the own chunk, to slots, and feed-forward; and what rewrites a slot."""

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
        """Return what steps read of their own chunks."""
        read, _ = attend_own_chunk(query, keys, values, place, self.chunk_size)
        return self.out(read.flatten(2).to(self.out.weight.dtype))

    def read(
        self,
        x: Float[Tensor, "batch time dim"],
        time: Int[Tensor, "batch time"],
        slots: Slots,
        readable: Bool[Tensor, "batch time slots"] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """Return what queries read of the slots that are written, all of them or those that are readable."""
        slots = self.normed(slots)
        value = self._heads(self.read_value(slots.content))
        weights = self.weigh(x, time, slots, readable).to(value.dtype)
        return self.read_out((weights @ value).transpose(1, 2).flatten(2))

    def normed(self, slots: Slots) -> Slots:
        """Return slots as steps read them."""
        return Slots(self.slot_norm(slots.content.to(self.read_out.weight.dtype)), slots.written)

    def weigh(
        self,
        x: Float[Tensor, "batch time dim"],
        time: Int[Tensor, "batch time"],
        slots: Slots,
        readable: Bool[Tensor, "batch time slots"] | None = None,
    ) -> Float[Tensor, "batch heads time slots"]:
        """Return how much of what `read` reads is of each slot, whose contents come normed."""
        query = self._heads(self.read_query(self.read_norm(x)))
        key = self._heads(self.read_key(slots.content))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        distance = time[:, :, None] - slots.written[:, None]
        bucket = torch.bucketize(distance.clamp(min=0), self.edges, right=True)
        # The gradient of an index would take three times as long.
        bias = self.read_bias.gather(1, bucket.flatten().expand(self.heads, -1))
        scores = scores + bias.unflatten(1, bucket.shape).transpose(0, 1).to(scores.dtype)
        known = (slots.written >= 0)[:, None]
        known = known if readable is None else known & readable
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return softmax_or_zero(scores.masked_fill(~known[:, None], float("-inf")))

    def finish(
        self, x: Tensor, time: Tensor, slots: Slots, readable: Bool[Tensor, "batch time slots"] | None = None
    ) -> Float[Tensor, "batch time dim"]:
        """Return what comes out of the layer for steps that have attended to their chunks."""
        x = x + self.read(x, time, slots, readable)
        return x + self.feed_forward(x)

    def rewritten(
        self,
        slots: Slots,
        steps: Float[Tensor, "batch chunk_size dim"],
        chunk: Int[Tensor, " batch"],
        where: Bool[Tensor, " batch"],
    ) -> Float[Tensor, "batch slots dim"]:
        """Return the slots after the end of a chunk, in the rows named by `where`."""
        chosen = torch.arange(self.num_slots, device=chunk.device) == (chunk % self.num_slots)[:, None]
        old = (slots.content * chosen[..., None]).sum(dim=1)
        dtype = self.write_out.weight.dtype
        full = (chunk >= self.num_slots)[:, None]
        asking = old.to(dtype)
        steps = self.step_norm(steps.to(dtype))
        query = self._heads(self.write_query(self.write_norm(asking + self.asker))[:, None])
        key, value = self._heads(self.write_key(steps)), self._heads(self.write_value(steps))
        scores = query @ key.mT * query.shape[-1] ** -0.5 + self.write_bias[:, None]
        dtype = torch.promote_types(scores.dtype, torch.float32)
        read = torch.softmax(scores, dim=-1, dtype=dtype).to(value.dtype) @ value
        new = asking + self.write_out(read.transpose(1, 2).flatten(2)[:, 0])
        new = self.written_norm(new + self.write_feed_forward(new)).to(old.dtype)
        new = torch.where(full, self.blend * new + (1 - self.blend) * old, new)
        return torch.where((chosen & where[:, None])[..., None], new[:, None], slots.content)

    def _heads(self, x: Float[Tensor, "batch items dim"]) -> Float[Tensor, "batch heads items width"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _indifferent_parameters(config: ELMURConfig) -> tuple[str, ...]:
    """Name the parameters that only weigh a single item, where a softmax is 1 whatever they are."""
    names = []
    if config.num_slots == 1:
        names += ["read_norm.weight", "read_norm.bias", "read_query.weight", "read_key.weight", "read_bias"]
    if config.chunk_size == 1:
        names += ["query.weight", "key.weight", "write_query.weight", "write_key.weight", "write_bias"]
        names += ["write_norm.weight", "write_norm.bias", "asker"]
    return tuple(f"layers.{layer}.{name}" for layer in range(config.num_layers) for name in names)
