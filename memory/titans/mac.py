"""Titans with memory as a context: attention inside a chunk, over the chunk and the memory's recalls.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), section 4.1, equations 21 to 25. A segment of the
paper is `segment_chunks` chunks here, by default one. For every step, the memory recalls one token. Attention
sees persistent tokens, and the recalls and inputs of the segment up to the present step. The attention output
plus its input is written to the memory. The memory then recalls again, and a gate combines this last recall
with the attention output. In the paper, the last recall follows the write of the whole segment, which would
leak the future into a step. Here it follows the write of its own step. There is no convolution, because
attention already mixes steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from scrubjay.kernels import NeuralState
from scrubjay.kernels.derivatives import supports_custom_backward
from scrubjay.memory.contract.base import Read, State
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.parts.rotary import compute_cos_sin
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.titans import schedule
from scrubjay.memory.titans.attention import (
    NARROWEST_HEAD,
    GateKind,
    MemoryGate,
    PersistentTokens,
    check_gate,
)
from scrubjay.memory.titans.backward import run_segment
from scrubjay.memory.titans.heads import apply_norm
from scrubjay.memory.titans.incremental import is_matrix
from scrubjay.memory.titans.lmm import Titans, TitansConfig, TitansLayer
from scrubjay.memory.titans.neural import compute_max_momentum, detach_rows
from scrubjay.memory.titans.segments import CACHES, ChunkContext, SegmentContext

_STATE = (*NeuralState._fields, *CACHES)


@dataclass(frozen=True)
class TitansMACConfig(TitansConfig):
    """Configuration of `TitansMAC`. Raises ValueError on an invalid value."""

    convolution: int = 1
    """Always 1 (no convolution), because attention already mixes steps before the memory."""
    read_before_write: bool = False
    """Make a step's second recall (after attention) before (True) or after (False) the step's write."""
    num_persistent: int = 4
    """Number of persistent tokens: learned keys and values that every step sees. 0 disables them."""
    attention_heads: int | None = None
    """Attention heads, each at least 4 wide. Default: the largest allowed divisor of `dim` up to 4."""
    gate: GateKind = "mix"
    """Combination of attention and memory: interpolated (`mix`) or multiplied (`product`, equation 25)."""
    segment_chunks: int = 1
    """Number of chunks per segment. Attention sees only steps of the present segment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.convolution != 1:
            raise ValueError(
                f"convolution={self.convolution}: titans_mac has no convolution; set convolution=1"
            )
        if self.num_persistent < 0:
            raise ValueError(f"num_persistent={self.num_persistent}: must not be negative")
        resolve_heads(self.dim, self.attention_heads, NARROWEST_HEAD, "attention_heads")
        check_gate(self.gate)
        if self.segment_chunks < 1:
            raise ValueError(f"segment_chunks={self.segment_chunks}: must be at least 1")

    def build(self) -> TitansMAC:
        """Return a newly initialized memory."""
        return TitansMAC(self)


class _ContextLayer(TitansLayer):
    """Layer of `TitansMAC`.

    State: the memory's entries, and `keys` and `values` `[batch, 2 segment, dim]` of the segment's inputs and
    recalls. With several chunks per segment, `before` is the memory before the segment, shaped as `anchor`.
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
        """Return the layer's state at the start of an episode."""
        shape = (batch_size, 2 * self.length, self.config.dim)
        caches = {name: torch.zeros(shape, dtype=dtype, device=device) for name in CACHES}
        state = self.memory.initial_state(batch_size, dtype, device) | caches
        return state | {name: torch.zeros_like(state["anchor"]) for name in self.names[len(_STATE) :]}

    def step(self, x, state, time):
        prepared_step = self._prepare_step(x, state, time)
        query, keys, hidden = prepared_step.attention_inputs
        attention_out = x + self._attend(query, keys, prepared_step.values, hidden)[:, 0]
        write_input = self.write_norm(attention_out)
        recalls, surprise, memory_state = self.memory.step(write_input, prepared_step.state, time)
        after = memory_state | prepared_step.caches | prepared_step.before
        return self.feed(x + self.gate(attention_out, recalls)), surprise, after

    def attention_reads(self, x, state, time):
        """Return one step's attention weights over the inputs and over the recalls of the segment."""
        place = (time % self.length)[:, None]
        weights = self._weigh(*self._prepare_step(x, state, time).attention_inputs)
        weights = weights.unflatten(0, (len(x), -1))[:, :, 0].mean(1)
        inputs, recalls = weights[:, self.attention.num_persistent :].chunk(2, dim=1)
        slot = torch.arange(self.length, device=x.device)
        steps = torch.where(slot <= place, time[:, None] - place + slot, -1)
        return {
            "segment": Read.from_weights(steps, inputs),
            "recalled in the segment": Read.from_weights(steps, recalls),
        }

    def _prepare_step(self, x: Tensor, state: State, time: Tensor) -> _PreparedStep:
        """Return the attention inputs of one step, and the updated caches."""
        size, attention = self.length, self.attention
        place = time % size
        state = self.memory.detach_at_boundary(state, time)
        before = self._before(state, time)
        recalling = {"anchor": before.get("before", state["anchor"])}
        normed_x = self.memory_norm(x)[:, None]
        slot = torch.arange(2 * size, device=x.device)
        caches = {}
        for name, new in self._context(normed_x, place[:, None], recalling).items():
            new_slots = torch.cat([new[:, :1].expand(-1, size, -1), new[:, 1:].expand(-1, size, -1)], dim=1)
            is_current = (slot % size == place[:, None])[..., None]
            # A new segment starts with empty caches.
            previous = torch.where((place == 0)[:, None, None], 0, state[name])
            caches[name] = torch.where(is_current, new_slots.to(previous.dtype), previous)
        visible = slot % size <= place[:, None]
        query = attention.project_query(normed_x, place[:, None]) * attention.width**-0.5
        shape = (attention.heads, attention.width)
        keys, values = (caches[name].to(query.dtype).unflatten(-1, shape) for name in CACHES)
        keys, values = attention.prepend_persistent(keys, values)
        hidden = torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, -torch.inf)
        hidden = functional.pad(hidden, (attention.num_persistent, 0)).repeat_interleave(attention.heads, 0)
        query, keys, values = (part.transpose(1, 2) for part in (query, keys, values))
        return _PreparedStep((query, keys, hidden[:, None]), values, state, caches, before)

    def _before(self, state: State, time: Tensor) -> State:
        """Return the state entry `before`, or an empty dict if every segment is a single chunk."""
        if self.config.segment_chunks == 1:
            return {}
        before, bptt_chunks = state["before"], self.config.bptt_chunks
        if bptt_chunks:
            cut = time % (bptt_chunks * self.config.chunk_size) == 0
            before = torch.where(cut[:, None, None], before.detach(), before)
        starts_segment = time % self.length == 0
        return {"before": torch.where(starts_segment[:, None, None], state["anchor"], before)}

    def segment(self, x, state, grid):
        run = self._forward_custom if self._use_custom_backward(x, state) else self.forward
        entries = (state[name] for name in self.names)
        attention_out, write_input, reads, *after, surprise = run(grid, x, *entries)
        mixture = self.gate(attention_out, self.memory.finish(write_input, reads))
        return self.feed(x + mixture), surprise, dict(zip(self.names, after, strict=True))

    def forward(
        self, grid: ChunkGrid, x: Float[Tensor, "batch time dim"], *state_parts: Tensor
    ) -> tuple[Tensor, ...]:
        """Return attention outputs, the memory's inputs and read-outs, the next state and the surprises.

        The chunks run in a loop, with torch's autograd. `state_parts` are the entries listed in `names`.
        """
        state = dict(zip(self.names, state_parts, strict=True))
        bptt_chunks, shape = self.config.bptt_chunks, (grid.num_chunks, -1)
        grid_x = grid.to_grid(x)
        normed_x = self.memory_norm(grid_x)
        chunk_context = self._build_context(x, state, grid)
        # Everything that depends on the inputs alone is computed for all chunks at once.
        projections = self._project_inputs(normed_x, chunk_context.place)
        chunks = zip(
            grid_x.unflatten(1, shape).unbind(1),
            self.memory.normalize_queries(self.recall_query(normed_x)).unflatten(1, shape).unbind(1),
            *(part.unflatten(2, shape).unbind(2) for part in projections),
            strict=True,
        )
        begins = [] if grid.fresh is None else grid.fresh.any(0).tolist()
        memory_state = {name: state[name] for name in NeuralState._fields}
        attention_outs, write_inputs, reads, surprises = [], [], [], []
        for index, (chunk_x, recall_queries, query, *own) in enumerate(chunks):
            if grid.fresh is not None and begins[index]:
                fresh = grid.fresh[:, index, None, None]
                memory_state = {name: torch.where(fresh, 0, value) for name, value in memory_state.items()}
            if bptt_chunks:
                cut = grid.boundaries(bptt_chunks)[:, index]
                memory_state = detach_rows(memory_state, cut)
                chunk_context.detach(cut)
            recalls = self.memory.recall(recall_queries, chunk_context.select_memory(index, memory_state))
            keys, values = chunk_context.add(index, own, recalls)
            attention_outs.append(chunk_x + self._attend(query, keys, values, chunk_context.hidden))
            write_inputs.append(self.write_norm(attention_outs[-1]))
            mask = chunk_context.step_mask(index)
            read, surprise, memory_state = self.memory.learn(write_inputs[-1], memory_state, mask)
            reads.append(read)
            surprises.append(surprise)
        results = (grid.from_grid(torch.cat(parts, dim=1)) for parts in (attention_outs, write_inputs, reads))
        surprise = grid.from_grid(torch.cat(surprises, dim=1)[..., None])[..., 0]
        after = memory_state | chunk_context.final_state()
        return *results, *(after[name] for name in self.names), surprise

    def _build_context(self, x: Tensor, state: State, grid: ChunkGrid) -> ChunkContext | SegmentContext:
        """Return the attention context of a segment's chunks."""
        if self.config.segment_chunks == 1:
            return ChunkContext(self.attention, x, state, grid)
        return SegmentContext(self.attention, state, grid, self.config.segment_chunks)

    def _forward_custom(self, grid: ChunkGrid, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the result of `forward`, with a custom backward pass."""
        attention, memory, batch = self.attention, self.memory, len(x)
        sizes = schedule.Sizes(
            batch,
            grid.num_chunks,
            self.config.chunk_size,
            self.config.dim,
            attention.heads,
            attention.rotary_width,
            attention.num_persistent,
            memory.heads,
            self.config.max_step / self.config.chunk_size,
            compute_max_momentum(self.config.chunk_size),
            self.config.read_before_write,
        )
        place = torch.arange(sizes.length)
        rotation = compute_cos_sin(place, attention.frequencies, attention.width, x.dtype)
        segment_schedule = schedule.build_schedule(grid, sizes, rotation, self.config.bptt_chunks)
        weights = self._weights()

        def plain(*inputs):
            pairs = zip(weights, inputs[6:], strict=True)
            parameters = {name: weight for name, weight in pairs if name in present}
            return functional_call(self, parameters, (grid, *inputs[:6]))

        present = {name for name, weight in weights.items() if weight.numel()}
        *results, squared_surprise = run_segment(plain, segment_schedule, x, *state, *weights.values())
        return *results, squared_surprise.detach().sqrt().mean(-1)

    def _use_custom_backward(self, x: Tensor, state: State) -> bool:
        """Return True if the custom backward pass supports this segment."""
        # The custom pass supports bounded steps and segments of one chunk only.
        is_supported = self.config.bound_steps and self.config.segment_chunks == 1
        if not (is_matrix(self.memory) and is_supported and x.numel()) or self.attention.width % 2:
            return False
        return supports_custom_backward(x, *(state[name] for name in _STATE), self.recall_query.weight)

    def _weights(self) -> dict[str, Tensor]:
        """Return the parameters of the layer by name, in the order of `forward.SegmentInputs`."""
        attention, memory = self.attention, self.memory
        if attention.num_persistent:
            persistent = attention.persistent_keys, attention.persistent_values
        else:
            persistent = attention.persistent(1, self.recall_query.weight.dtype)
            persistent = persistent[0][0, ..., attention.rotary_width :], persistent[1][0]
        return {
            "memory_norm.weight": self.memory_norm.weight,
            "memory_norm.bias": self.memory_norm.bias,
            "attention.query.weight": attention.query.weight,
            "attention.key.weight": attention.key.weight,
            "attention.value.weight": attention.value.weight,
            "attention.out.weight": attention.out.weight,
            "attention.persistent_keys": persistent[0],
            "attention.persistent_values": persistent[1],
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

    def open_caches(self, caches, age):
        return _StepCaches.from_layer(self, caches)._asdict()

    def close_caches(self, caches):
        return {name: caches[name].transpose(1, 2).flatten(2).clone() for name in CACHES}

    def forget(self, caches, rows):
        """Do nothing, because the first step of a chunk clears the caches."""

    def advance(self, x, memory, caches, time):
        attention, size = self.attention, self.config.chunk_size
        place = time % size
        cos, sin, hidden = (caches[name].index_select(0, place) for name in ("cos", "sin", "hidden"))
        start_rows = (place == 0).nonzero()[:, 0]
        normed_x = self.memory_norm(x)
        shape = (-1, attention.heads, attention.width)
        input_products = (normed_x @ caches["input_weights"]).unflatten(-1, shape)
        query = torch.addcmul(input_products[:, 0] * cos, input_products[:, 1], sin)
        recall_queries = self.memory.normalize_queries(input_products[:, 5].flatten(1))
        recalls = apply_norm(self.memory.out_norm, memory.recall(recall_queries)).flatten(-2)
        recall_products = (recalls @ caches["recall_weights"]).unflatten(-1, shape)
        if len(start_rows):
            for name in CACHES:
                caches[name].index_fill_(0, start_rows, 0)
        row = torch.arange(len(x))
        for slot, parts in ((place, input_products[:, 2:5]), (place + size, recall_products)):
            caches["keys"][row, :, slot] = torch.addcmul(parts[:, 0] * cos, parts[:, 1], sin)
            caches["values"][row, :, slot] = parts[:, 2]
        keys, values = (caches[name].flatten(0, 1) for name in CACHES)
        persistent_weights = torch.matmul(query[:, :, None], caches["persistent_keys"])[:, :, 0]
        scores = torch.bmm(query.flatten(0, 1)[:, None], keys.mT).view(*query.shape[:2], -1)
        weights = torch.softmax(torch.cat([persistent_weights, scores + hidden[:, None]], dim=-1), dim=-1)
        persistent_weights, weights = weights.split([attention.num_persistent, 2 * size], dim=-1)
        read = torch.bmm(weights.flatten(0, 1)[:, None], values).view(query.shape)
        read += torch.matmul(persistent_weights[:, :, None], caches["persistent_values"])[:, :, 0]
        attention_out = x + attention.out(read.flatten(1))
        recalls = memory.step(self.write_norm(attention_out))
        return self.feed(x + self.gate(attention_out, recalls))

    def _project_inputs(
        self, normed_x: Tensor, place: Tensor
    ) -> list[Float[Tensor, "batch heads places width"]]:
        """Return scaled queries, keys and values of the normed inputs at the positions `place`."""
        attention = self.attention
        query = attention.project_query(normed_x, place) * attention.width**-0.5
        return [part.transpose(1, 2) for part in (query, *attention.project(normed_x, place))]

    def _context(self, normed_x: Tensor, place: Tensor, memory_state: State) -> State:
        """Return keys and values `[batch, 2 time, dim]`. Those of the inputs precede those of the recalls."""
        recalls = self.memory.recall(self.memory.normalize_queries(self.recall_query(normed_x)), memory_state)
        parts = [self.attention.project(tokens, place) for tokens in (normed_x, recalls)]
        return {
            name: torch.cat([part[index].flatten(2) for part in parts], dim=1)
            for index, name in enumerate(CACHES)
        }

    def _attend(
        self,
        query: Float[Tensor, "batch heads time width"],
        keys: Float[Tensor, "batch heads slots width"],
        values: Float[Tensor, "batch heads slots width"],
        hidden: Float[Tensor, "#rows time slots"],
    ) -> Float[Tensor, "batch time dim"]:
        """Return the attention outputs of scaled queries. `hidden` is an additive mask of 0 and -inf."""
        # Explicit operations support higher derivatives; the context is only two chunks long.
        read = torch.bmm(self._weigh(query, keys, hidden).to(values.dtype), values.flatten(0, 1))
        return self.attention.out(read.unflatten(0, (-1, self.attention.heads)).transpose(1, 2).flatten(2))

    def _weigh(
        self, query: Tensor, keys: Tensor, hidden: Tensor
    ) -> Float[Tensor, "rows_of_heads time slots"]:
        scores = torch.baddbmm(hidden, query.flatten(0, 1), keys.flatten(0, 1).mT)
        return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))


class _PreparedStep(NamedTuple):
    """Attention inputs and updated caches of one step."""

    attention_inputs: tuple[Tensor, Tensor, Tensor]
    """Scaled queries, keys and additive mask, as in `_attend`."""
    values: Float[Tensor, "batch heads slots width"]
    state: State
    """State of the memory before the step."""
    caches: State
    """Cached keys and values, including the keys and values of the step."""
    before: State
    """Entry `before` of the state (memory before the segment), or an empty dict."""


class _StepCaches(NamedTuple):
    """Caches of a layer, which in-place steps overwrite, and tensors derived from the layer's weights."""

    keys: Float[Tensor, "batch heads slots width"]
    values: Float[Tensor, "batch heads slots width"]
    input_weights: Float[Tensor, "dim six_dims"]
    """Weights: queries, rotary sine part of queries, keys, sine part of keys, values, recall queries."""
    recall_weights: Float[Tensor, "dim three_dims"]
    """Weights from unprojected recalls to keys, to the sine parts of keys, and to values."""
    cos: Float[Tensor, "chunk_size 1 width"]
    sin: Float[Tensor, "chunk_size 1 width"]
    hidden: Float[Tensor, "chunk_size slots"]
    persistent_keys: Float[Tensor, "heads width persistent"]
    persistent_values: Float[Tensor, "heads persistent width"]

    @classmethod
    def from_layer(cls, layer: _ContextLayer, caches: State) -> _StepCaches:
        attention, dtype = layer.attention, caches["keys"].dtype
        place = torch.arange(layer.config.chunk_size)
        cos, sin = compute_cos_sin(place, attention.frequencies, attention.width, dtype)
        key_value_weights = attention.key_value_weights()
        input_weights = torch.cat([attention.query_weights(), key_value_weights, layer.recall_query.weight])
        visible = (place[:, None] >= place).repeat(1, 2)
        keys, values = (part[0].transpose(0, 1) for part in attention.persistent(1, dtype))
        return cls(
            keys=_by_head(caches["keys"], attention),
            values=_by_head(caches["values"], attention),
            input_weights=input_weights.T.contiguous(),
            recall_weights=(key_value_weights @ layer.memory.out.weight).T.contiguous(),
            cos=cos[:, None],
            sin=sin[:, None],
            hidden=torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, -torch.inf),
            persistent_keys=keys.mT.contiguous(),
            persistent_values=values.contiguous(),
        )


def _by_head(cache: Tensor, attention: PersistentTokens) -> Float[Tensor, "batch heads slots width"]:
    """Return a contiguous copy of a cache, split by head."""
    by_head = cache.unflatten(-1, (attention.heads, attention.width)).transpose(1, 2)
    return by_head.clone(memory_format=torch.contiguous_format)


class TitansMAC(Titans):
    """Stack of layers: attention over a segment and its recalls, then neural memory, then feed-forward.

    State: the entries of `Titans`, and for every layer the keys and values of the present segment.
    """

    layer_class: ClassVar[type[TitansLayer]] = _ContextLayer
