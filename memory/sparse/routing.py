"""The Routing Transformer as a memory with a state (Roy et al. 2021, arXiv 2003.05997, section 4.1).

Queries and keys are normalized by a layer norm without parameters. Each is assigned to the centroid with the
largest dot product. A step reads itself and the `window` steps before it. Among the steps before the window,
it reads the last `capacity` steps that are assigned to the centroid of its query (the routed steps). One
softmax runs over both sets. A step of a rare cluster is therefore retained for long, regardless of the number
of steps in other clusters.

Differences from the paper: in the paper a centroid selects the nearest tokens of the whole sequence,
including later ones. Later tokens therefore affect which queries read a token. Here a centroid stores its
tokens in order in a ring buffer, and each token belongs to exactly one centroid. In the paper, half of the
heads use a window and half are routed; here all heads do both. The heads of a layer share centroids, and the
scores of the steps in the window have a bias by distance.

The paper moves centroids by a running mean of their tokens. Here centroids are trained by the gradient, since
a memory must not change during use. They get their gradient from the loss of the policy, because a memory has
no loss of its own. For this, log p is added to the scores of routed steps, where p is the probability of the
query's centroid in a softmax over all centroids. If routed steps help a query, the gradient moves its
centroid nearer to the query, otherwise away from the query. With a single centroid, log p is 0.
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
from scrubjay.memory.contract.base import Memory, MemoryConfig, Read, Recall, State, add_affixes, select_part
from scrubjay.memory.contract.clock import Clock, shift_window
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.incremental.routing import RoutingStepper
from scrubjay.memory.parts.attention import AttentionInputs, attend, by_head, weigh
from scrubjay.memory.parts.chunks import (
    build_empty_state,
    is_finite_state,
    last_steps,
    take,
    visited_slots,
    zero_slots,
)
from scrubjay.memory.parts.layers import feed_forward
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.sparse.local_chunk import projections

_STEPS_AT_ONCE = 128  # steps of a segment scored at once, with all stored steps and with each other


@dataclass(frozen=True)
class RoutingConfig(MemoryConfig):
    """Configuration of `Routing`. Raises ValueError on an invalid size."""

    paper_values = (
        "in the paper, a centroid selects tokens from the whole sequence, later ones included (law 3)"
    )

    num_centroids: int = 8
    """Number of centroids per layer."""
    capacity: int = 16
    """Number of steps stored per centroid. A new step replaces the oldest step if the centroid is full."""
    window: int = 16
    """Number of earlier steps that a query reads regardless of their centroid."""
    num_layers: int = 1
    """Number of layers, each with its own centroids."""
    num_heads: int | None = None
    """Attention heads; by default the largest divisor of `dim` up to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("num_centroids", "capacity", "window", "num_layers")
        resolve_heads(self.dim, self.num_heads)

    def build(self) -> Routing:
        """Return a freshly initialized memory."""
        return Routing(self)


class Routing(Memory):
    """Stack of layers with attention to a window and to steps of the same centroid, and a feed-forward block.

    State entries of layer l:

    - `keys_l` and `values_l` `[batch, centroids * capacity, dim]`: ring buffers; unused slots are zero.
    - `times_l` `[batch, centroids * capacity]`: number of the step in each slot.
    - `counts_l` `[batch, centroids]`: number of steps that were stored for each centroid.
    - `recent_keys_l` and `recent_values_l` `[batch, window, dim]`: keys and values of the last steps.

    The entry `time` `[batch]` is the number of steps in the episode.
    """

    retrieves = True

    def __init__(self, config: RoutingConfig) -> None:
        super().__init__(config)
        self.num_centroids, self.capacity, self.window = config.num_centroids, config.capacity, config.window
        layers = nn.ModuleList(RoutingLayer(config) for _ in range(config.num_layers))
        self.layers = cast("list[RoutingLayer]", layers)
        if config.num_centroids == 1:  # a softmax over one centroid is always 1
            self.no_gradient = tuple(f"layers.{index}.centroids" for index in range(config.num_layers))

    def initial_state(self, batch_size: int) -> State:
        """Return empty ring buffers."""
        ring, recent = (self.num_centroids * self.capacity, self.dim), (self.window, self.dim)
        shapes = {"keys": ring, "values": ring, "recent_keys": recent, "recent_values": recent}
        state = build_empty_state(self, batch_size, len(self.layers), shapes)
        numbers = {
            f"{name}_{index}": torch.zeros(batch_size, size, dtype=torch.long, device=self.device)
            for index in range(len(self.layers))
            for name, size in (("counts", self.num_centroids), ("times", ring[0]))
        }
        return state | numbers

    def read(self, x: Float[Tensor, "batch time dim"], state: State) -> Float[Tensor, "batch time dim"]:
        """Return the attention output of queries `x` over the ring buffers, summed over layers.

        The output is zero until a step is stored.
        """
        total = torch.zeros_like(x)
        centroid = torch.arange(self.num_centroids, device=x.device).repeat_interleave(self.capacity)
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            is_filled = _find_filled_slots(own["counts"], self.capacity)
            keys, values = zero_slots(own["keys"], is_filled), zero_slots(own["values"], is_filled)
            query = layer.project(x, self.state_dtype).query
            readable = (centroid == route(query, layer.centroids).centroid[..., None]) & is_filled[:, None]
            query, keys, values = (by_head(part, layer.heads) for part in (query, keys, values))
            scores = query @ keys.mT * query.shape[-1] ** -0.5
            weights = softmax_or_zero(scores.masked_fill(~readable[:, None], float("-inf")))
            total = total + layer.output((weights @ values).transpose(1, 2).flatten(2))
        return total

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance by one step: read, then move the oldest step of the window to the ring of its centroid."""
        time, y = state["time"], x[:, None]
        is_visited = visited_slots(time, self.window)
        after: State = {"time": time + 1}
        slot = torch.arange(self.num_centroids * self.capacity, device=x.device)
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            context = self._step_context(layer, y, own, is_visited)
            y = layer.finish(y, attend(context.attention_inputs))
            is_evicting, (old_key, old_value) = is_visited[:, :1], context.recent
            place = (
                context.evicted_centroid * self.capacity
                + (own["counts"] * context.evicted_mask).sum(dim=1, keepdim=True) % self.capacity
            )
            is_target = (slot == place) & is_evicting
            own = {
                "keys": torch.where(is_target[..., None], old_key[:, :1], own["keys"]),
                "values": torch.where(is_target[..., None], old_value[:, :1], own["values"]),
                "times": torch.where(is_target, time[:, None] - self.window, own["times"]),
                "counts": own["counts"] + (context.evicted_mask & is_evicting),
                "recent_keys": torch.cat([old_key[:, 1:], context.attention_inputs.keys], dim=1),
                "recent_values": torch.cat([old_value[:, 1:], context.attention_inputs.values], dim=1),
            }
            after |= add_affixes(own, suffix=f"_{index}")
        return y[:, 0], after

    @torch.no_grad()
    def recall(self, x: Float[Tensor, "batch dim"], state: State) -> Recall:
        """Return all layers' attention weights: over the window, and over the stored steps of the query's
        centroid."""
        time, y, reads = state["time"], x[:, None], {}
        is_visited, near = visited_slots(time, self.window), last_steps(time, self.window)
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            context = self._step_context(layer, y, own, is_visited)
            far = own["times"].gather(1, context.slots).masked_fill(~context.readable, -1)
            weights = weigh(context.attention_inputs)[:, :, 0].mean(1)
            reads[f"window, layer {index}"] = Read.from_weights(near, weights[:, self.capacity :])
            reads[f"steps of the same centroid, layer {index}"] = Read.from_weights(
                far, weights[:, : self.capacity]
            )
            y = layer.finish(y, attend(context.attention_inputs))
        return Recall(reads, {})

    def _step_context(
        self, layer: RoutingLayer, y: Float[Tensor, "batch 1 dim"], own: State, is_visited: Tensor
    ) -> _StepContext:
        """Return the attention inputs of a layer in one step, and the slots that it reads."""
        capacity = self.capacity
        slot = torch.arange(capacity, device=y.device)
        centroid = torch.arange(self.num_centroids, device=y.device)
        query, key, value = layer.project(y, self.state_dtype)
        recent = zero_slots(own["recent_keys"], is_visited), zero_slots(own["recent_values"], is_visited)
        centroids, log_prob = route(torch.cat([query, recent[0][:, :1]], dim=1), layer.centroids)
        # Only the ring of the query's centroid is read.
        slots = centroids[:, :1] * capacity + slot
        query_mask, evicted_mask = (centroid == centroids[..., None]).unbind(1)
        readable = slot < (own["counts"] * query_mask).sum(dim=1, keepdim=True)
        stored_keys, stored_values = (
            torch.cat([zero_slots(take(own[name], slots), readable), steps], dim=1)
            for name, steps in zip(("keys", "values"), recent, strict=True)
        )
        near = functional.pad(is_visited, (0, 1), value=True)
        hidden = torch.where(torch.cat([readable, near], dim=1), 0.0, float("-inf"))[:, None]
        # Instead of adding log p to routed steps, subtract it from the fewer window steps.
        bias = -log_prob[:, :1, None].expand(-1, -1, near.shape[1])
        masks = hidden.to(query.dtype), bias, layer.distances.flip(1)[:, None]
        attention_inputs = AttentionInputs(query, key, value, stored_keys, stored_values, *masks)
        return _StepContext(attention_inputs, slots, readable, recent, centroids[:, 1:], evicted_mask)

    def stepper(self, state: State) -> Stepper:
        """Return a `Stepper` that continues from `state` and updates its own buffers in place."""
        if not self.can_use_stepper(Routing, state):
            return super().stepper(state)
        return RoutingStepper(self.layers, self.blank_unwritten(state), self.window)

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment in parts of fixed length, so that the cost is linear in the number of steps."""
        outputs = []
        for first in range(0, x.shape[1], _STEPS_AT_ONCE):
            steps = slice(first, first + _STEPS_AT_ONCE)
            y, state = self._part(x[:, steps], state, start[:, steps])
            outputs.append(y)
        return torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0], state

    def _part(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Process a part of a segment: a few steps at once."""
        clock = Clock.from_starts(state["time"], start)
        near, distance = _window_mask(clock, self.window)
        # Step numbers of the window before the segment, and of its own steps.
        step_numbers = torch.cat([last_steps(clock.age, self.window)[:, :-1], clock.step], dim=1)
        after: State = {"time": clock.age_after}
        for index, layer in enumerate(self.layers):
            own = select_part(state, suffix=f"_{index}")
            query, key, value = layer.project(x, self.state_dtype)
            stored_keys, stored_values = (
                torch.cat([own[name], own[f"recent_{name}"]], dim=1) for name in ("keys", "values")
            )
            num_slots = own["keys"].shape[1]
            centroids, log_prob = route(
                torch.cat([query, stored_keys[:, num_slots:], key], dim=1), layer.centroids
            )
            query_centroid, key_centroid = centroids.split(
                [clock.length, centroids.shape[1] - clock.length], dim=1
            )
            ring_update = _update_rings(clock, own["counts"], query_centroid, key_centroid, self.capacity)
            # Steps of the window are not routed, although some belong to the same centroid.
            readable = ring_update.readable
            readable[..., num_slots:] |= near
            hidden = torch.where(readable, 0.0, float("-inf")).to(query.dtype)
            bias = torch.where(near, -log_prob[:, : clock.length, None], 0)
            places = functional.pad(layer.distances, (0, 1))[:, distance]
            read = attend(
                AttentionInputs(query, key, value, stored_keys, stored_values, hidden, bias, places)
            )
            x = layer.finish(x, read)
            times = torch.cat([own["times"], step_numbers], dim=1).gather(1, ring_update.sources.clamp(min=0))
            own = {
                "keys": _gather_slots(torch.cat([stored_keys, key], dim=1), ring_update.sources),
                "values": _gather_slots(torch.cat([stored_values, value], dim=1), ring_update.sources),
                "times": times.masked_fill(ring_update.sources < 0, 0),
                "counts": ring_update.counts,
                "recent_keys": shift_window(own["recent_keys"], key, clock),
                "recent_values": shift_window(own["recent_values"], value, clock),
            }
            after |= add_affixes(own, suffix=f"_{index}")
        return x, after

    def blank_unwritten(self, state: State) -> State:
        """Return `state` with zeros in unused slots, or `state` itself if it has no NaN or inf."""
        if is_finite_state(state):
            return state
        is_visited = visited_slots(state["time"], self.window)
        blank = dict(state)
        for index in range(len(self.layers)):
            is_filled = _find_filled_slots(state[f"counts_{index}"], self.capacity)
            for name, mask in (("", is_filled), ("recent_", is_visited)):
                for suffix in ("keys", "values"):
                    blank[f"{name}{suffix}_{index}"] = zero_slots(state[f"{name}{suffix}_{index}"], mask)
            blank[f"times_{index}"] = state[f"times_{index}"].masked_fill(~is_filled, 0)
        return blank


class _StepContext(NamedTuple):
    """Attention inputs of a layer in one step, and the centroid of the step that leaves the window."""

    attention_inputs: AttentionInputs
    slots: Int[Tensor, "batch capacity"]
    """Indices of the slots of the query's centroid. In `attention_inputs` the keys of these slots come first,
    and the keys of the window follow."""
    readable: Bool[Tensor, "batch capacity"]
    """Mask of the slots of the query's centroid: True for filled slots."""
    recent: tuple[Float[Tensor, "batch window dim"], Float[Tensor, "batch window dim"]]
    """Keys and values of the window, oldest first."""
    evicted_centroid: Int[Tensor, "batch 1"]
    """Centroid of the oldest step in the window."""
    evicted_mask: Bool[Tensor, "batch centroids"]


class RoutingTokens(NamedTuple):
    """Normalized queries, normalized keys, and values of a layer's inputs."""

    query: Float[Tensor, "*batch dim"]
    key: Float[Tensor, "*batch dim"]
    value: Float[Tensor, "*batch dim"]


class RoutingLayer(nn.Module):
    """Norms, projections, centroids and feed-forward block of a layer."""

    def __init__(self, config: RoutingConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = resolve_heads(dim, config.num_heads)
        self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = projections(dim)
        self.centroids = nn.Parameter(nn.init.orthogonal_(torch.empty(config.num_centroids, dim)))
        self.distances = nn.Parameter(torch.zeros(self.heads, config.window + 1))
        self.feed_forward = feed_forward(dim, 2 * dim)

    def project(self, x: Float[Tensor, "*batch dim"], dtype: torch.dtype) -> RoutingTokens:
        """Return the queries, keys and values of inputs. Queries and keys are normalized."""
        normed_x = self.norm(x)
        # One product for all three is faster, in the forward and the backward pass.
        weights = torch.cat([self.query.weight, self.key.weight, self.value.weight])
        query, key, value = functional.linear(normed_x, weights).to(dtype).chunk(3, dim=-1)
        width = query.shape[-1:]
        return RoutingTokens(functional.layer_norm(query, width), functional.layer_norm(key, width), value)

    def output(self, read: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Apply the layer's output projection to an attention output."""
        return self.out(read.to(self.out.weight.dtype))

    def finish(
        self, x: Float[Tensor, "*batch dim"], read: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """Return the layer output of inputs `x` and attention outputs `read`."""
        x = x + self.output(read)
        return x + self.feed_forward(x)


class Routes(NamedTuple):
    """Assignment of vectors to centroids."""

    centroid: Int[Tensor, "batch steps"]
    """Index of the assigned centroid, whose direction has the largest dot product with the vector."""
    log_prob: Float[Tensor, "batch steps"]
    """Log probability of the assigned centroid in a softmax over all centroids."""


@without_autocast
def route(x: Float[Tensor, "batch steps dim"], centroids: Float[Tensor, "centroids dim"]) -> Routes:
    """Return the assignment of vectors to centroids. The lengths of the centroids do not matter."""
    log_probs = torch.log_softmax(x @ functional.normalize(centroids.to(x.dtype), dim=-1).T, dim=-1)
    log_prob, centroid = log_probs.max(dim=-1)
    return Routes(centroid, log_prob)


def _find_filled_slots(counts: Int[Tensor, "batch centroids"], capacity: int) -> Bool[Tensor, "batch slots"]:
    """Return the mask of filled slots of all rings."""
    return (torch.arange(capacity, device=counts.device) < counts[..., None]).flatten(1)


def _window_mask(
    clock: Clock, window: int
) -> tuple[Bool[Tensor, "batch time window_and_time"], Int[Tensor, "time window_and_time"]]:
    """Return for each step a mask of the steps in its window, and its distances to all steps.

    The last axis has the `window` steps before the segment, then the segment's steps. Distances beyond the
    window are clipped to `window + 1`.
    """
    step = torch.arange(clock.length, device=clock.step.device)
    behind = step[:, None] - torch.arange(-window, clock.length, device=step.device)
    near = (behind >= 0) & (behind <= clock.step.clamp(max=window)[..., None])
    return near, behind.clamp(0, window + 1)


class _RingUpdate(NamedTuple):
    """Mask of the items that queries of a part of a segment can read, and the ring buffers after the part."""

    readable: Bool[Tensor, "batch time slots_and_window_and_time"]
    """True for items that are in the ring buffer of the query's centroid at the query's step."""
    sources: Int[Tensor, "batch slots"]
    """For each slot, the item that it contains after the part, as an index into the concatenation of old
    slots, window and part; -1 for an empty slot."""
    counts: Int[Tensor, "batch centroids"]


def _update_rings(
    clock: Clock,
    counts: Int[Tensor, "batch centroids"],
    query_centroid: Int[Tensor, "batch time"],
    centroid_of_key: Int[Tensor, "batch window_and_time"],
    capacity: int,
) -> _RingUpdate:
    """Compute which items queries can read and what the ring buffers contain afterwards.

    `centroid_of_key` includes the keys of the window before the segment. The steps of one centroid in one
    episode have consecutive numbers; these are negative for steps that are already in the ring buffer. After
    each step of the segment, the oldest step of the window moves to the ring buffer of its centroid.
    """
    batch, centroids = counts.shape
    time, window = clock.length, centroid_of_key.shape[1] - clock.length
    device = counts.device
    history = torch.arange(centroid_of_key.shape[1], device=device)
    is_visited = functional.pad(visited_slots(clock.age, window), (0, time), value=True)
    one_hot = functional.one_hot(centroid_of_key, centroids).masked_fill_(~is_visited[..., None], 0)
    before = (one_hot.cumsum(dim=1) - one_hot).flatten(1)
    # Index of the start of each step's episode, clipped to the window.
    episode = functional.pad(clock.episode, (window, 0))
    episode_start = (clock.episode_start - clock.age[:, None] + window).masked_fill(clock.episode == 0, 0)
    episode_start = functional.pad(episode_start, (window, 0))

    def number(step: Tensor, episode_start: Tensor, centroid: Tensor) -> Tensor:
        return before.gather(1, step * centroids + centroid) - before.gather(
            1, episode_start * centroids + centroid
        )

    # One integer encodes episode, centroid and number, so that each step reads an interval of integers.
    span = capacity + len(history)
    own = number(history.expand(batch, -1), episode_start, centroid_of_key)
    label = (episode * centroids + centroid_of_key) * span + own + capacity
    slot_index = torch.arange(capacity, device=device)
    place = (slot_index - counts[..., None]) % capacity
    stored_labels = (torch.arange(centroids, device=device)[:, None] * span + place).masked_fill(
        counts[..., None] + place < capacity, -1
    )
    labels = torch.cat([stored_labels.flatten(1), label.masked_fill(~is_visited, -1)], dim=1).int()
    query_episode, query_start = episode[:, window:], episode_start[:, window:]
    first = number(history[:time].expand(batch, -1), query_start, query_centroid).clamp(min=0)
    first = ((query_episode * centroids + query_centroid) * span + first).int()
    offset = labels[:, None] - first[..., None]
    readable = (offset >= 0) & (offset < capacity)

    final, begin = episode[:, -1:], episode_start[:, -1:]
    every = torch.arange(centroids, device=device).expand(batch, -1)
    num_evicted = number(torch.full_like(every, time), begin.expand(-1, centroids), every).clamp(min=0)
    old = counts.masked_fill(final > 0, 0)
    own, centroid_of_key, episode = own[:, :time], centroid_of_key[:, :time], episode[:, :time]
    is_stored = (
        is_visited[:, :time] & (episode == final) & (own >= num_evicted.gather(1, centroid_of_key) - capacity)
    )
    slots = centroids * capacity
    slot = centroid_of_key * capacity + (old.gather(1, centroid_of_key) + own) % capacity
    sources = torch.arange(slots + 1, device=device).where(final == 0, -1)
    sources = sources.scatter(
        1, slot.masked_fill(~is_stored, slots), slots + history[:time].expand(batch, -1)
    )
    return _RingUpdate(readable, sources[:, :slots], old + num_evicted)


def _gather_slots(table: Float[Tensor, "batch all dim"], sources: Int[Tensor, "batch slots"]) -> Tensor:
    """Return the items of `table` at the indices `sources`, zeros where the index is -1."""
    return zero_slots(take(table, sources.clamp(min=0)), sources >= 0)
