"""Streaming attention for policies: the first steps of an episode and the last, in a cache of fixed size.

StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): attention to the `num_sinks` first steps of the episode,
which soak up what a softmax must spend somewhere, and to the last `window` steps. Positions are by slot, not
by time: half of a head's width is rotated by time, so that scores in the window know distances (RoFormer, Su
et al. 2021, arXiv 2104.09864), and sinks are read by the other half alone, with a learned vector for each
slot, so that they look the same after a hundred steps and after a million.

A layer stores the keys and values of its own normed inputs. Beyond the paper, which has no resets and serves
trained language models: a `start` anywhere begins an empty cache, and a logit per head may be learned as one
more, silent column of the softmax (`sink_logit`). What the paper adds in training, sinks that are learned and
the same for every episode (section 3.3), are keys and values of `num_learned_sinks`, read beside the cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from scrubjay.kernels import merge, sink_attention, sink_slot
from scrubjay.kernels.derivatives import has_own_gradient
from scrubjay.kernels.dispatch import is_traced, without_autocast
from scrubjay.memory.contract.base import LATER, Memory, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.contract.recalled import Read, Recalled
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.parts import streaming
from scrubjay.memory.parts.feed_forward import feed_forward
from scrubjay.memory.parts.rotary import across, rotary_frequencies, turns
from scrubjay.memory.parts.sinks import held
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.stepping.sink import SinkStepper

_NARROWEST_HEAD = 4
_AT_ONCE = 64
"""Steps up to which a segment's gradient is taken by hand: all pairs with what is cached are scored."""


@dataclass(frozen=True)
class SinkConfig(MemoryConfig):
    """Sizes of `Sink`. Raises ValueError on one that cannot work."""

    num_sinks: int = 4
    """First steps of an episode that stay visible."""
    window: int = 64
    """Last steps visible, the present one included; at least 2."""
    num_layers: int = 2
    """Layers, each with a cache of its own."""
    num_heads: int | None = None
    """Attention heads, at least 4 wide; by default as many as divide `dim`, up to 4."""
    sink_logit: bool = False
    """Whether each head learns the logit of a column that reads nothing."""
    feed_forward_ratio: int = 2
    """Width of the feed-forward layer's hidden part, in units of `dim`."""
    num_learned_sinks: int = field(default=0, metadata=LATER)
    """Learned keys and values of each layer that every step sees."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_sinks", "num_learned_sinks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        if self.window < 2:
            raise ValueError(f"window={self.window}: it counts the present step, so it must be at least 2")
        for name in ("num_layers", "feed_forward_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        resolve_heads(self.dim, self.num_heads, _NARROWEST_HEAD)

    def build(self) -> Sink:
        """Return a freshly initialised memory of these sizes."""
        return Sink(self)


class Sink(Memory):
    """Layers of sink attention and feed-forward, each on a normed input with a plain residual.

    State: `keys` and `values`, `[batch, layers, num_sinks + window, dim]`, sinks first, then a ring; and
    `time` `[batch]`, steps since the episode began. What no step of the episode has reached is zero.
    """

    def __init__(self, config: SinkConfig) -> None:
        super().__init__(config)
        self.num_sinks, self.window = config.num_sinks, config.window
        self.slots = config.num_sinks + config.window
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))

    def initial_state(self, batch_size: int) -> State:
        """Return empty caches."""
        shape = (batch_size, len(self.layers), self.slots, self.dim)
        return {
            "keys": torch.zeros(shape, dtype=self.state_dtype, device=self.device),
            "values": torch.zeros(shape, dtype=self.state_dtype, device=self.device),
            "time": torch.zeros(batch_size, dtype=torch.int64, device=self.device),
        }

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance every row by one input: write its key and value, then attend to the cache."""
        return self._step(x, state, None)

    @torch.no_grad()
    def recalled(self, x: Float[Tensor, "batch dim"], state: State) -> Recalled:
        """Return what all layers read of the first steps and the last."""
        reads: dict[str, Read] = {}
        self._step(x, state, reads)
        return Recalled(reads, {})

    def _step(self, x: Tensor, state: State, reads: dict[str, Read] | None) -> tuple[Tensor, State]:
        """Take a step, and put down what is read of the caches where somebody wants it."""
        time = state["time"]
        here = torch.arange(self.slots, device=time.device) == sink_slot(time, *self._sizes)[:, None]
        clock = Clock.running(time)
        step = held(time + 1, *self._sizes)
        seen = _Held(step, step.clamp(min=0, max=self.num_sinks))
        turn = self._turns(clock, x.dtype)
        written: dict[str, list[Tensor]] = {"keys": [], "values": []}
        x = x[:, None]
        for index, layer in enumerate(self._layers):
            query, key, value = layer.project(x, turn)
            for name, new in (("keys", key), ("values", value)):
                cache = state[name][:, index]
                written[name].append(torch.where(here[..., None], new.flatten(2).to(cache.dtype), cache))
            keys, values = (written[name][-1].to(x.dtype) for name in ("keys", "values"))
            if reads is not None:
                weights = layer.weigh(query[:, 0], keys, seen)
                reads[f"window, layer {index}"] = Read.of(step, weights.mean(1))
            x = layer.finish(x, query, keys, values, clock, seen)
        after = {name: torch.stack(caches, dim=1) for name, caches in written.items()}
        return x[:, 0], after | {"time": time + 1}

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows in place, one step after the other if there are learned sinks."""
        if self._layers[0].num_learned or not self.steps_as(Sink, state):
            return super().stepper(state)
        return SinkStepper(self._layers, self.blank_unwritten(state), *self._sizes)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment in one pass, whatever the pattern of `start`."""
        clock = Clock.of(state["time"], start)
        run = self._by_hand if self._has_own_gradient(x, state) else self._by_torch
        x, own = run(x, state, clock)
        return x, self._after(state, clock, own)

    def _by_torch(self, x: Tensor, state: State, clock: Clock) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return outputs, and each layer's keys and values of the segment."""
        at, own = self._moment(clock, x.dtype), []
        for index, layer in enumerate(self._layers):
            x, key, value = layer(x, state["keys"][:, index], state["values"][:, index], at)
            own.append((key, value))
        return x, own

    def _by_hand(self, x: Tensor, state: State, clock: Clock) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the same, with gradients written by hand."""
        first, own = self._layers[0], []
        sizes = streaming.Sizes(*self._sizes, first.heads, first.width, first.rotated)
        turn = turns(clock.step, first.frequencies, first.width, x.dtype)
        at = streaming.moment(sizes, len(self.layers), clock, *turn)
        for index, layer in enumerate(self._layers):
            weights = layer.weights()

            def plain(x, keys, values, *weights, index=index, layer=layer):
                named = {name: w for name, w in zip(layer.names, weights, strict=True) if name}
                given = x, keys[:, index], values[:, index], self._moment(clock, x.dtype)
                return functional_call(layer, named, given)

            x, key, value = streaming.run_layer(plain, at, index, x, state["keys"], state["values"], *weights)
            own.append((key, value))
        return x, own

    def _has_own_gradient(self, x: Tensor, state: State) -> bool:
        """Return whether gradients by hand are those of these numbers."""
        first = self._layers[0]
        own = x.shape[1] <= _AT_ONCE and len(x) > 0 and first.sink_logit is None and not first.num_learned
        weight = first.query.weight
        return own and has_own_gradient(x, state["keys"], state["values"], weight)

    def _moment(self, clock: Clock, dtype: torch.dtype) -> _Moment:
        cached = held(clock.age, *self._sizes)
        step = torch.cat([cached, clock.stream], dim=1)
        place = torch.cat([cached.clamp(min=0), clock.step], dim=1).clamp(max=self.num_sinks)
        return _Moment(clock, _Held(step, place), self._turns(clock, dtype))

    def _after(self, state: State, clock: Clock, own: list[tuple[Tensor, Tensor]]) -> State:
        """Return the state after a segment, of which the layers' keys and values are given."""
        time, device = clock.after, clock.age.device
        last = held(time, *self._sizes)
        behind = last + (clock.birth[:, -1] - clock.stream[:, 0])[:, None]
        # Rows to take: of all layers' caches, then of their segments, then zeros.
        layer, row = torch.arange(len(own), device=device)[:, None], torch.arange(len(time), device=device)
        row = row[:, None, None]
        cached, total = len(time) * len(own) * self.slots, len(time) * clock.length
        # Steps before the segment are of the episode it began in, and lie in the same slot still.
        stays = (row * len(own) + layer) * self.slots + torch.arange(self.slots, device=device)
        source = torch.where(
            (behind >= 0)[:, None],
            cached + layer * total + row * clock.length + behind[:, None],
            stays,
        ).masked_fill_((last < 0)[:, None], cached + len(own) * total)
        after = {"time": time}
        for place, name in enumerate(("keys", "values")):
            cache = state[name]
            new = [pair[place].reshape(total, self.dim).to(cache.dtype) for pair in own]
            rows = torch.cat([cache.reshape(cached, self.dim), *new, cache.new_zeros(1, self.dim)])
            after[name] = rows.index_select(0, source.flatten()).view(cache.shape)
        return after

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in the slots that no step has reached, or only finite numbers there."""
        if not is_traced() and state["keys"].is_cpu:
            total = sum(state[name].detach().sum() for name in ("keys", "values"))
            # Finding out that all is finite is ten times cheaper than zeroing.
            if cast("Tensor", total).isfinite():
                return state
        empty = (held(state["time"], *self._sizes) < 0)[:, None, :, None]
        return state | {name: state[name].masked_fill(empty, 0) for name in ("keys", "values")}

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.num_sinks, self.window

    @property
    def _layers(self) -> list[_Layer]:
        return cast("list[_Layer]", self.layers)

    def _turns(self, clock: Clock, dtype: torch.dtype) -> _Turns:
        layer = self._layers[0]
        cos, sin = turns(clock.step, layer.frequencies, layer.width, dtype)
        return _Turns(cos[:, :, None], sin[:, :, None])


class _Held(NamedTuple):
    """What the key slots of a call hold: which step of the stream, and its place in its episode."""

    step: Int[Tensor, "batch slots"]
    place: Int[Tensor, "batch slots"]
    """`num_sinks` for all behind the sinks."""


class _Turns(NamedTuple):
    """How far heads are turned at each step; the same for every layer."""

    cos: Float[Tensor, "batch time 1 width"]
    sin: Float[Tensor, "batch time 1 width"]


class _Moment(NamedTuple):
    """What all layers need to know of a segment's steps."""

    clock: Clock
    held: _Held
    turn: _Turns


class _Layer(nn.Module):
    frequencies: Tensor

    def __init__(self, config: SinkConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = resolve_heads(dim, config.num_heads, _NARROWEST_HEAD)
        self.num_sinks, self.window = config.num_sinks, config.window
        self.width = dim // self.heads
        self.rotated = self.width // 4 * 2
        hidden = config.feed_forward_ratio * dim
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        if config.num_sinks:
            self.sink_positions = nn.Parameter(
                torch.randn(config.num_sinks, self.heads, self.width - self.rotated) * self.width**-0.5
            )
        self.sink_logit = nn.Parameter(torch.zeros(self.heads)) if config.sink_logit else None
        self.num_learned = config.num_learned_sinks
        if self.num_learned:
            # As sinks of a cache they have no time, so only half of a query meets them.
            still = (self.num_learned, self.heads, self.width - self.rotated)
            self.learned_keys = nn.Parameter(torch.randn(still))
            self.learned_values = nn.Parameter(torch.randn(self.num_learned, self.heads, self.width))
        self.feed_forward = feed_forward(dim, hidden)
        self.register_buffer("frequencies", rotary_frequencies(self.rotated), persistent=False)
        # In the order of `streaming.Weights`; empty for what this layer lacks.
        self.names = (
            "attention_norm.weight",
            "attention_norm.bias",
            *(f"{name}.weight" for name in ("query", "key", "value", "out")),
            "sink_positions" if config.num_sinks else "",
            *(f"feed_forward.{index}.{name}" for index in (0, 1, 3) for name in ("weight", "bias")),
        )

    def weights(self) -> list[Tensor]:
        """Return the parameters that `streaming.run_layer` takes."""
        before, inward, _, outward = cast("Iterable[nn.Linear]", self.feed_forward)
        projections = [part.weight for part in (self.query, self.key, self.value, self.out)]
        absent = self.query.weight.new_empty(0, self.heads, self.width - self.rotated)
        positions = self.sink_positions if self.num_sinks else absent
        norm = self.attention_norm
        rest = [tensor for part in (before, inward, outward) for tensor in (part.weight, part.bias)]
        return [norm.weight, norm.bias, *projections, positions, *rest]

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, at: _Moment) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs and own keys and values of a segment; cached ones are `[batch, slots, dim]`."""
        query, key, value = (part.flatten(2) for part in self.project(x, at.turn))
        keys, values = (
            torch.cat([cache, new.to(cache.dtype)], dim=1).to(x.dtype)
            for cache, new in ((keys, key), (values, value))
        )
        query = query.unflatten(2, (self.heads, self.width))
        return self.finish(x, query, keys, values, at.clock, at.held), key, value

    def project(self, x: Tensor, turn: _Turns) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys, values `[batch, time, heads, width]`, half of each head turned by time."""
        along = torch.cat([self.query.weight, self.key.weight])
        turned = across(along.unflatten(0, (2 * self.heads, self.width)), self.rotated).flatten(0, 1)
        # One product instead of five.
        weights = torch.cat([along, turned, self.value.weight])
        parts = functional.linear(self.attention_norm(x), weights).unflatten(-1, (-1, self.width))
        along, turned, value = parts.split([2 * self.heads, 2 * self.heads, self.heads], dim=2)
        query, key = torch.addcmul(along * turn.cos, turned, turn.sin).chunk(2, dim=2)
        return query, key, value

    def finish(
        self, x: Tensor, query: Tensor, keys: Tensor, values: Tensor, clock: Clock, held: _Held
    ) -> Tensor:
        """Return the layer's output for keys and values `[batch, slots, dim]` of the steps `held`."""
        keys = self._placed(keys, held)
        steps = clock.stream, held.step, clock.birth
        given = query, keys, values.unflatten(-1, (self.heads, self.width)), *steps
        sizes: dict[str, Any] = {"window": self.window, "num_sinks": self.num_sinks}
        if self.num_learned:
            part = sink_attention(*given, **sizes, sink_logit=self.sink_logit, return_lse=True)
            read = self._beside_learned(query, part)
        else:
            read = sink_attention(*given, **sizes, sink_logit=self.sink_logit)
        x = x + self.out(read.flatten(2))
        return x + self.feed_forward(x)

    def _placed(
        self, keys: Float[Tensor, "batch slots dim"], held: _Held
    ) -> Float[Tensor, "batch slots heads width"]:
        """Return keys as queries meet them: sinks lose their turned half and get their slot's vector."""
        if self.num_sinks:
            positions = functional.pad(self.sink_positions, (self.rotated, 0, 0, 0, 0, 1)).flatten(1)
            positions = positions.to(keys.dtype)
            kept = torch.ones_like(positions)
            kept.unflatten(1, (self.heads, -1))[: self.num_sinks, :, : self.rotated] = 0
            keys = torch.addcmul(
                functional.embedding(held.place, positions, padding_idx=self.num_sinks),
                keys,
                functional.embedding(held.place, kept),
            )
        return keys.unflatten(-1, (self.heads, self.width))

    def weigh(
        self, query: Float[Tensor, "batch heads width"], keys: Float[Tensor, "batch slots dim"], held: _Held
    ) -> Float[Tensor, "batch heads slots"]:
        """Return how much of what single queries read is of each slot; the rest is of what has no step."""
        scores = torch.einsum("bhe,bshe->bhs", query, self._placed(keys, held)) * self.width**-0.5
        scores = scores.masked_fill((held.step < 0)[:, None], -torch.inf)
        if self.sink_logit is not None:
            silent = self.sink_logit.to(scores.dtype)[:, None].expand(len(scores), -1, 1)
            scores = torch.cat([scores, silent], dim=-1)
        if self.num_learned:
            scores = torch.cat([scores, self._learned_scores(query[:, None])[:, 0].to(scores.dtype)], dim=-1)
        return torch.softmax(scores, dim=-1)[..., : keys.shape[1]]

    def _learned_scores(
        self, query: Float[Tensor, "batch time heads width"]
    ) -> Float[Tensor, "batch time heads learned"]:
        query = query[..., self.rotated :] * self.width**-0.5
        return torch.einsum("bthe,she->bths", query, self.learned_keys.to(query.dtype))

    @without_autocast
    def _beside_learned(
        self, query: Float[Tensor, "batch time heads width"], part: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "batch time heads width"]:
        """Return what was read of the cache, with its log-normaliser, and of learned sinks, as if at once."""
        read, lse = part
        scores = self._learned_scores(query.to(lse.dtype))
        learned = torch.einsum("bths,shv->bthv", scores.softmax(-1), self.learned_values.to(lse.dtype))
        return merge([(read, lse), (learned.to(read.dtype), scores.logsumexp(-1))])
