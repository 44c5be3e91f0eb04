"""Titans with memory as a context: attention inside a chunk, over what memory recalls and the chunk.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), section 4.1, equations 21 to 25. A segment of the
paper is the memory's chunk here, so the memory before the segment is its anchor, or `segment_chunks` of them
(`memory/titans/segments.py`). For every step memory recalls a token; attention sees persistent tokens and, of
the segment up to the present step, recalled tokens and inputs; what it read, added to its input, is learned,
recalled after that, and gated. The paper's last recall comes after the whole segment is learned, which would
show a step its future; here it comes after the step's own write. The memory has no convolution: attention
stands before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from scrubjay.kernels import NeuralState
from scrubjay.kernels.derivatives import has_own_gradient
from scrubjay.memory.contract.base import LATER, State
from scrubjay.memory.contract.recalled import Read
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.parts.rotary import turns
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.titans import context, course
from scrubjay.memory.titans.attention import (
    NARROWEST_HEAD,
    GateKind,
    MemoryGate,
    PersistentTokens,
    check_gate,
)
from scrubjay.memory.titans.heads import normalised
from scrubjay.memory.titans.lmm import Titans, TitansConfig, TitansLayer
from scrubjay.memory.titans.neural import cut_rows, most_momentum
from scrubjay.memory.titans.segments import SegmentContext
from scrubjay.memory.titans.stepping import is_matrix

_CACHES = ("keys", "values")
_STATE = (*NeuralState._fields, *_CACHES)


@dataclass(frozen=True)
class TitansMACConfig(TitansConfig):
    """Sizes of `TitansMAC`. Raises ValueError on one that cannot work."""

    convolution: int = 1
    """Always 1: attention mixes what a key is made of."""
    read_before_write: bool = False
    """Whether the last recall comes before the write of its own step."""
    num_persistent: int = 4
    """Learned keys and values that attention always sees."""
    attention_heads: int | None = None
    """Attention heads, at least 4 wide; by default as many as divide `dim`, up to 4."""
    gate: GateKind = field(default="mix", metadata=LATER)
    """How what was read and what is recalled become one: mixed, or multiplied, as equation 25 has it."""
    segment_chunks: int = field(default=1, metadata=LATER)
    """Chunks of a segment, which is what attention sees at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.convolution != 1:
            raise ValueError(
                f"convolution={self.convolution}: the memory of titans_mac has none; leave it at 1"
            )
        if self.num_persistent < 0:
            raise ValueError(f"num_persistent={self.num_persistent}: must not be negative")
        resolve_heads(self.dim, self.attention_heads, NARROWEST_HEAD, "attention_heads")
        check_gate(self.gate)
        if self.segment_chunks < 1:
            raise ValueError(f"segment_chunks={self.segment_chunks}: must be at least 1")

    def build(self) -> TitansMAC:
        """Return a freshly initialised memory of these sizes."""
        return TitansMAC(self)


class _ContextLayer(TitansLayer):
    """State, beside that of memory.

    `keys` and `values` `[batch, 2 segment, dim]` of the segment's inputs and recalls; of segments of several
    chunks `before`, as `anchor`, the memory before them.
    """

    in_place = True

    def __init__(self, config: TitansMACConfig) -> None:
        super().__init__(config)
        self.config = config
        self.length = config.chunk_size * config.segment_chunks
        self.names = _STATE
        if config.segment_chunks > 1:
            self.names, self.in_place = (*_STATE, "before"), False
        self.attention = PersistentTokens(config.dim, config.attention_heads, config.num_persistent)
        self.recall_query = nn.Linear(config.dim, config.dim, bias=False)
        self.write_norm = nn.LayerNorm(config.dim)
        self.gate = MemoryGate(config.dim, config.gate)

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return the layer's state at the birth of an episode."""
        shape = (batch_size, 2 * self.length, self.config.dim)
        caches = {name: torch.zeros(shape, dtype=dtype, device=device) for name in _CACHES}
        state = self.memory.initial_state(batch_size, dtype, device) | caches
        return state | {name: torch.zeros_like(state["anchor"]) for name in self.names[len(_STATE) :]}

    def step(self, x, state, time):
        now = self._moment(x, state, time)
        attended = x + self._attend(*now.asked[:2], now.values, now.asked[2])[:, 0]
        recalled, surprise, learned = self.memory.step(self.write_norm(attended), now.state, time)
        return self.feed(x + self.gate(attended, recalled)), surprise, learned | now.caches | now.before

    def reads(self, x, state, time):
        """Return what attention reads of the segment's inputs, and of what memory recalled for each."""
        place = (time % self.length)[:, None]
        weights = self._weigh(*self._moment(x, state, time).asked).unflatten(0, (len(x), -1))[:, :, 0].mean(1)
        inputs, recalls = weights[:, self.attention.num_persistent :].chunk(2, dim=1)
        slot = torch.arange(self.length, device=x.device)
        steps = torch.where(slot <= place, time[:, None] - place + slot, -1)
        return {"segment": Read.of(steps, inputs), "recalled in the segment": Read.of(steps, recalls)}

    def _moment(self, x: Tensor, state: State, time: Tensor) -> _Moment:
        """Return what attention asks in a step, and what it may read."""
        size, attention = self.length, self.attention
        place = time % size
        state = self.memory.cut(state, time)
        before = self._before(state, time)
        recalling = {"anchor": before.get("before", state["anchor"])}
        normed = self.memory_norm(x)[:, None]
        slot = torch.arange(2 * size, device=x.device)
        caches = {}
        for name, new in self._context(normed, place[:, None], recalling).items():
            written = torch.cat([new[:, :1].expand(-1, size, -1), new[:, 1:].expand(-1, size, -1)], dim=1)
            here = (slot % size == place[:, None])[..., None]
            # A new segment begins with nothing of the last.
            kept = torch.where((place == 0)[:, None, None], 0, state[name])
            caches[name] = torch.where(here, written.to(kept.dtype), kept)
        visible = slot % size <= place[:, None]
        query = attention.project_query(normed, place[:, None]) * attention.width**-0.5
        shape = (attention.heads, attention.width)
        keys, values = (caches[name].to(query.dtype).unflatten(-1, shape) for name in _CACHES)
        keys, values = attention.before(keys, values)
        hidden = torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, -torch.inf)
        hidden = functional.pad(hidden, (attention.num_persistent, 0)).repeat_interleave(attention.heads, 0)
        query, keys, values = (part.transpose(1, 2) for part in (query, keys, values))
        return _Moment((query, keys, hidden[:, None]), values, state, caches, before)

    def _before(self, state: State, time: Tensor) -> State:
        """Return the memory before the segment, where that is another than the one before the chunk."""
        if self.config.segment_chunks == 1:
            return {}
        before, every = state["before"], self.config.bptt_chunks
        if every:
            cut = time % (every * self.config.chunk_size) == 0
            before = torch.where(cut[:, None, None], before.detach(), before)
        opens = time % self.length == 0
        return {"before": torch.where(opens[:, None, None], state["anchor"], before)}

    def segment(self, x, state, grid):
        run = self._by_hand if self._has_own_gradient(x, state) else self.forward
        attended, written, reads, *after, surprise = run(grid, x, *(state[name] for name in self.names))
        mixed = self.gate(attended, self.memory.finish(written, reads))
        return self.feed(x + mixed), surprise, dict(zip(self.names, after, strict=True))

    def forward(
        self, grid: ChunkGrid, x: Float[Tensor, "batch time dim"], *given: Tensor
    ) -> tuple[Tensor, ...]:
        """Return what attention adds up to, its norm, what memory reads for `finish`, the state, surprises.

        In plain operations, chunk by chunk; the state's parts are given one by one.
        """
        state = dict(zip(self.names, given, strict=True))
        every, shape = self.config.bptt_chunks, (grid.num_chunks, -1)
        laid = grid.lay(x)
        normed = self.memory_norm(laid)
        held = self._held(x, state, grid)
        # What depends on inputs alone comes for all chunks at once, as does what nothing waits for.
        chunks = zip(
            laid.unflatten(1, shape).unbind(1),
            self.memory.asked(self.recall_query(normed)).unflatten(1, shape).unbind(1),
            *(part.unflatten(2, shape).unbind(2) for part in self._of_inputs(normed, held.place)),
            strict=True,
        )
        begins = [] if grid.fresh is None else grid.fresh.any(0).tolist()
        learned = {name: state[name] for name in NeuralState._fields}
        attended, written, reads, surprises = [], [], [], []
        for index, (here, asked, query, *own) in enumerate(chunks):
            if grid.fresh is not None and begins[index]:
                fresh = grid.fresh[:, index, None, None]
                learned = {name: torch.where(fresh, 0, value) for name, value in learned.items()}
            if every:
                cut = grid.boundaries(every)[:, index]
                learned = cut_rows(learned, cut)
                held.cut(cut)
            context = held.add(index, own, self.memory.recall(asked, held.recalled_from(index, learned)))
            attended.append(here + self._attend(query, context[0], context[1], held.hidden))
            written.append(self.write_norm(attended[-1]))
            read, surprise, learned = self.memory.learn(written[-1], learned, held.present(index))
            reads.append(read)
            surprises.append(surprise)
        found = (grid.collect(torch.cat(parts, dim=1)) for parts in (attended, written, reads))
        surprise = grid.collect(torch.cat(surprises, dim=1)[..., None])[..., 0]
        after = learned | held.after()
        return *found, *(after[name] for name in self.names), surprise

    def _held(self, x: Tensor, state: State, grid: ChunkGrid) -> _ContextOfChunks | SegmentContext:
        """Return what attention sees of a segment's chunks."""
        if self.config.segment_chunks == 1:
            return _ContextOfChunks(self, x, state, grid)
        return SegmentContext(self.attention, state, grid, self.config.segment_chunks)

    def _by_hand(self, grid: ChunkGrid, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the same, with gradients written by hand."""
        attention, memory, batch = self.attention, self.memory, len(x)
        sizes = course.Sizes(
            batch,
            grid.num_chunks,
            self.config.chunk_size,
            self.config.dim,
            attention.heads,
            attention.rotated,
            attention.num_persistent,
            memory.heads,
            self.config.max_step / self.config.chunk_size,
            most_momentum(self.config.chunk_size),
            self.config.read_before_write,
        )
        place = torch.arange(sizes.length)
        turn = turns(place, attention.frequencies, attention.width, x.dtype)
        at = course.course_of(grid, sizes, turn, self.config.bptt_chunks)
        weights = self._weights()

        def plain(*given):
            named = {name: weight for name, weight in zip(weights, given[6:], strict=True) if name in present}
            return functional_call(self, named, (grid, *given[:6]))[:-1]

        present = {name for name, weight in weights.items() if weight.numel()}
        *found, squared = context.run(plain, at, x, *state, *weights.values())
        return *found, squared.sqrt().mean(-1)

    def _has_own_gradient(self, x: Tensor, state: State) -> bool:
        """Return whether gradients by hand are those of these numbers."""
        # Written for bounded steps and for segments of one chunk.
        usual = self.config.bound_steps and self.config.segment_chunks == 1
        if not (is_matrix(self.memory) and usual and x.numel()) or self.attention.width % 2:
            return False
        return has_own_gradient(x, *(state[name] for name in _STATE), self.recall_query.weight)

    def _weights(self) -> dict[str, Tensor]:
        """Return the parameters that a segment's chunks take, in the order of `forward.Given`."""
        attention, memory = self.attention, self.memory
        if attention.num_persistent:
            still = attention.persistent_keys, attention.persistent_values
        else:
            still = attention.persistent(1, self.recall_query.weight.dtype)
            still = still[0][0, ..., attention.rotated :], still[1][0]
        return {
            "memory_norm.weight": self.memory_norm.weight,
            "memory_norm.bias": self.memory_norm.bias,
            "attention.query.weight": attention.query.weight,
            "attention.key.weight": attention.key.weight,
            "attention.value.weight": attention.value.weight,
            "attention.out.weight": attention.out.weight,
            "attention.persistent_keys": still[0],
            "attention.persistent_values": still[1],
            "recall_query.weight": self.recall_query.weight,
            "memory.out_norm.weight": memory.out_norm.weight,
            "memory.out.weight": memory.out.weight,
            "write_norm.weight": self.write_norm.weight,
            "write_norm.bias": self.write_norm.bias,
            "memory.project_in.weight": memory.project_in.weight,
            "memory.gates.weight": memory.gates.weight,
            "memory.gates.bias": memory.gates.bias,
            "memory.weights.0": memory.weights[0],
        }

    def opened(self, caches, age):
        return _Folded.of(self, caches)._asdict()

    def closed(self, caches):
        return {name: caches[name].transpose(1, 2).flatten(2).clone() for name in _CACHES}

    def forget(self, caches, rows):
        """Do nothing: at the first step of a chunk all is emptied."""

    def advance(self, x, memory, caches, time):
        attention, size = self.attention, self.config.chunk_size
        place = time % size
        cos, sin, hidden = (caches[name].index_select(0, place) for name in ("cos", "sin", "hidden"))
        begun = (place == 0).nonzero()[:, 0]
        normed = self.memory_norm(x)
        shape = (-1, attention.heads, attention.width)
        of_input = (normed @ caches["of_input"]).unflatten(-1, shape)
        query = torch.addcmul(of_input[:, 0] * cos, of_input[:, 1], sin)
        asked = self.memory.asked(of_input[:, 5].flatten(1))
        recalled = normalised(self.memory.out_norm, memory.recall(asked)).flatten(-2)
        of_recalled = (recalled @ caches["of_recalled"]).unflatten(-1, shape)
        if len(begun):
            for name in _CACHES:
                caches[name].index_fill_(0, begun, 0)
        row = torch.arange(len(x))
        for slot, parts in ((place, of_input[:, 2:5]), (place + size, of_recalled)):
            caches["keys"][row, :, slot] = torch.addcmul(parts[:, 0] * cos, parts[:, 1], sin)
            caches["values"][row, :, slot] = parts[:, 2]
        keys, values = (caches[name].flatten(0, 1) for name in _CACHES)
        still = torch.matmul(query[:, :, None], caches["still_keys"])[:, :, 0]
        scores = torch.bmm(query.flatten(0, 1)[:, None], keys.mT).view(*query.shape[:2], -1)
        weights = torch.softmax(torch.cat([still, scores + hidden[:, None]], dim=-1), dim=-1)
        still, weights = weights.split([attention.num_persistent, 2 * size], dim=-1)
        read = torch.bmm(weights.flatten(0, 1)[:, None], values).view(query.shape)
        read += torch.matmul(still[:, :, None], caches["still_values"])[:, :, 0]
        attended = x + attention.out(read.flatten(1))
        recalled = memory.step(self.write_norm(attended))
        return self.feed(x + self.gate(attended, recalled))

    def _of_inputs(self, normed: Tensor, place: Tensor) -> list[Float[Tensor, "batch heads places width"]]:
        """Return queries, scaled, and the keys and values of what is laid on a grid."""
        attention = self.attention
        query = attention.project_query(normed, place) * attention.width**-0.5
        return [part.transpose(1, 2) for part in (query, *attention.project(normed, place))]

    def _context(self, normed: Tensor, place: Tensor, learned: State) -> State:
        """Return keys and values `[batch, 2 time, dim]` of inputs, then of what memory recalls for them."""
        recalled = self.memory.recall(self.memory.asked(self.recall_query(normed)), learned)
        parts = [self.attention.project(tokens, place) for tokens in (normed, recalled)]
        return {
            name: torch.cat([part[index].flatten(2) for part in parts], dim=1)
            for index, name in enumerate(_CACHES)
        }

    def _attend(
        self,
        query: Float[Tensor, "batch heads time width"],
        keys: Float[Tensor, "batch heads slots width"],
        values: Float[Tensor, "batch heads slots width"],
        hidden: Float[Tensor, "#rows time slots"],
    ) -> Float[Tensor, "batch time dim"]:
        """Return what scaled queries read of what is not `hidden`, which is -inf there and else 0."""
        # Written out, for the sake of higher derivatives; the context is two chunks long.
        read = torch.bmm(self._weigh(query, keys, hidden).to(values.dtype), values.flatten(0, 1))
        return self.attention.out(read.unflatten(0, (-1, self.attention.heads)).transpose(1, 2).flatten(2))

    def _weigh(
        self, query: Tensor, keys: Tensor, hidden: Tensor
    ) -> Float[Tensor, "rows_of_heads time slots"]:
        scores = torch.baddbmm(hidden, query.flatten(0, 1), keys.flatten(0, 1).mT)
        return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


class _Moment(NamedTuple):
    """What attention asks in a step, and what it may read."""

    asked: tuple[Tensor, Tensor, Tensor]
    """Queries, scaled, keys and what is hidden, as `_attend` takes them."""
    values: Float[Tensor, "batch heads slots width"]
    state: State
    """The memory's, before the step."""
    caches: State
    """Keys and values with those of the step."""
    before: State
    """The memory before the segment, if the state has it."""


class _Folded(NamedTuple):
    """What steps in place take: a layer's caches, overwritten, and what follows from its weights alone."""

    keys: Float[Tensor, "batch heads slots width"]
    values: Float[Tensor, "batch heads slots width"]
    of_input: Float[Tensor, "dim six_dims"]
    """To queries, keys and values, and to what memory is asked; queries and keys with what turns them."""
    of_recalled: Float[Tensor, "dim three_dims"]
    """To keys, to what turns them, and to values of what memory recalls before its projection."""
    cos: Float[Tensor, "chunk_size 1 width"]
    sin: Float[Tensor, "chunk_size 1 width"]
    hidden: Float[Tensor, "chunk_size slots"]
    still_keys: Float[Tensor, "heads width persistent"]
    still_values: Float[Tensor, "heads persistent width"]

    @classmethod
    def of(cls, layer: _ContextLayer, caches: State) -> _Folded:
        attention, dtype = layer.attention, caches["keys"].dtype
        place = torch.arange(layer.config.chunk_size)
        cos, sin = turns(place, attention.frequencies, attention.width, dtype)
        both = attention.both()
        of_input = torch.cat([attention.turned_query(), both, layer.recall_query.weight])
        seen = (place[:, None] >= place).repeat(1, 2)
        keys, values = (part[0].transpose(0, 1) for part in attention.persistent(1, dtype))
        return cls(
            keys=_by_head(caches["keys"], attention),
            values=_by_head(caches["values"], attention),
            of_input=of_input.T.contiguous(),
            of_recalled=(both @ layer.memory.out.weight).T.contiguous(),
            cos=cos[:, None],
            sin=sin[:, None],
            hidden=torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, -torch.inf),
            still_keys=keys.mT.contiguous(),
            still_values=values.contiguous(),
        )


def _by_head(cache: Tensor, attention: PersistentTokens) -> Float[Tensor, "batch heads slots width"]:
    """Return a copy of what a state holds, one head after the other."""
    of_heads = cache.unflatten(-1, (attention.heads, attention.width)).transpose(1, 2)
    return of_heads.clone(memory_format=torch.contiguous_format)


class _ContextOfChunks:
    """Keys and values of a segment's chunks: persistent ones, those of inputs, those of what was recalled."""

    def __init__(self, layer: _ContextLayer, x: Tensor, state: State, grid: ChunkGrid) -> None:
        self.attention, self.grid = layer.attention, grid
        size, batch = grid.chunk_size, len(x)
        self.still = [part.transpose(1, 2) for part in self.attention.persistent(batch, x.dtype)]
        self.both = self.attention.both()
        place = torch.arange(size, device=x.device)
        self.place = place.repeat(grid.num_chunks)[None]
        self.turn = turns(place, self.attention.frequencies, self.attention.width, x.dtype)
        seen = (place[:, None] >= place).repeat(1, 2)
        seen = functional.pad(seen, (self.attention.num_persistent, 0), value=True)
        self.hidden = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, -torch.inf)[None]
        self.valid = None if grid.valid is None else grid.valid.unflatten(1, (grid.num_chunks, size))
        self.whole = [] if self.valid is None else self.valid.all(-1).all(0).tolist()
        self.given = {name: state[name] for name in _CACHES}
        self.chunks: list[list[Tensor]] = []

    def present(self, index: int) -> Bool[Tensor, "batch chunk_size"] | None:
        """Return which places of a chunk hold a step, None if all do."""
        return None if self.valid is None or self.whole[index] else self.valid[:, index]

    def recalled_from(self, index: int, learned: State) -> State:
        """Return the memory that a chunk recalls from."""
        return learned

    def cut(self, rows: Bool[Tensor, " batch"]) -> None:
        """Do nothing: no memory but the present one is kept."""

    def add(self, index: int, own: list[Tensor], recalled: Tensor) -> list[Tensor]:
        """Return keys and values of the next chunk, `[batch, heads, slots, width]`."""
        of_recalled = self.attention.turned(functional.linear(recalled, self.both), self.turn)
        held = [torch.cat(parts, dim=2) for parts in zip(self.still, own, of_recalled, strict=True)]
        present = self.present(index)
        if index == 0 and present is not None:
            # What a chunk holds already was written by the segment before; only the first of a row can.
            kept = self._slots(~present & ~self.grid.begins[:, :1])
            given = [self._given(name).to(part.dtype) for name, part in zip(_CACHES, held, strict=True)]
            held = [torch.where(kept, old, new) for old, new in zip(given, held, strict=True)]
        self.chunks.append(held)
        return held

    def after(self) -> State:
        """Return what the last chunk of every row holds, zero where it holds no step yet."""
        if self.valid is None:
            held = self.chunks[-1]
        else:
            last = self.valid.any(-1).long().cumsum(1).argmax(1)
            row = torch.arange(len(last), device=last.device)
            kept = self.valid[row, last] | ((last == 0) & ~self.grid.begins[:, 0])[:, None]
            every = [torch.stack(parts, dim=1)[row, last] for parts in zip(*self.chunks, strict=True)]
            held = [torch.where(self._slots(kept), part, 0) for part in every]
        skipped = self.attention.num_persistent
        return {
            name: part[:, :, skipped:].transpose(1, 2).flatten(2).to(self.given[name].dtype)
            for name, part in zip(_CACHES, held, strict=True)
        }

    def _slots(self, places: Bool[Tensor, "batch chunk_size"]) -> Bool[Tensor, "batch 1 slots 1"]:
        return functional.pad(places.repeat(1, 2), (self.attention.num_persistent, 0))[:, None, :, None]

    def _given(self, name: str) -> Float[Tensor, "batch heads slots width"]:
        shape = (self.attention.heads, self.attention.width)
        return functional.pad(
            self.given[name].unflatten(-1, shape).transpose(1, 2), (0, 0, self.attention.num_persistent, 0)
        )


class TitansMAC(Titans):
    """Layers of attention over a chunk and its recalls, learned by neural memory, and feed-forward.

    State: that of `Titans`, and for every layer the keys and values of the segment that is open.
    """

    layer_class: ClassVar[type[TitansLayer]] = _ContextLayer
