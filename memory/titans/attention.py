"""Shared parts of the Titans architectures: window attention with persistent tokens, and the memory gate.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), sections 3.3 and 4. Persistent tokens are learned
keys and values that precede every episode and stay visible. Attention is therefore `kernels.sink_attention`
with the persistent tokens as sinks. Half of each head has rotary positions by step number. Persistent tokens
have no position, so their keys are zero in this half.
"""

from __future__ import annotations

import operator
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from scrubjay.kernels import sink_attention
from scrubjay.kernels.derivatives import supports_custom_backward
from scrubjay.memory.contract.base import State
from scrubjay.memory.contract.clock import Clock, shift_window
from scrubjay.memory.incremental.window import WindowRingBuffer
from scrubjay.memory.parts.chunks import last_steps
from scrubjay.memory.parts.rotary import build_sine_weights, compute_cos_sin, rotary_frequencies, rotate
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.titans import window
from scrubjay.memory.titans.heads import apply_norm

GateKind = Literal["mix", "product"]
NARROWEST_HEAD = 4
_MAX_CUSTOM_STEPS = 64
"""Longest segment with a custom backward pass, which scores all pairs of steps and cached steps."""


class PersistentTokens(nn.Module):
    """Projections of one attention layer, and its `num_persistent` learned keys and values."""

    frequencies: Tensor
    persistent_keys: Tensor
    persistent_values: Tensor

    def __init__(self, dim: int, num_heads: int | None, num_persistent: int) -> None:
        super().__init__()
        self.heads = resolve_heads(dim, num_heads, NARROWEST_HEAD)
        self.width = dim // self.heads
        self.rotary_width = self.width // 4 * 2
        self.num_persistent = num_persistent
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        for name, width in (("keys", self.width - self.rotary_width), ("values", self.width)):
            tokens = torch.randn(num_persistent, self.heads, width)
            # Without persistent tokens, the checkpoint has no entries.
            if num_persistent:
                self.register_parameter(f"persistent_{name}", nn.Parameter(tokens))
            else:
                self.register_buffer(f"persistent_{name}", tokens, persistent=False)
        self.register_buffer("frequencies", rotary_frequencies(self.rotary_width), persistent=False)

    def project_query(self, x: Tensor, time: Tensor) -> Float[Tensor, "batch time heads width"]:
        """Return the queries of `x`, rotated to the positions `time`."""
        return self._rotate(self.query(x), time)

    def project(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys, rotated to the positions `time`, and values of `x`, `[batch, time, heads, width]`."""
        return self._rotate(self.key(x), time), self.value(x).unflatten(-1, (self.heads, self.width))

    def key_value_weights(self) -> Float[Tensor, "three_dims dim"]:
        """Return projection weights of keys, of the sine terms of rotated keys, and of values, stacked."""
        return torch.cat([self.key.weight, self._sine_weights(self.key.weight), self.value.weight])

    def query_weights(self) -> Float[Tensor, "two_dims dim"]:
        """Return two stacked weights: for scaled queries, and for the sine terms of their rotation."""
        weight = self.query.weight * self.width**-0.5
        return torch.cat([weight, self._sine_weights(weight)])

    def _sine_weights(self, weight: Tensor) -> Tensor:
        return build_sine_weights(weight.unflatten(0, (self.heads, self.width)), self.rotary_width).flatten(
            0, 1
        )

    def rotate_products(
        self, products: Float[Tensor, "batch time three_dims"], rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return rotated keys, and values, both `[batch, heads, time, width]`.

        `products` are the inputs times `key_value_weights`. `rotation` holds the cosines and sines of
        `parts.rotary.compute_cos_sin`.
        """
        shape = (3, self.heads, self.width)
        key, across_key, value = products.unflatten(-1, shape).movedim(-2, 1).unbind(-2)
        cos, sin = rotation
        return torch.addcmul(key * cos, across_key, sin), value

    def prepend_persistent(
        self, keys: Float[Tensor, "batch slots heads width"], values: Tensor, times: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return `keys` and `values`, preceded by `times` copies of the persistent keys and values."""
        # `len` would fix the batch size of an exported program.
        tokens = self.persistent(keys.shape[0], keys.dtype)
        if times > 1:
            tokens = tuple(part.repeat(1, times, 1, 1) for part in tokens)
        return torch.cat([tokens[0], keys], dim=1), torch.cat([tokens[1], values], dim=1)

    def persistent(
        self, batch: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "batch persistent heads width"], Tensor]:
        """Return the persistent keys and values. Both are empty if `num_persistent` is 0."""
        keys = functional.pad(self.persistent_keys, (self.rotary_width, 0)).to(dtype)
        values = self.persistent_values.to(dtype)
        return keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)

    def _rotate(self, x: Tensor, time: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.heads, self.width))
        rotary = rotate(x[..., : self.rotary_width], time, self.frequencies)
        return torch.cat([rotary, x[..., self.rotary_width :]], dim=-1)


class WindowClock(NamedTuple):
    """Positions of queries and keys in the stream of their row.

    The stream of a row is its episodes in sequence. The persistent tokens precede every episode.
    """

    query_step: Int[Tensor, "batch time"]
    episode_start: Int[Tensor, "batch time"]
    key_step: Int[Tensor, "batch slots"]
    """Positions of every episode's persistent tokens, of the cached steps, and of the segment's steps."""
    episodes: int

    @classmethod
    def from_clock(
        cls,
        clock: Clock,
        window: int,
        persistent: int,
    ) -> WindowClock:
        """Return the positions of a segment, with `persistent` tokens before every episode."""
        age = clock.age
        step = clock.stream + persistent
        episodes = 1
        first = torch.zeros_like(age)[:, None]
        if clock.start is not None and clock.start.any():
            count = clock.episode
            step = step + persistent * count
            episodes = 1 + int(count[:, -1].max())
            # Steps that do not start an episode write to an extra column, which is dropped.
            first = torch.full((age.shape[0], episodes + 1), -1, device=age.device)
            index = torch.where(clock.start, count, episodes)
            first = first.scatter(1, index, step - persistent)[:, :episodes]
            first[:, 0] = 0
        first = first[..., None]
        persistent_step = torch.where(
            first >= 0, first + torch.arange(persistent, device=age.device), -1
        ).flatten(1)
        cache_step = age[:, None] + torch.arange(1 - window, 0, device=age.device)
        cache_step = torch.where(cache_step >= 0, cache_step + persistent, -1)
        begin = step - persistent - clock.step
        return cls(step, begin, torch.cat([persistent_step, cache_step, step], dim=1), episodes)


class WindowAttention(PersistentTokens):
    """Attention to persistent tokens and to the last `window` steps, including the present step.

    State: `keys` and `values` `[batch, window - 1, dim]` of the last steps, oldest first. Unused slots are
    zero.
    """

    def __init__(self, dim: int, num_heads: int | None, num_persistent: int, window: int) -> None:
        super().__init__(dim, num_heads, num_persistent)
        self.window = window

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return empty caches."""
        shape = (batch_size, self.window - 1, self.heads * self.width)
        return {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("keys", "values")}

    def attend(
        self,
        x: Float[Tensor, "batch time dim"],
        state: State,
        clock: Clock,
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the attention outputs of all steps, and the next caches."""
        run = self._forward_custom if self._use_custom_backward(x, state, clock) else self.forward
        read, *own = run(x, state["keys"], state["values"], clock)
        after = {}
        for name, new in zip(("keys", "values"), own, strict=True):
            cache, new = state[name], new.to(state[name].dtype)
            is_step = clock.start is None
            after[name] = (
                torch.cat([cache[:, 1:], new], dim=1) if is_step else shift_window(cache, new, clock)
            )
        return read, after

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        keys: Float[Tensor, "batch before dim"],
        values: Float[Tensor, "batch before dim"],
        clock: Clock,
    ) -> tuple[Float[Tensor, "batch time dim"], Tensor, Tensor]:
        """Return the attention outputs, keys and values of all steps, with torch's autograd.

        Args:
            x: Inputs.
            keys: Cached keys of the previous steps, as in a state.
            values: Cached values of the previous steps.
            clock: Clock of the segment.
        """
        stream = WindowClock.from_clock(clock, self.window, self.num_persistent)
        query = self.project_query(x, clock.step)
        own = [part.flatten(2) for part in self.project(x, clock.step)]
        context = [
            torch.cat([cache, new.to(cache.dtype)], dim=1).to(x.dtype).unflatten(-1, (self.heads, self.width))
            for cache, new in zip((keys, values), own, strict=True)
        ]
        read = sink_attention(
            query,
            *self.prepend_persistent(context[0], context[1], stream.episodes),
            stream.query_step,
            stream.key_step,
            stream.episode_start,
            window=self.window,
            num_sinks=self.num_persistent,
        )
        return self.out(read.flatten(2)), own[0], own[1]

    def weigh(
        self, x: Float[Tensor, "batch dim"], state: State, time: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch heads window"]:
        """Return the attention weights of one step over the last `window` steps; the present step is last."""
        query = self.project_query(x[:, None], time[:, None])[:, 0]
        own, _ = self.project(x[:, None], time[:, None])
        cached_keys = state["keys"].to(x.dtype).unflatten(-1, (self.heads, self.width))
        keys = torch.cat([self.persistent(len(x), x.dtype)[0], cached_keys, own], dim=1)
        scores = torch.einsum("bhe,bshe->bhs", query, keys) * self.width**-0.5
        visible = last_steps(time, self.window - 1) >= 0
        visible = functional.pad(visible, (self.num_persistent, 0), value=True)
        weights = torch.softmax(scores.masked_fill(~visible[:, None], -torch.inf), dim=-1)
        return weights[..., self.num_persistent :]

    def _forward_custom(self, x: Tensor, keys: Tensor, values: Tensor, clock: Clock) -> tuple[Tensor, ...]:
        """Return the result of `forward`, with a custom backward pass."""
        cos, sin = compute_cos_sin(clock.step, self.frequencies, self.width, x.dtype)
        schedule = window.build_schedule(clock, self.window, self.heads, self.num_persistent, cos, sin)
        names = [f"{name}.weight" for name in ("query", "key", "value", "out")]
        names += ["persistent_keys", "persistent_values"]

        def plain(*inputs):
            parameters = dict(zip(names, inputs[3:], strict=True))
            read, *own = functional_call(self, parameters, (*inputs[:3], clock))
            return read, *(part[:, -schedule.retained_steps :] for part in own)

        weights = operator.attrgetter(*names)(self)
        return window.read_segment(plain, schedule, x, keys, values, *weights)

    def _use_custom_backward(self, x: Tensor, state: State, clock: Clock) -> bool:
        """Return True if the custom backward pass supports this segment."""
        if (
            clock.start is None
            or not 1 < clock.length <= _MAX_CUSTOM_STEPS
            or not x.numel()
            or self.width % 2
        ):
            return False
        return supports_custom_backward(x, state["keys"], state["values"], self.query.weight)


class WindowRing:
    """In-place steps of a `WindowAttention`, with keys and values in ring buffers.

    A new step overwrites the step that leaves the window, in the same slot of every row. The buffer of each
    row starts with the persistent tokens, so that one matrix product scores all keys. One more product
    computes all projections, including the sine parts for rotary positions.

    Args:
        attention: The attention layer.
        caches: Keys and values of the last steps, as in a state.
        age: Number of steps in each row's episode.
    """

    def __init__(self, attention: WindowAttention, caches: State, age: Int[Tensor, " batch"]) -> None:
        self.attention, self.frequencies = attention, attention.frequencies
        self.heads, self.width, self.window = attention.heads, attention.width, attention.window
        self.num_persistent, dtype = attention.num_persistent, caches["keys"].dtype
        batch = len(age)
        self.projections = torch.cat([attention.query_weights(), attention.key_value_weights()]).to(dtype)
        self.out = attention.out.weight.to(dtype).T.contiguous()
        # A step sees itself and the `window - 1` steps before it.
        self.ring = WindowRingBuffer(self.window - 1, age, dtype)
        self.keys, self.values = (
            torch.cat(
                [
                    persistent.transpose(1, 2),
                    caches[name].unflatten(2, (self.heads, self.width)).transpose(1, 2),
                    persistent.new_zeros(batch, self.heads, 1, self.width),
                ],
                dim=2,
            )
            for name, persistent in zip(("keys", "values"), attention.persistent(batch, dtype), strict=True)
        )

    def forget(self, rows: Int[Tensor, " some"]) -> None:
        """Clear the cached steps of these rows."""
        for part in (self.keys, self.values):
            part[:, :, self.num_persistent :].index_fill_(0, rows, 0)
        self.ring.clear(rows)

    def step(
        self, x: Tensor, normed_x: Float[Tensor, "batch dim"], time: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """Return `x` plus the attention output for the step with input `normed_x`."""
        self.ring.advance(None)
        position = self.num_persistent + self.ring.slot
        parts = functional.linear(normed_x, self.projections).view(-1, 5, self.heads, self.width)
        query, across_query, key, across_key, value = parts.unbind(1)
        cos, sin = (
            part[:, None] for part in compute_cos_sin(time, self.frequencies, self.width, parts.dtype)
        )
        query = torch.addcmul(query * cos, across_query, sin)
        self.keys[:, :, position] = torch.addcmul(key * cos, across_key, sin)
        self.values[:, :, position] = value
        scores = torch.matmul(query[:, :, None], self.keys.mT)[:, :, 0]
        scores[:, :, self.num_persistent :] += self.ring.mask
        weights = torch.softmax(scores, dim=-1)
        read = torch.matmul(weights[:, :, None], self.values)
        return torch.addmm(x, read.flatten(1), self.out)

    def state(self) -> State:
        """Return keys and values of the last steps as state entries."""
        last = self.ring.recent_slots(self.window - 1) + self.num_persistent
        buffers = {"keys": self.keys, "values": self.values}
        return {
            name: cache.index_select(2, last).transpose(1, 2).flatten(2) for name, cache in buffers.items()
        }


def check_gate(kind: str) -> None:
    """Raise ValueError if the gate is unknown."""
    if kind not in get_args(GateKind):
        raise ValueError(f"gate={kind!r}; choose from {', '.join(get_args(GateKind))}")


class MemoryGate(nn.Module):
    """Gate that combines the outputs of attention and memory (equations 25 and 28).

    The paper normalizes both outputs by learned vectors and does not specify the nonlinearity. Here each
    output passes an RMS norm with learned weights. `mix` interpolates between the two by the sigmoid of their
    sum. `product` multiplies them after SiLU. With `product`, `titans_mac` was still at chance on the task
    MQAR after a million tokens.
    """

    def __init__(self, dim: int, kind: GateKind) -> None:
        super().__init__()
        self.kind = kind
        self.attended_norm = nn.RMSNorm(dim, eps=1e-4)
        self.recalled_norm = nn.RMSNorm(dim, eps=1e-4)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, attention_out: Tensor, recalls: Tensor) -> Tensor:
        """Return the gated combination of `attention_out` and `recalls`, after the output projection."""
        attention_out = apply_norm(self.attended_norm, attention_out)
        recalls = apply_norm(self.recalled_norm, recalls)
        if self.kind == "product":
            return self.out(functional.silu(attention_out) * functional.silu(recalls))
        return self.out(recalls + torch.sigmoid(attention_out + recalls) * (attention_out - recalls))
