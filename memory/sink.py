"""Streaming attention for policies: the first steps of an episode and the last, in a cache of fixed size.

StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): attention to the `num_sinks` first steps of the episode,
which soak up what a softmax must spend somewhere, and to the last `window` steps. Positions are by slot, not
by time: half of a head's width is rotated by time, so that scores in the window know distances (RoFormer, Su
et al. 2021, arXiv 2104.09864), and sinks are read by the other half alone, with a learned vector for each
slot, so that they look the same after a hundred steps and after a million.

A layer stores the keys and values of its own normed inputs. Beyond the paper, which has no resets and serves
trained language models: a `start` anywhere begins an empty cache, and a logit per head may be learned as one
more, silent column of the softmax (`sink_logit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import sink_attention, sink_slot
from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.parts.rotary import across, rotary_frequencies, turns
from scrubjay.memory.parts.sinks import held
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.stepping.sink import SinkStepper

_NARROWEST_HEAD = 4


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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_sinks < 0:
            raise ValueError(f"num_sinks={self.num_sinks}: must not be negative")
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
            cached = (written[name][-1].to(x.dtype) for name in ("keys", "values"))
            x = layer.finish(x, query, *cached, clock, seen)
        after = {name: torch.stack(caches, dim=1) for name, caches in written.items()}
        return x[:, 0], after | {"time": time + 1}

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows in place."""
        if not self.steps_as(Sink, state):
            return super().stepper(state)
        return SinkStepper(self._layers, self.blank_unwritten(state), *self._sizes)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment in one pass, whatever the pattern of `start`."""
        age = state["time"]
        clock = Clock.of(age, start)
        time = clock.after
        cached = held(age, *self._sizes)
        seen = _Held(
            torch.cat([cached, clock.stream], dim=1),
            torch.cat([cached.clamp(min=0), clock.step], dim=1).clamp(max=self.num_sinks),
        )
        turn = self._turns(clock, x.dtype)
        source = self._sources(time, clock)
        length = self.slots + clock.length
        row = (source.clamp(min=0) + torch.arange(len(x), device=x.device)[:, None] * length).flatten()
        nowhere = (source < 0)[..., None]
        after: dict[str, list[Tensor]] = {"keys": [], "values": []}
        for index, layer in enumerate(self._layers):
            query, key, value = layer.project(x, turn)
            extended = {}
            for name, new in (("keys", key), ("values", value)):
                cache = state[name][:, index]
                extended[name] = torch.cat([cache, new.flatten(2).to(cache.dtype)], dim=1)
                kept = extended[name].flatten(0, 1).index_select(0, row).unflatten(0, source.shape)
                after[name].append(kept.masked_fill_(nowhere, 0))
            x = layer.finish(x, query, *(extended[n].to(x.dtype) for n in ("keys", "values")), clock, seen)
        return x, {name: torch.stack(caches, dim=1) for name, caches in after.items()} | {"time": time}

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in the slots that no step has reached."""
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

    def _sources(self, time: Tensor, clock: Clock) -> Int[Tensor, "batch slots"]:
        """Return where each slot's content after a segment lies in cache and segment, -1 for nowhere."""
        last = held(time, *self._sizes)
        behind = last + (clock.birth[:, -1] - clock.stream[:, 0])[:, None]
        slot = torch.arange(self.slots, device=time.device)
        # Steps before the segment are of the episode it began in, and lie in the same slot still.
        return torch.where(last < 0, -1, torch.where(behind >= 0, self.slots + behind, slot))


class _Held(NamedTuple):
    """What the key slots of a call hold: which step of the stream, and its place in its episode."""

    step: Int[Tensor, "batch slots"]
    place: Int[Tensor, "batch slots"]
    """`num_sinks` for all behind the sinks."""


class _Turns(NamedTuple):
    """How far heads are turned at each step; the same for every layer."""

    cos: Float[Tensor, "batch time 1 width"]
    sin: Float[Tensor, "batch time 1 width"]


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
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)
        )
        self.register_buffer("frequencies", rotary_frequencies(self.rotated), persistent=False)

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
        if self.num_sinks:
            # Sinks lose their turned half and get their slot's vector; all others stay.
            positions = (
                functional.pad(self.sink_positions, (self.rotated, 0, 0, 0, 0, 1)).flatten(1).to(x.dtype)
            )
            kept = torch.ones_like(positions)
            kept.unflatten(1, (self.heads, -1))[: self.num_sinks, :, : self.rotated] = 0
            keys = torch.addcmul(
                functional.embedding(held.place, positions, padding_idx=self.num_sinks),
                keys,
                functional.embedding(held.place, kept),
            )
        keys = keys.unflatten(-1, (self.heads, self.width))
        read = sink_attention(
            query,
            keys,
            values.unflatten(-1, (self.heads, self.width)),
            clock.stream,
            held.step,
            clock.birth,
            window=self.window,
            num_sinks=self.num_sinks,
            sink_logit=self.sink_logit,
        )
        x = x + self.out(read.flatten(2))
        return x + self.feed_forward(x)
