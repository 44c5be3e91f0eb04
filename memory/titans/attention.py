"""What the architectures of Titans share: window attention with persistent tokens, and the memory's gate.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), sections 3.3 and 4. Persistent tokens are learned
keys and values that stand before every episode and stay visible, so attention is `kernels.sink_attention`
whose sinks they are. Half of a head is turned by the step's time (rotary positions) and sees no persistent
token, which has none.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from scrubjay.kernels import sink_attention
from scrubjay.kernels.derivatives import has_own_gradient
from scrubjay.memory.contract.base import State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.chunks import last_steps
from scrubjay.memory.parts.recent import shift_window
from scrubjay.memory.parts.rotary import across, rotary_frequencies, rotate, turns
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.titans import window
from scrubjay.memory.titans.heads import normalised

GateKind = Literal["mix", "product"]
NARROWEST_HEAD = 4
_AT_ONCE = 64
"""Steps up to which a segment's gradient is taken by hand: all pairs with what is cached are scored."""


class PersistentTokens(nn.Module):
    """Projections of one attention layer and its persistent keys and values, `num_persistent` of each."""

    frequencies: Tensor

    def __init__(self, dim: int, num_heads: int | None, num_persistent: int) -> None:
        super().__init__()
        self.heads = resolve_heads(dim, num_heads, NARROWEST_HEAD)
        self.width = dim // self.heads
        self.rotated = self.width // 4 * 2
        self.num_persistent = num_persistent
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        if num_persistent:
            still = (num_persistent, self.heads, self.width - self.rotated)
            self.persistent_keys = nn.Parameter(torch.randn(still))
            self.persistent_values = nn.Parameter(torch.randn(num_persistent, self.heads, self.width))
        self.register_buffer("frequencies", rotary_frequencies(self.rotated), persistent=False)

    def project_query(self, x: Tensor, time: Tensor) -> Float[Tensor, "batch time heads width"]:
        """Return the queries of `x` at their times."""
        return self._turn(self.query(x), time)

    def project(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of `x` at their times, `[batch, time, heads, width]`."""
        return self._turn(self.key(x), time), self.value(x).unflatten(-1, (self.heads, self.width))

    def both(self) -> Float[Tensor, "three_dims dim"]:
        """Return the weights of keys, of what turns them and of values, one below the other, for `turned`."""
        return torch.cat([self.key.weight, self._across(self.key.weight), self.value.weight])

    def turned_query(self) -> Float[Tensor, "two_dims dim"]:
        """Return the weights of queries, scaled, and of what turns them."""
        weight = self.query.weight * self.width**-0.5
        return torch.cat([weight, self._across(weight)])

    def _across(self, weight: Tensor) -> Tensor:
        return across(weight.unflatten(0, (self.heads, self.width)), self.rotated).flatten(0, 1)

    def turned(
        self, products: Float[Tensor, "batch time three_dims"], turn: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values `[batch, heads, time, width]` of products with `both`.

        `turn` is that of `parts.rotary.turns`.
        """
        shape = (3, self.heads, self.width)
        key, across_key, value = products.unflatten(-1, shape).movedim(-2, 1).unbind(-2)
        cos, sin = turn
        return torch.addcmul(key * cos, across_key, sin), value

    def before(
        self, keys: Float[Tensor, "batch slots heads width"], values: Tensor, times: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values with the persistent ones, so many `times`, before them."""
        if not self.num_persistent:
            return keys, values
        still = self.persistent(keys.shape[0], keys.dtype)
        joined = (
            torch.cat([persistent.repeat(1, times, 1, 1) if times > 1 else persistent, own], dim=1)
            for persistent, own in zip(still, (keys, values), strict=True)
        )
        return next(joined), next(joined)

    def persistent(
        self, batch: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "batch persistent heads width"], Tensor]:
        """Return the persistent keys and values, none if there are none."""
        if not self.num_persistent:
            none = self.query.weight.new_empty(batch, 0, self.heads, self.width, dtype=dtype)
            return none, none
        keys = functional.pad(self.persistent_keys, (self.rotated, 0))
        still = [part.to(dtype).expand(batch, -1, -1, -1) for part in (keys, self.persistent_values)]
        return still[0], still[1]

    def _turn(self, x: Tensor, time: Tensor) -> Tensor:
        x = x.unflatten(-1, (self.heads, self.width))
        turned = rotate(x[..., : self.rotated], time, self.frequencies)
        return torch.cat([turned, x[..., self.rotated :]], dim=-1)


class WindowClock(NamedTuple):
    """Where queries and keys are in their row's stream, whose episodes begin with persistent steps."""

    query_step: Int[Tensor, "batch time"]
    episode_start: Int[Tensor, "batch time"]
    key_step: Int[Tensor, "batch slots"]
    """Of the persistent slots of every episode, of the cache, and of the queries themselves."""
    episodes: int

    @classmethod
    def of(
        cls,
        clock: Clock,
        window: int,
        persistent: int,
    ) -> WindowClock:
        """Return where a segment's steps are with `persistent` steps before every episode."""
        age = clock.age
        step = clock.stream + persistent
        episodes = 1
        first = torch.zeros_like(age)[:, None]
        if clock.start is not None and clock.start.any():
            count = clock.episode
            step = step + persistent * count
            episodes = 1 + int(count[:, -1].max())
            # Steps that begin no episode write to a column of their own, which is dropped.
            first = torch.full((age.shape[0], episodes + 1), -1, device=age.device)
            index = torch.where(clock.start, count, episodes)
            first = first.scatter(1, index, step - persistent)[:, :episodes]
            first[:, 0] = 0
        first = first[..., None]
        own = torch.where(first >= 0, first + torch.arange(persistent, device=age.device), -1).flatten(1)
        cached = age[:, None] + torch.arange(1 - window, 0, device=age.device)
        cached = torch.where(cached >= 0, cached + persistent, -1)
        begin = step - persistent - clock.step
        return cls(step, begin, torch.cat([own, cached, step], dim=1), episodes)


class WindowAttention(PersistentTokens):
    """Attention to the last `window` steps of the episode, the present included, and to persistent tokens.

    State: `keys` and `values` `[batch, window - 1, dim]` of the last steps, oldest first, zero where there
    were none.
    """

    def __init__(self, dim: int, num_heads: int | None, num_persistent: int, window: int) -> None:
        super().__init__(dim, num_heads, num_persistent)
        self.window = window

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return empty caches."""
        shape = (batch_size, self.window - 1, self.heads * self.width)
        return {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("keys", "values")}

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        state: State,
        clock: Clock,
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return what every step reads, and the caches after the last."""
        run = self._by_hand if self._has_own_gradient(x, state, clock) else self.by_torch
        read, *own = run(x, state["keys"], state["values"], clock)
        after = {}
        for name, new in zip(("keys", "values"), own, strict=True):
            cache, new = state[name], new.to(state[name].dtype)
            one = clock.start is None
            after[name] = torch.cat([cache[:, 1:], new], dim=1) if one else shift_window(cache, new, clock)
        return read, after

    def by_torch(
        self,
        x: Float[Tensor, "batch time dim"],
        keys: Float[Tensor, "batch before dim"],
        values: Float[Tensor, "batch before dim"],
        clock: Clock,
    ) -> tuple[Float[Tensor, "batch time dim"], Tensor, Tensor]:
        """Return what every step reads, and keys and values of the last steps at least, in plain operations.

        Args:
            x: Inputs.
            keys: Those of the last steps before, as in a state.
            values: The same.
            clock: Where the steps are.
        """
        stream = WindowClock.of(clock, self.window, self.num_persistent)
        query = self.project_query(x, clock.step)
        own = [part.flatten(2) for part in self.project(x, clock.step)]
        context = [
            torch.cat([cache, new.to(cache.dtype)], dim=1).to(x.dtype).unflatten(-1, (self.heads, self.width))
            for cache, new in zip((keys, values), own, strict=True)
        ]
        read = sink_attention(
            query,
            *self.before(context[0], context[1], stream.episodes),
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
        """Return how much of what one step reads is of each of the last steps, itself the last."""
        query = self.project_query(x[:, None], time[:, None])[:, 0]
        own, _ = self.project(x[:, None], time[:, None])
        cached = state["keys"].to(x.dtype).unflatten(-1, (self.heads, self.width))
        keys = torch.cat([self.persistent(len(x), x.dtype)[0], cached, own], dim=1)
        scores = torch.einsum("bhe,bshe->bhs", query, keys) * self.width**-0.5
        seen = last_steps(time, self.window - 1) >= 0
        seen = functional.pad(seen, (self.num_persistent, 0), value=True)
        weights = torch.softmax(scores.masked_fill(~seen[:, None], -torch.inf), dim=-1)
        return weights[..., self.num_persistent :]

    def _by_hand(self, x: Tensor, keys: Tensor, values: Tensor, clock: Clock) -> tuple[Tensor, ...]:
        """Return the same, with gradients written by hand."""
        cos, sin = turns(clock.step, self.frequencies, self.width, x.dtype)
        at = window.moment(clock, self.window, self.heads, self.num_persistent, cos, sin)
        weights = {f"{name}.weight": getattr(self, name).weight for name in ("query", "key", "value", "out")}
        absent: list[Tensor] = []
        if self.num_persistent:
            weights |= {name: getattr(self, name) for name in ("persistent_keys", "persistent_values")}
        else:
            nothing = self.query.weight.new_empty(0, self.heads, self.width)
            absent = [nothing[..., self.rotated :], nothing]

        def plain(*given):
            named = {f"attention.{name}": weight for name, weight in zip(weights, given[3:], strict=False)}
            read, *own = functional_call(_Plain(self), named, (*given[:3], clock))
            return read, *(part[:, -at.kept :] for part in own)

        return window.read_segment(plain, at, x, keys, values, *weights.values(), *absent)

    def _has_own_gradient(self, x: Tensor, state: State, clock: Clock) -> bool:
        """Return whether a segment of such inputs may have its gradient by hand."""
        if clock.start is None or not 1 < clock.length <= _AT_ONCE or not x.numel() or self.width % 2:
            return False
        return has_own_gradient(x, state["keys"], state["values"], self.query.weight)


class _Plain(nn.Module):
    def __init__(self, attention: WindowAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *given: Any) -> tuple[Tensor, ...]:
        return self.attention.by_torch(*given)


def check_gate(kind: str) -> None:
    """Raise ValueError unless there is such a gate."""
    if kind not in get_args(GateKind):
        raise ValueError(f"gate={kind!r}; choose from {', '.join(get_args(GateKind))}")


class MemoryGate(nn.Module):
    """What attention read and what the memory recalled, mixed by a gate of both (equations 25 and 28).

    The paper normalises both by learned vectors and leaves the nonlinearity open. Here each has its learned
    RMS normalisation, and a sigmoid of their sum says how much of each passes: with a product of the two
    `titans_mac` was still at chance on MQAR after a million tokens. That product, of both behind SiLU, is
    what `product` takes.
    """

    def __init__(self, dim: int, kind: GateKind) -> None:
        super().__init__()
        self.kind = kind
        self.attended_norm = nn.RMSNorm(dim, eps=1e-4)
        self.recalled_norm = nn.RMSNorm(dim, eps=1e-4)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, attended: Tensor, recalled: Tensor) -> Tensor:
        """Return the mixture, projected."""
        attended = normalised(self.attended_norm, attended)
        recalled = normalised(self.recalled_norm, recalled)
        if self.kind == "product":
            return self.out(functional.silu(attended) * functional.silu(recalled))
        return self.out(recalled + torch.sigmoid(attended + recalled) * (attended - recalled))
