"""Streaming attention for policies: the first and the last steps of an episode in a cache of fixed size.

In StreamingLLM (Xiao et al. 2023, arXiv 2309.17453), a step attends to the first `num_sinks` steps of the
episode and to the last `window` steps. The first steps, called sinks, absorb excess attention. Half of each
head's width has rotary positions, so that scores in the window depend on distances (RoFormer, Su et al. 2021,
arXiv 2104.09864). Scores of sinks use only the other half of the key, to which each sink slot adds a
learned vector. These scores therefore do not depend on the time.

A layer stores the keys and values of its own normed inputs. The paper is about trained language models and
has no resets. This module adds two things: a `start` empties the cache, and with `sink_logit`, each head has
a learned logit for an additional softmax column with value zero. `num_learned_sinks` adds learned keys and
values that are the same in every episode (section 3.3 of the paper).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from scrubjay.kernels import merge, sink_attention, sink_slot
from scrubjay.kernels.derivatives import supports_custom_backward
from scrubjay.kernels.dispatch import is_traced, without_autocast
from scrubjay.memory.contract.base import Memory, MemoryConfig, Read, Recall, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.contract.stepper import Stepper, load_fast_path
from scrubjay.memory.parts import streaming
from scrubjay.memory.parts.chunks import compute_slot_steps
from scrubjay.memory.parts.layers import feed_forward
from scrubjay.memory.parts.rotary import build_sine_weights, compute_cos_sin, rotary_frequencies
from scrubjay.memory.parts.window import resolve_heads

_NARROWEST_HEAD = 4
_MAX_FUSED_STEPS = 64
"""Largest segment for the custom backward pass, which scores all pairs with cached steps."""


@dataclass(frozen=True)
class SinkConfig(MemoryConfig):
    """Sizes of `Sink`. Raises ValueError on an invalid size."""

    paper_values = (
        'the paper changes the cache of a trained language model; `memory.context.make("sinks")` does this'
    )

    num_sinks: int = 4
    """Number of first steps of an episode that stay visible."""
    window: int = 64
    """Number of last steps that are visible, including the present step; at least 2."""
    num_layers: int = 2
    """Number of layers, each with its own cache."""
    num_heads: int | None = None
    """Attention heads, each at least 4 wide. Default: the largest allowed divisor of `dim` up to 4."""
    sink_logit: bool = False
    """Add a column to the attention softmax, with a learned logit per head and a value vector of zeros. A
    head can then give all steps a low weight."""
    feed_forward_ratio: int = 2
    """Hidden width of the feed-forward layer, in units of `dim`."""
    num_learned_sinks: int = 0
    """Number of learned keys and values in each layer, visible to every step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_sinks", "num_learned_sinks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        if self.window < 2:
            raise ValueError(
                f"window={self.window}: must be at least 2, because the window includes the present step"
            )
        self.check_positive("num_layers", "feed_forward_ratio")
        resolve_heads(self.dim, self.num_heads, _NARROWEST_HEAD)

    def build(self) -> Sink:
        """Return a newly initialized memory of these sizes."""
        return Sink(self)


class Sink(Memory):
    """Layers of sink attention and feed-forward, each with pre-norm and a residual connection.

    State: `keys` and `values` are `[batch, layers, num_sinks + window, dim]`. The slots of sinks come first,
    followed by a ring buffer of the window. Unwritten slots are zero. `time` `[batch]` is the number of steps
    since the start of the episode.
    """

    def __init__(self, config: SinkConfig) -> None:
        super().__init__(config)
        self.num_sinks, self.window = config.num_sinks, config.window
        self.num_slots = config.num_sinks + config.window
        self.layers = nn.ModuleList(_SinkLayer(config) for _ in range(config.num_layers))

    def initial_state(self, batch_size: int) -> State:
        """Return empty caches."""
        shape = (batch_size, len(self.layers), self.num_slots, self.dim)
        return {
            "keys": torch.zeros(shape, dtype=self.state_dtype, device=self.device),
            "values": torch.zeros(shape, dtype=self.state_dtype, device=self.device),
            "time": torch.zeros(batch_size, dtype=torch.int64, device=self.device),
        }

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Process one step of every row: write its key and value to the cache, then attend to the cache."""
        return self._step(x, state, None)

    @torch.no_grad()
    def recall(self, x: Float[Tensor, "batch dim"], state: State) -> Recall:
        """Return the attention weights of one step over the cache of each layer."""
        reads: dict[str, Read] = {}
        self._step(x, state, reads)
        return Recall(reads, {})

    def _step(self, x: Tensor, state: State, reads: dict[str, Read] | None) -> tuple[Tensor, State]:
        """Process one step. If `reads` is a dict, store the attention weights of each layer in it."""
        time = state["time"]
        here = torch.arange(self.num_slots, device=time.device) == sink_slot(time, *self._sizes)[:, None]
        clock = Clock.from_age(time)
        step = compute_slot_steps(time + 1, *self._sizes)
        slot_steps = _SlotSteps(step, step.clamp(min=0, max=self.num_sinks))
        rotation = self._build_rotation(clock, x.dtype)
        caches: dict[str, list[Tensor]] = {"keys": [], "values": []}
        x = x[:, None]
        for index, layer in enumerate(self._layers):
            query, key, value = layer.project(x, rotation)
            for name, new in (("keys", key), ("values", value)):
                cache = state[name][:, index]
                caches[name].append(torch.where(here[..., None], new.flatten(2).to(cache.dtype), cache))
            keys, values = (caches[name][-1].to(x.dtype) for name in ("keys", "values"))
            if reads is not None:
                weights = layer.weigh(query[:, 0], keys, slot_steps)
                reads[f"window, layer {index}"] = Read.from_weights(step, weights.mean(1))
            x = layer.finish(x, query, keys, values, clock, slot_steps)
        after = {name: torch.stack(layers, dim=1) for name, layers in caches.items()}
        return x[:, 0], after | {"time": time + 1}

    def stepper(self, state: State) -> Stepper:
        """Return an in-place stepper, or the default stepper if there are learned sinks."""
        if self._layers[0].num_learned or not self.can_use_stepper(Sink, state):
            return super().stepper(state)
        return load_fast_path("sink stepper")(self._layers, self.blank_unwritten(state), *self._sizes)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment of every row in one pass, for any pattern of `start`."""
        clock = Clock.from_starts(state["time"], start)
        run = self._run_custom if self._supports_custom_backward(x, state) else self._run_torch
        x, own = run(x, state, clock)
        return x, self._after(state, clock, own)

    def _run_torch(self, x: Tensor, state: State, clock: Clock) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Run a segment with torch's autograd. Return its outputs, and its keys and values in each layer."""
        context, own = self._build_context(clock, x.dtype), []
        for index, layer in enumerate(self._layers):
            x, key, value = layer(x, state["keys"][:, index], state["values"][:, index], context)
            own.append((key, value))
        return x, own

    def _run_custom(
        self, x: Tensor, state: State, clock: Clock
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the result of `_run_torch`, with a custom backward pass."""
        first, own = self._layers[0], []
        sizes = streaming.StreamingSizes(*self._sizes, first.heads, first.width, first.rotary_dim)
        rotation = compute_cos_sin(clock.step, first.frequencies, first.width, x.dtype)
        context = streaming.plan_segment(sizes, len(self.layers), clock, *rotation)
        for index, layer in enumerate(self._layers):
            weights = layer.weights()

            def plain(x, keys, values, *weights, index=index, layer=layer):
                parameters = {name: w for name, w in zip(layer.names, weights, strict=True) if name}
                inputs = x, keys[:, index], values[:, index], self._build_context(clock, x.dtype)
                return functional_call(layer, parameters, inputs)

            x, key, value = streaming.run_layer(
                plain, context, index, x, state["keys"], state["values"], *weights
            )
            own.append((key, value))
        return x, own

    def _supports_custom_backward(self, x: Tensor, state: State) -> bool:
        """Return True if the custom backward pass supports these inputs."""
        first = self._layers[0]
        own = (
            x.shape[1] <= _MAX_FUSED_STEPS
            and len(x) > 0
            and first.sink_logit is None
            and not first.num_learned
        )
        weight = first.query.weight
        return own and supports_custom_backward(x, state["keys"], state["values"], weight)

    def _build_context(self, clock: Clock, dtype: torch.dtype) -> _SegmentContext:
        cached_steps = compute_slot_steps(clock.age, *self._sizes)
        step = torch.cat([cached_steps, clock.stream], dim=1)
        sink_index = torch.cat([cached_steps.clamp(min=0), clock.step], dim=1).clamp(max=self.num_sinks)
        return _SegmentContext(clock, _SlotSteps(step, sink_index), self._build_rotation(clock, dtype))

    def _after(self, state: State, clock: Clock, own: list[tuple[Tensor, Tensor]]) -> State:
        """Return the state after a segment. `own` holds the segment's keys and values in each layer."""
        time, device = clock.age_after, clock.age.device
        last = compute_slot_steps(time, *self._sizes)
        behind = last + (clock.episode_start[:, -1] - clock.stream[:, 0])[:, None]
        # Rows to gather from: all layers' caches, then their segments, then a row of zeros.
        layer, row = torch.arange(len(own), device=device)[:, None], torch.arange(len(time), device=device)
        row = row[:, None, None]
        num_cached, total = len(time) * len(own) * self.num_slots, len(time) * clock.length
        # Steps before the segment belong to the episode in which it begins, and remain in the same slot.
        stays = (row * len(own) + layer) * self.num_slots + torch.arange(self.num_slots, device=device)
        source = torch.where(
            (behind >= 0)[:, None],
            num_cached + layer * total + row * clock.length + behind[:, None],
            stays,
        ).masked_fill_((last < 0)[:, None], num_cached + len(own) * total)
        after = {"time": time}
        for part, name in enumerate(("keys", "values")):
            cache = state[name]
            new = [pair[part].reshape(total, self.dim).to(cache.dtype) for pair in own]
            rows = torch.cat([cache.reshape(num_cached, self.dim), *new, cache.new_zeros(1, self.dim)])
            after[name] = rows.index_select(0, source.flatten()).view(cache.shape)
        return after

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in slots that were never written.

        On a CPU, a state with only finite values is returned unchanged, because finite values in slots that
        were never written have no effect.
        """
        if not is_traced() and state["keys"].is_cpu:
            total = sum(state[name].detach().sum() for name in ("keys", "values"))
            # Checking that all values are finite is ten times cheaper than zeroing.
            if cast("Tensor", total).isfinite():
                return state
        empty = (compute_slot_steps(state["time"], *self._sizes) < 0)[:, None, :, None]
        return state | {name: state[name].masked_fill(empty, 0) for name in ("keys", "values")}

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.num_sinks, self.window

    @property
    def _layers(self) -> list[_SinkLayer]:
        return cast("list[_SinkLayer]", self.layers)

    def _build_rotation(self, clock: Clock, dtype: torch.dtype) -> _RotaryAngles:
        layer = self._layers[0]
        cos, sin = compute_cos_sin(clock.step, layer.frequencies, layer.width, dtype)
        return _RotaryAngles(cos[:, :, None], sin[:, :, None])


class _SlotSteps(NamedTuple):
    """Step whose key is in each slot: the step's number in the stream, and the index of its sink slot."""

    step: Int[Tensor, "batch slots"]
    sink_index: Int[Tensor, "batch slots"]
    """Index of the sink slot, or `num_sinks` for a step that is not a sink."""


class _RotaryAngles(NamedTuple):
    """Cosines and sines of the rotation at each step, shared by all layers."""

    cos: Float[Tensor, "batch time 1 width"]
    sin: Float[Tensor, "batch time 1 width"]


class _SegmentContext(NamedTuple):
    """Clock of a segment, steps whose keys are in the slots, and rotary angles, shared by all layers."""

    clock: Clock
    slot_steps: _SlotSteps
    rotation: _RotaryAngles


class _SinkLayer(nn.Module):
    frequencies: Tensor

    def __init__(self, config: SinkConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = resolve_heads(dim, config.num_heads, _NARROWEST_HEAD)
        self.num_sinks, self.window = config.num_sinks, config.window
        self.width = dim // self.heads
        self.rotary_dim = self.width // 4 * 2
        hidden = config.feed_forward_ratio * dim
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        if config.num_sinks:
            self.sink_positions = nn.Parameter(
                torch.randn(config.num_sinks, self.heads, self.width - self.rotary_dim) * self.width**-0.5
            )
        self.sink_logit = nn.Parameter(torch.zeros(self.heads)) if config.sink_logit else None
        self.num_learned = config.num_learned_sinks
        if self.num_learned:
            # Like the sinks of the cache they have no time, so only the unrotated half of a query reads them.
            still = (self.num_learned, self.heads, self.width - self.rotary_dim)
            self.learned_keys = nn.Parameter(torch.randn(still))
            self.learned_values = nn.Parameter(torch.randn(self.num_learned, self.heads, self.width))
        self.feed_forward = feed_forward(dim, hidden)
        self.register_buffer("frequencies", rotary_frequencies(self.rotary_dim), persistent=False)
        # In the order of `streaming.StreamingWeights`; empty for parameters that this layer does not have.
        self.names = (
            "attention_norm.weight",
            "attention_norm.bias",
            *(f"{name}.weight" for name in ("query", "key", "value", "out")),
            "sink_positions" if config.num_sinks else "",
            *(f"feed_forward.{index}.{name}" for index in (0, 1, 3) for name in ("weight", "bias")),
        )

    def weights(self) -> list[Tensor]:
        """Return the parameters of the layer, in the order that `streaming.run_layer` expects."""
        before, inward, _, outward = cast("Iterable[nn.Linear]", self.feed_forward)
        projections = [part.weight for part in (self.query, self.key, self.value, self.out)]
        absent = self.query.weight.new_empty(0, self.heads, self.width - self.rotary_dim)
        positions = self.sink_positions if self.num_sinks else absent
        norm = self.attention_norm
        rest = [tensor for part in (before, inward, outward) for tensor in (part.weight, part.bias)]
        return [norm.weight, norm.bias, *projections, positions, *rest]

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, context: _SegmentContext
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs, keys and values of a segment.

        The arguments `keys` and `values` are the caches, `[batch, slots, dim]`.
        """
        query, key, value = (part.flatten(2) for part in self.project(x, context.rotation))
        keys, values = (
            torch.cat([cache, new.to(cache.dtype)], dim=1).to(x.dtype)
            for cache, new in ((keys, key), (values, value))
        )
        query = query.unflatten(2, (self.heads, self.width))
        return self.finish(x, query, keys, values, context.clock, context.slot_steps), key, value

    def project(self, x: Tensor, rotation: _RotaryAngles) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, `[batch, time, heads, width]`.

        In queries and keys, half of each head's width has rotary positions.
        """
        cosine_part = torch.cat([self.query.weight, self.key.weight])
        sine_part = build_sine_weights(
            cosine_part.unflatten(0, (2 * self.heads, self.width)), self.rotary_dim
        ).flatten(0, 1)
        # One product instead of five.
        weights = torch.cat([cosine_part, sine_part, self.value.weight])
        parts = functional.linear(self.attention_norm(x), weights).unflatten(-1, (-1, self.width))
        cosine_part, sine_part, value = parts.split([2 * self.heads, 2 * self.heads, self.heads], dim=2)
        query, key = torch.addcmul(cosine_part * rotation.cos, sine_part, rotation.sin).chunk(2, dim=2)
        return query, key, value

    def finish(
        self, x: Tensor, query: Tensor, keys: Tensor, values: Tensor, clock: Clock, slot_steps: _SlotSteps
    ) -> Tensor:
        """Return the layer's output from its queries, and from keys and values `[batch, slots, dim]`."""
        keys = self._add_sink_positions(keys, slot_steps)
        steps = clock.stream, slot_steps.step, clock.episode_start
        inputs = query, keys, values.unflatten(-1, (self.heads, self.width)), *steps
        sizes: dict[str, Any] = {"window": self.window, "num_sinks": self.num_sinks}
        if self.num_learned:
            part = sink_attention(*inputs, **sizes, sink_logit=self.sink_logit, return_lse=True)
            read = self._merge_learned(query, part)
        else:
            read = sink_attention(*inputs, **sizes, sink_logit=self.sink_logit)
        x = x + self.out(read.flatten(2))
        return x + self.feed_forward(x)

    def _add_sink_positions(
        self, keys: Float[Tensor, "batch slots dim"], slot_steps: _SlotSteps
    ) -> Float[Tensor, "batch slots heads width"]:
        """Return `keys`, split by head.

        In the keys of sinks, the rotary half is set to zero, and the position vector of the slot is added.
        """
        if self.num_sinks:
            positions = functional.pad(self.sink_positions, (self.rotary_dim, 0, 0, 0, 0, 1)).flatten(1)
            positions = positions.to(keys.dtype)
            keep_mask = torch.ones_like(positions)
            keep_mask.unflatten(1, (self.heads, -1))[: self.num_sinks, :, : self.rotary_dim] = 0
            keys = torch.addcmul(
                functional.embedding(slot_steps.sink_index, positions, padding_idx=self.num_sinks),
                keys,
                functional.embedding(slot_steps.sink_index, keep_mask),
            )
        return keys.unflatten(-1, (self.heads, self.width))

    def weigh(
        self,
        query: Float[Tensor, "batch heads width"],
        keys: Float[Tensor, "batch slots dim"],
        slot_steps: _SlotSteps,
    ) -> Float[Tensor, "batch heads slots"]:
        """Return the attention weights of single queries over the slots of the cache.

        The sum of the weights is less than 1 if there are learned sinks or a sink logit.
        """
        scores = (
            torch.einsum("bhe,bshe->bhs", query, self._add_sink_positions(keys, slot_steps))
            * self.width**-0.5
        )
        scores = scores.masked_fill((slot_steps.step < 0)[:, None], -torch.inf)
        if self.sink_logit is not None:
            silent = self.sink_logit.to(scores.dtype)[:, None].expand(len(scores), -1, 1)
            scores = torch.cat([scores, silent], dim=-1)
        if self.num_learned:
            scores = torch.cat([scores, self._learned_scores(query[:, None])[:, 0].to(scores.dtype)], dim=-1)
        return torch.softmax(scores, dim=-1)[..., : keys.shape[1]]

    def _learned_scores(
        self, query: Float[Tensor, "batch time heads width"]
    ) -> Float[Tensor, "batch time heads learned"]:
        query = query[..., self.rotary_dim :] * self.width**-0.5
        return torch.einsum("bthe,she->bths", query, self.learned_keys.to(query.dtype))

    @without_autocast
    def _merge_learned(
        self, query: Float[Tensor, "batch time heads width"], part: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "batch time heads width"]:
        """Merge attention to the cache and attention to learned sinks into one softmax.

        `part` holds the output of attention to the cache, and the log-sum-exp of the attention scores.
        """
        read, lse = part
        scores = self._learned_scores(query.to(lse.dtype))
        learned_read = torch.einsum("bths,shv->bthv", scores.softmax(-1), self.learned_values.to(lse.dtype))
        return merge([(read, lse), (learned_read.to(read.dtype), scores.logsumexp(-1))])
