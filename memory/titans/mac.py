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

import operator
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
from scrubjay.memory.parts.attention import by_head
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
_WEIGHTS: tuple[str, ...] = (
    "memory_norm.weight",
    "memory_norm.bias",
    "attention.query.weight",
    "attention.key.weight",
    "attention.value.weight",
    "attention.out.weight",
    "attention.persistent_keys",
    "attention.persistent_values",
    "recall_query.weight",
    "memory.out_norm.weight",
    "memory.out.weight",
    "write_norm.weight",
    "write_norm.bias",
    "memory.project_in.weight",
    "memory.gates.weight",
    "memory.gates.bias",
    "memory.weights.0",
)
"""Parameters of the layer in the order of `forward.SegmentInputs`."""


@dataclass(frozen=True)
class TitansMACConfig(TitansConfig):
    """Configuration of `TitansMAC`. Raises ValueError on an invalid value."""

    paper_values = "in the paper, a step recalls after the write of later steps of its segment (law 3)"

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
        if self.follow_paper:
            raise ValueError(f"follow_paper: {self.paper_values}")
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
        attention_inputs, state = self._prepare_step(x, state, time)
        attention_out = x + self._attend(*attention_inputs)[:, 0]
        recalls, surprise, memory_state = self.memory.step(self.write_norm(attention_out), state, time)
        return self.feed(x + self.gate(attention_out, recalls)), surprise, state | memory_state

    def attention_reads(self, x, state, time):
        """Return one step's attention weights over the inputs and over the recalls of the segment."""
        place = (time % self.length)[:, None]
        (query, keys, _, hidden), _ = self._prepare_step(x, state, time)
        weights = self._weigh(query, keys, hidden).unflatten(0, (len(x), -1))[:, :, 0].mean(1)
        inputs, recalls = weights[:, self.attention.num_persistent :].chunk(2, dim=1)
        slot = torch.arange(self.length, device=x.device)
        steps = torch.where(slot <= place, time[:, None] - place + slot, -1)
        return {
            "segment": Read.from_weights(steps, inputs),
            "recalled in the segment": Read.from_weights(steps, recalls),
        }

    def _prepare_step(self, x: Tensor, state: State, time: Tensor) -> tuple[tuple[Tensor, ...], State]:
        """Return the arguments of `_attend` for one step, and the state with the step's keys and values."""
        size, attention = self.length, self.attention
        place = (time % size)[:, None]
        starts_segment = (place == 0)[..., None]
        state = self.memory.detach_at_boundary(state, time)
        if self.config.segment_chunks > 1:
            before, bptt_chunks = state["before"], self.config.bptt_chunks
            if bptt_chunks:
                cut = time % (bptt_chunks * self.config.chunk_size) == 0
                before = torch.where(cut[:, None, None], before.detach(), before)
            state = state | {"before": torch.where(starts_segment, state["anchor"], before)}
        normed_x = self.memory_norm(x)[:, None]
        recall_queries = self.memory.normalize_queries(self.recall_query(normed_x))
        recalls = self.memory.recall(recall_queries, {"anchor": state.get("before", state["anchor"])})
        own = [attention.project(tokens, place) for tokens in (normed_x, recalls)]
        slot_place = torch.arange(2 * size, device=x.device) % size
        for name, *parts in zip(CACHES, *own, strict=True):
            new_slots = torch.cat([part.flatten(2).expand(-1, size, -1) for part in parts], dim=1)
            # A new segment starts with empty caches.
            previous = torch.where(starts_segment, 0, state[name])
            is_current = (slot_place == place)[..., None]
            state = state | {name: torch.where(is_current, new_slots.to(previous.dtype), previous)}
        query = attention.project_query(normed_x, place) * attention.width**-0.5
        shape = (attention.heads, attention.width)
        keys, values = (state[name].to(query.dtype).unflatten(-1, shape) for name in CACHES)
        keys, values = attention.prepend_persistent(keys, values)
        visible = slot_place <= place
        hidden = torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, -torch.inf)
        hidden = functional.pad(hidden, (attention.num_persistent, 0)).repeat_interleave(attention.heads, 0)
        query, keys, values = (part.transpose(1, 2) for part in (query, keys, values))
        return (query, keys, values, hidden[:, None]), state

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
        if self.config.segment_chunks == 1:
            chunk_context = ChunkContext(self.attention, x, state, grid)
        else:
            chunk_context = SegmentContext(self.attention, state, grid, self.config.segment_chunks)
        # Everything that depends on the inputs alone is computed for all chunks at once.
        query = self.attention.project_query(normed_x, chunk_context.place) * self.attention.width**-0.5
        projections = query, *self.attention.project(normed_x, chunk_context.place)
        chunks = zip(
            grid_x.unflatten(1, shape).unbind(1),
            self.memory.normalize_queries(self.recall_query(normed_x)).unflatten(1, shape).unbind(1),
            *(part.transpose(1, 2).unflatten(2, shape).unbind(2) for part in projections),
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
            self.config.max_token_step,
            compute_max_momentum(self.config.chunk_size),
            self.config.read_before_write,
        )
        place = torch.arange(sizes.length)
        rotation = compute_cos_sin(place, attention.frequencies, attention.width, x.dtype)
        segment_schedule = schedule.build_schedule(grid, sizes, rotation, self.config.bptt_chunks)

        def plain(*inputs):
            parameters = dict(zip(_WEIGHTS, inputs[6:], strict=True))
            return functional_call(self, parameters, (grid, *inputs[:6]))

        weights = operator.attrgetter(*_WEIGHTS)(self)
        *results, squared_surprise = run_segment(plain, segment_schedule, x, *state, *weights)
        return *results, squared_surprise.detach().sqrt().mean(-1)

    def _use_custom_backward(self, x: Tensor, state: State) -> bool:
        """Return True if the custom backward pass supports this segment."""
        # The custom pass supports bounded steps and segments of one chunk only.
        is_supported = self.config.bound_steps and self.config.segment_chunks == 1
        if not (is_matrix(self.memory) and is_supported and x.numel()) or self.attention.width % 2:
            return False
        return supports_custom_backward(x, *(state[name] for name in _STATE), self.recall_query.weight)

    def open_caches(self, state, age):
        return _StepCaches.from_layer(self, state)

    def advance(self, x, memory, caches, time):
        attention, size = self.attention, self.config.chunk_size
        place = time % size
        cos, sin, hidden = (x.index_select(0, place) for x in (caches.cos, caches.sin, caches.hidden))
        start_rows = (place == 0).nonzero()[:, 0]
        normed_x = self.memory_norm(x)
        shape = (-1, attention.heads, attention.width)
        input_products = (normed_x @ caches.input_weights).unflatten(-1, shape)
        query = torch.addcmul(input_products[:, 0] * cos, input_products[:, 1], sin)
        recall_queries = self.memory.normalize_queries(input_products[:, 5].flatten(1))
        recalls = apply_norm(self.memory.out_norm, memory.recall(recall_queries)).flatten(-2)
        recall_products = (recalls @ caches.recall_weights).unflatten(-1, shape)
        if len(start_rows):
            for cache in (caches.keys, caches.values):
                cache.index_fill_(0, start_rows, 0)
        row = torch.arange(len(x))
        for slot, parts in ((place, input_products[:, 2:5]), (place + size, recall_products)):
            caches.keys[row, :, slot] = torch.addcmul(parts[:, 0] * cos, parts[:, 1], sin)
            caches.values[row, :, slot] = parts[:, 2]
        keys, values = caches.keys.flatten(0, 1), caches.values.flatten(0, 1)
        persistent_weights = torch.matmul(query[:, :, None], caches.persistent_keys)[:, :, 0]
        scores = torch.bmm(query.flatten(0, 1)[:, None], keys.mT).view(*query.shape[:2], -1)
        weights = torch.softmax(torch.cat([persistent_weights, scores + hidden[:, None]], dim=-1), dim=-1)
        persistent_weights, weights = weights.split([attention.num_persistent, 2 * size], dim=-1)
        read = torch.bmm(weights.flatten(0, 1)[:, None], values).view(query.shape)
        read += torch.matmul(persistent_weights[:, :, None], caches.persistent_values)[:, :, 0]
        attention_out = x + attention.out(read.flatten(1))
        recalls = memory.step(self.write_norm(attention_out))
        return self.feed(x + self.gate(attention_out, recalls))

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
    def from_layer(cls, layer: _ContextLayer, state: State) -> _StepCaches:
        attention, dtype = layer.attention, state["keys"].dtype
        place = torch.arange(layer.config.chunk_size)
        cos, sin = compute_cos_sin(place, attention.frequencies, attention.width, dtype)
        key_value_weights = attention.key_value_weights()
        input_weights = torch.cat([attention.query_weights(), key_value_weights, layer.recall_query.weight])
        visible = (place[:, None] >= place).repeat(1, 2)
        keys, values = (part[0].transpose(0, 1) for part in attention.persistent(1, dtype))
        return cls(
            *(
                by_head(state[name], attention.heads).clone(memory_format=torch.contiguous_format)
                for name in CACHES
            ),
            input_weights=input_weights.T.contiguous(),
            recall_weights=(key_value_weights @ layer.memory.out.weight).T.contiguous(),
            cos=cos[:, None],
            sin=sin[:, None],
            hidden=torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, -torch.inf),
            persistent_keys=keys.mT.contiguous(),
            persistent_values=values.contiguous(),
        )

    def forget(self, rows: Tensor) -> None:
        """Do nothing, because the first step of a chunk clears the caches."""

    def state(self) -> State:
        """Return the caches as state entries."""
        caches = {"keys": self.keys, "values": self.values}
        return {name: cache.transpose(1, 2).flatten(2).clone() for name, cache in caches.items()}


class TitansMAC(Titans):
    """Stack of layers: attention over a segment and its recalls, then neural memory, then feed-forward.

    State: the entries of `Titans`, and for every layer the keys and values of the present segment.
    """

    layer_class: ClassVar[type[TitansLayer]] = _ContextLayer
