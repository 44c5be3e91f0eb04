"""The Routing Transformer as a memory with a state (Roy et al. 2021, arXiv 2003.05997, section 4.1).

Queries and keys are normed without a scale, and each goes to the centroid that it has the largest product
with. A step reads the `window` steps before it, whatever they are about, and of those before these the last
`capacity` that went to the centroid of its query: one softmax over both, which have no step in common. So a
step of a kind that is rare is kept for long, however many of other kinds came behind it.

Where it differs: in the paper a centroid takes those tokens of the whole sequence that are nearest to it,
later ones too, so that a token's readers depend on its future; here it takes them in their order, as a ring,
and each is in exactly one. Half of the paper's heads read a window and half are routed; here all do both.
The heads of a layer share centroids, and a window's steps have a bias by their distance.

The paper moves centroids by a running mean of what comes to them. A memory may not change when it is used,
and a loss of its own would reach weights from episodes that no other loss looks at. So scores of what is
routed are raised by log p, where p is the query's softmax over centroids at its own: who gains by reading
pulls its centroid nearer, and who loses pushes it away. One centroid has log p = 0, and then this is causal
attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.normalisers import softmax_or_zero
from scrubjay.memory.chosen.own import projections
from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.contract.recalled import Read, Recalled
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.parts.attention import Asked, attend, by_head, weigh
from scrubjay.memory.parts.chunks import blanked, empty_layers, is_harmless, last_steps, seen_steps, take
from scrubjay.memory.parts.feed_forward import feed_forward
from scrubjay.memory.parts.recent import shift_window
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.stepping.routing import RoutingStepper

_MOST_AT_ONCE = 128  # steps of a segment, whose scores are taken with all that is stored and with each other


@dataclass(frozen=True)
class RoutingConfig(MemoryConfig):
    """Sizes of `Routing`. Raises ValueError on a size that cannot work."""

    num_centroids: int = 8
    """Centroids of a layer."""
    capacity: int = 16
    """Steps kept for a centroid; the oldest is dropped first."""
    window: int = 16
    """Earlier steps that are read wherever they go."""
    num_layers: int = 1
    """Layers, each with centroids of its own."""
    num_heads: int | None = None
    """Attention heads; by default the largest divisor of `dim` up to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_centroids", "capacity", "window", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        resolve_heads(self.dim, self.num_heads)

    def build(self) -> Routing:
        """Return a freshly initialised memory of these sizes."""
        return Routing(self)


class Routing(Memory):
    """Layers of attention to a window and to what went to the same centroid, and feed-forward.

    State, per layer l: rings `keys_l` and `values_l` `[batch, centroids * capacity, dim]`, zeros where none
    was written, and `times_l [batch, centroids * capacity]`, the steps' numbers in the episode;
    `counts_l [batch, centroids]`, how many steps each centroid was given; the last steps, `recent_keys_l` and
    `recent_values_l` `[batch, window, dim]`; and `time [batch]`, steps since the episode began.
    """

    retrieves = True

    def __init__(self, config: RoutingConfig) -> None:
        super().__init__(config)
        self.num_centroids, self.capacity, self.window = config.num_centroids, config.capacity, config.window
        layers = nn.ModuleList(RoutingLayer(config) for _ in range(config.num_layers))
        self.layers = cast("list[RoutingLayer]", layers)
        if config.num_centroids == 1:  # a softmax over one centroid is 1 whatever it is
            self.no_gradient = tuple(f"layers.{index}.centroids" for index in range(config.num_layers))

    def initial_state(self, batch_size: int) -> State:
        """Return empty rings."""
        ring, recent = (self.num_centroids * self.capacity, self.dim), (self.window, self.dim)
        shapes = {"keys": ring, "values": ring, "recent_keys": recent, "recent_values": recent}
        state = empty_layers(self, batch_size, len(self.layers), shapes)
        numbers = {
            f"{name}_{index}": torch.zeros(batch_size, size, dtype=torch.long, device=self.device)
            for index in range(len(self.layers))
            for name, size in (("counts", self.num_centroids), ("times", ring[0]))
        }
        return state | numbers

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return what the rings answer to the queries `x`, summed over layers: zeros while all are empty."""
        total = torch.zeros_like(x)
        centroid = torch.arange(self.num_centroids, device=x.device).repeat_interleave(self.capacity)
        for index, layer in enumerate(self.layers):
            own = part_of(state, suffix=f"_{index}")
            there = _written(own["counts"], self.capacity)
            keys, values = blanked(own["keys"], there), blanked(own["values"], there)
            query = layer.tokens(x, self.state_dtype).query
            readable = (centroid == route(query, layer.centroids).home[..., None]) & there[:, None]
            query, keys, values = (by_head(part, layer.heads) for part in (query, keys, values))
            scores = query @ keys.mT * query.shape[-1] ** -0.5
            weights = softmax_or_zero(scores.masked_fill(~readable[:, None], float("-inf")))
            total = total + layer.output((weights @ values).transpose(1, 2).flatten(2))
        return total

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance by one step: read, then give to its centroid the step that the window leaves behind."""
        time, y = state["time"], x[:, None]
        seen = seen_steps(time, self.window)
        after: State = {"time": time + 1}
        slot = torch.arange(self.num_centroids * self.capacity, device=x.device)
        for index, layer in enumerate(self.layers):
            own = part_of(state, suffix=f"_{index}")
            now = self._moment(layer, y, own, seen)
            y = layer.finish(y, attend(now.asked))
            leaves, (old_key, old_value) = seen[:, :1], now.recent
            place = (
                now.to * self.capacity + (own["counts"] * now.to_is).sum(dim=1, keepdim=True) % self.capacity
            )
            here = (slot == place) & leaves
            own = {
                "keys": torch.where(here[..., None], old_key[:, :1], own["keys"]),
                "values": torch.where(here[..., None], old_value[:, :1], own["values"]),
                "times": torch.where(here, time[:, None] - self.window, own["times"]),
                "counts": own["counts"] + (now.to_is & leaves),
                "recent_keys": torch.cat([old_key[:, 1:], now.asked.keys], dim=1),
                "recent_values": torch.cat([old_value[:, 1:], now.asked.values], dim=1),
            }
            after |= named(own, suffix=f"_{index}")
        return y[:, 0], after

    @torch.no_grad()
    def recalled(self, x: Float[Tensor, "batch dim"], state: State) -> Recalled:
        """Return what all layers read of their windows, and of what went to the centroid of their query."""
        time, y, reads = state["time"], x[:, None], {}
        seen, near = seen_steps(time, self.window), last_steps(time, self.window)
        for index, layer in enumerate(self.layers):
            own = part_of(state, suffix=f"_{index}")
            now = self._moment(layer, y, own, seen)
            far = own["times"].gather(1, now.slots).masked_fill(~now.readable, -1)
            weights = weigh(now.asked)[:, :, 0].mean(1)
            reads[f"window, layer {index}"] = Read.of(near, weights[:, self.capacity :])
            reads[f"of its centroid, layer {index}"] = Read.of(far, weights[:, : self.capacity])
            y = layer.finish(y, attend(now.asked))
        return Recalled(reads, {})

    def _moment(
        self, layer: RoutingLayer, y: Float[Tensor, "batch 1 dim"], own: State, seen: Tensor
    ) -> _Moment:
        """Return what a layer asks in a step, and of which slots."""
        capacity = self.capacity
        slot = torch.arange(capacity, device=y.device)
        centroid = torch.arange(self.num_centroids, device=y.device)
        query, key, value = layer.tokens(y, self.state_dtype)
        recent = blanked(own["recent_keys"], seen), blanked(own["recent_values"], seen)
        home, share = route(torch.cat([query, recent[0][:, :1]], dim=1), layer.centroids)
        # Of the rings only the one that is asked is read.
        slots = home[:, :1] * capacity + slot
        asked_is, to_is = (centroid == home[..., None]).unbind(1)
        readable = slot < (own["counts"] * asked_is).sum(dim=1, keepdim=True)
        stored_keys, stored_values = (
            torch.cat([blanked(take(own[name], slots), readable), steps], dim=1)
            for name, steps in zip(("keys", "values"), recent, strict=True)
        )
        near = functional.pad(seen, (0, 1), value=True)
        hidden = torch.where(torch.cat([readable, near], dim=1), 0.0, float("-inf"))[:, None]
        # What is routed is raised: the others are lowered, which are fewer.
        bias = -share[:, :1, None].expand(-1, -1, near.shape[1])
        told = hidden.to(query.dtype), bias, layer.distances.flip(1)[:, None]
        asked = Asked(query, key, value, stored_keys, stored_values, *told)
        return _Moment(asked, slots, readable, recent, home[:, 1:], to_is)

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows in place."""
        if not self.steps_as(Routing, state):
            return super().stepper(state)
        return RoutingStepper(self.layers, self.blank_unwritten(state), self.window)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance by a segment, so many steps at once that its cost is linear, whatever starts."""
        outputs = []
        for first in range(0, x.shape[1], _MOST_AT_ONCE):
            steps = slice(first, first + _MOST_AT_ONCE)
            y, state = self._part(x[:, steps], state, start[:, steps])
            outputs.append(y)
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], state

    def _part(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Advance by a few steps."""
        clock = Clock.of(state["time"], start)
        near, distance = _near(clock, self.window)
        # Of the window before the segment, and of its own steps.
        when = torch.cat([last_steps(clock.age, self.window)[:, :-1], clock.step], dim=1)
        after: State = {"time": clock.after}
        for index, layer in enumerate(self.layers):
            own = part_of(state, suffix=f"_{index}")
            query, key, value = layer.tokens(x, self.state_dtype)
            stored_keys, stored_values = (
                torch.cat([own[name], own[f"recent_{name}"]], dim=1) for name in ("keys", "values")
            )
            held = own["keys"].shape[1]
            home, share = route(torch.cat([query, stored_keys[:, held:], key], dim=1), layer.centroids)
            asked, of_keys = home.split([clock.length, home.shape[1] - clock.length], dim=1)
            course = _course(clock, own["counts"], asked, of_keys, self.capacity)
            # Steps of the window are not routed, though some of them went to the same centroid.
            seen = course.routed
            seen[..., held:] |= near
            hidden = torch.where(seen, 0.0, float("-inf")).to(query.dtype)
            bias = torch.where(near, -share[:, : clock.length, None], 0)
            places = functional.pad(layer.distances, (0, 1))[:, distance]
            read = attend(Asked(query, key, value, stored_keys, stored_values, hidden, bias, places))
            x = layer.finish(x, read)
            times = torch.cat([own["times"], when], dim=1).gather(1, course.kept.clamp(min=0))
            own = {
                "keys": _kept(torch.cat([stored_keys, key], dim=1), course.kept),
                "values": _kept(torch.cat([stored_values, value], dim=1), course.kept),
                "times": times.masked_fill(course.kept < 0, 0),
                "counts": course.counts,
                "recent_keys": shift_window(own["recent_keys"], key, clock),
                "recent_values": shift_window(own["recent_values"], value, clock),
            }
            after |= named(own, suffix=f"_{index}")
        return x, after

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros where no step has reached, as it is where that does no harm."""
        if is_harmless(state):
            return state
        seen = seen_steps(state["time"], self.window)
        blank = dict(state)
        for index in range(len(self.layers)):
            there = _written(state[f"counts_{index}"], self.capacity)
            for name, mask in (("", there), ("recent_", seen)):
                for kind in ("keys", "values"):
                    blank[f"{name}{kind}_{index}"] = blanked(state[f"{name}{kind}_{index}"], mask)
            blank[f"times_{index}"] = state[f"times_{index}"].masked_fill(~there, 0)
        return blank


class _Moment(NamedTuple):
    """What a layer asks in a step, and whom the step that the window leaves behind goes to."""

    asked: Asked
    slots: Int[Tensor, "batch capacity"]
    """Those of the query's centroid, which come first in what is stored."""
    readable: Bool[Tensor, "batch capacity"]
    """Which of them hold a step."""
    recent: tuple[Float[Tensor, "batch window dim"], Float[Tensor, "batch window dim"]]
    """Keys and values of the window, the oldest first."""
    to: Int[Tensor, "batch 1"]
    """The centroid of the oldest."""
    to_is: Bool[Tensor, "batch centroids"]


class Tokens(NamedTuple):
    """What a layer makes of its inputs; queries and keys are normed."""

    query: Float[Tensor, "*batch dim"]
    key: Float[Tensor, "*batch dim"]
    value: Float[Tensor, "*batch dim"]


class RoutingLayer(nn.Module):
    """What goes before attention and behind it: norms, projections, centroids, and feed-forward."""

    def __init__(self, config: RoutingConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = resolve_heads(dim, config.num_heads)
        self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = projections(dim)
        self.centroids = nn.Parameter(nn.init.orthogonal_(torch.empty(config.num_centroids, dim)))
        self.distances = nn.Parameter(torch.zeros(self.heads, config.window + 1))
        self.feed_forward = feed_forward(dim, 2 * dim)

    def tokens(self, x: Float[Tensor, "*batch dim"], dtype: torch.dtype) -> Tokens:
        """Return what inputs ask and what they leave."""
        normed = self.norm(x)
        # One product for all three takes less time, with its gradient.
        weights = torch.cat([self.query.weight, self.key.weight, self.value.weight])
        query, key, value = functional.linear(normed, weights).to(dtype).chunk(3, dim=-1)
        width = query.shape[-1:]
        return Tokens(functional.layer_norm(query, width), functional.layer_norm(key, width), value)

    def output(self, read: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the projection of what is read."""
        return self.out(read.to(self.out.weight.dtype))

    def finish(
        self, x: Float[Tensor, "*batch dim"], read: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """Return what comes out of the layer for what came in, and what that read."""
        x = x + self.output(read)
        return x + self.feed_forward(x)


class Routes(NamedTuple):
    """Where vectors go."""

    home: Int[Tensor, "batch steps"]
    """The centroid that each has the largest product with."""
    share: Float[Tensor, "batch steps"]
    """The logarithm of that one's part in a softmax over all."""


@without_autocast
def route(x: Float[Tensor, "batch steps dim"], centroids: Float[Tensor, "centroids dim"]) -> Routes:
    """Return where vectors go. Centroids count by their directions alone."""
    shares = torch.log_softmax(x @ functional.normalize(centroids.to(x.dtype), dim=-1).T, dim=-1)
    share, home = shares.max(dim=-1)
    return Routes(home, share)


def _written(counts: Int[Tensor, "batch centroids"], capacity: int) -> Bool[Tensor, "batch slots"]:
    """Return which slots of all rings hold a step."""
    return (torch.arange(capacity, device=counts.device) < counts[..., None]).flatten(1)


def _near(
    clock: Clock, window: int
) -> tuple[Bool[Tensor, "batch time window_and_time"], Int[Tensor, "time window_and_time"]]:
    """Return which of the steps before a segment and of its own are in each step's window, and how far back.

    What is farther than the window is one step farther than its farthest.
    """
    step = torch.arange(clock.length, device=clock.step.device)
    behind = step[:, None] - torch.arange(-window, clock.length, device=step.device)
    near = (behind >= 0) & (behind <= clock.step.clamp(max=window)[..., None])
    return near, behind.clamp(0, window + 1)


class _Course(NamedTuple):
    """What becomes of rings in a part of a segment."""

    routed: Bool[Tensor, "batch time slots_and_window_and_time"]
    """What each step reads of its query's centroid."""
    kept: Int[Tensor, "batch slots"]
    """What the slots hold afterwards, of all these; -1 for nothing."""
    counts: Int[Tensor, "batch centroids"]


def _course(
    clock: Clock,
    counts: Int[Tensor, "batch centroids"],
    asked: Int[Tensor, "batch time"],
    home: Int[Tensor, "batch window_and_time"],
    capacity: int,
) -> _Course:
    """Return what becomes of rings, given whom steps ask and where they and the window before them go.

    Steps of one episode and one centroid are numbered in their order, those before the segment below zero.
    One that is `window` steps into the segment's history is given to its centroid before the segment's first
    step, the next before its second, and so on.
    """
    batch, centroids = counts.shape
    time, window = clock.length, home.shape[1] - clock.length
    device = counts.device
    history = torch.arange(home.shape[1], device=device)
    seen = functional.pad(seen_steps(clock.age, window), (0, time), value=True)
    given = functional.one_hot(home, centroids).masked_fill_(~seen[..., None], 0)
    before = (given.cumsum(dim=1) - given).flatten(1)
    # Where in history each step's episode begins, if it does not reach farther back.
    episode = functional.pad(clock.episode, (window, 0))
    birth = (clock.birth - clock.age[:, None] + window).masked_fill(clock.episode == 0, 0)
    birth = functional.pad(birth, (window, 0))

    def number(step: Tensor, birth: Tensor, centroid: Tensor) -> Tensor:
        return before.gather(1, step * centroids + centroid) - before.gather(1, birth * centroids + centroid)

    # One number tells episode, centroid and place, so that what a step reads is an interval of it.
    span = capacity + len(history)
    own = number(history.expand(batch, -1), birth, home)
    label = (episode * centroids + home) * span + own + capacity
    turn = torch.arange(capacity, device=device)
    place = (turn - counts[..., None]) % capacity
    stored = (torch.arange(centroids, device=device)[:, None] * span + place).masked_fill(
        counts[..., None] + place < capacity, -1
    )
    labels = torch.cat([stored.flatten(1), label.masked_fill(~seen, -1)], dim=1).int()
    episode_, birth_ = episode[:, window:], birth[:, window:]
    first = number(history[:time].expand(batch, -1), birth_, asked).clamp(min=0)
    first = ((episode_ * centroids + asked) * span + first).int()
    behind = labels[:, None] - first[..., None]
    routed = (behind >= 0) & (behind < capacity)

    final, begin = episode[:, -1:], birth[:, -1:]
    every = torch.arange(centroids, device=device).expand(batch, -1)
    left = number(torch.full_like(every, time), begin.expand(-1, centroids), every).clamp(min=0)
    old = counts.masked_fill(final > 0, 0)
    own, home, episode = own[:, :time], home[:, :time], episode[:, :time]
    stays = seen[:, :time] & (episode == final) & (own >= left.gather(1, home) - capacity)
    slots = centroids * capacity
    slot = home * capacity + (old.gather(1, home) + own) % capacity
    kept = torch.arange(slots + 1, device=device).where(final == 0, -1)
    kept = kept.scatter(1, slot.masked_fill(~stays, slots), slots + history[:time].expand(batch, -1))
    return _Course(routed, kept[:, :slots], old + left)


def _kept(table: Float[Tensor, "batch all dim"], kept: Int[Tensor, "batch slots"]) -> Tensor:
    """Return what slots hold."""
    return blanked(take(table, kept.clamp(min=0)), kept >= 0)
