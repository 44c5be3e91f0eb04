"""Flowformer: attention as a flow that is conserved, with running means for its memory.

Wu, Wu, Xu, Wang & Long 2022 (arXiv 2202.06258), the causal form of equations 5 to 8. With a = sigmoid(q),
c = sigmoid(k), e = 1e-6, n the step's number in its episode from 1, and means over the episode so far:

    I = 1 / ((a + e) . (mean c + e/n)),             O = 1 / ((c + e) . (mean a + e/n)),
    s = (a + e) . (mean(c O) + e/n),                z = exp(clamp((c + e) . (mean(a I) + e/n), -1, 1)),
    y = sigmoid(s) (a I) mean(c (v z / mean z)^T).

What flows into a step is divided among the steps before it, which compete for it by z, and what a step gets
is allotted by s. A step sees itself, and sums over all steps become sums over those so far, so that this is
not the restriction of the form without a direction to the past.

Where it differs: the published code keeps sums and multiplies by n where these are means, the same numbers,
but bounded for ever. A step moves a mean m to m + (x - m) / n. A segment adds up what differs from the mean
it began with, by `kernels.linear_memory` without decay, and divides by n: a decay of 1 - 1/n is off, in
float32, by a hundredth of 1/n at a million steps, and over a long episode so would be the mean. Steps beyond
2^24 move nothing in float32. What z clamps is 1, the bound, in an episode's first step and for as long as
inputs stay the same; there it has no gradient, as rounding would choose one of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.kernels import linear_memory
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.memory.contract.base import MemoryConfig, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.linear.layered import LayeredMemory, count_heads
from scrubjay.memory.parts.feed_forward import feed_forward

_EPSILON = 1e-6
# As far from its bound as rounding may take what is one.
_MARGIN = 1e-4


@dataclass(frozen=True)
class FlowConfig(MemoryConfig):
    """Sizes of `Flow`. Raises ValueError on one that cannot work."""

    num_layers: int = 1
    """Layers, each with a memory of its own."""
    num_heads: int | None = None
    """Flows of a layer; by default as few as make heads of 8 to 64, else 1."""
    feed_forward_ratio: int = 2
    """Width of the feed-forward part's hidden layer, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_layers", "feed_forward_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        count_heads(self.dim, self.num_heads)

    def build(self) -> Flow:
        """Return a freshly initialised memory of these sizes."""
        return Flow(self)


class Flow(LayeredMemory["FlowLayer"]):
    """Layers of attention that conserves flows, and feed-forward.

    State: that of `FlowLayer` for every layer l, names followed by `_l`.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config, [FlowLayer(config) for _ in range(config.num_layers)])


class FlowLayer(nn.Module):
    """Attention that conserves flows and a feed-forward part, both on a normed input with a plain residual.

    State: `time` `[batch]`, the steps of the episode, and means over them: `mean_key` of c, `mean_query` of
    a, `mean_out` of c O, `mean_in` of a I `[batch, heads, width]`, `mean_source` of z `[batch, heads]`,
    `values` of c (v z / mean z)^T `[batch, heads, width, width]`.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.feed_forward_ratio * config.dim
        self.heads = count_heads(dim, config.num_heads)
        self.width = dim // self.heads
        self.norm = nn.LayerNorm(dim)
        self.project_in = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = feed_forward(dim, hidden)

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the state of a layer that knows nothing."""
        shapes = {
            name: (self.heads, self.width) for name in ("mean_key", "mean_query", "mean_out", "mean_in")
        }
        shapes |= {"mean_source": (self.heads,), "values": (self.heads, self.width, self.width)}
        device = self.out.weight.device
        state = {n: torch.zeros(batch_size, *s, dtype=dtype, device=device) for n, s in shapes.items()}
        return state | {"time": torch.zeros(batch_size, dtype=torch.int64, device=device)}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one input and the state after."""
        y, after = self._attend(x[:, None], state, _Step(state["time"], state["values"].dtype))
        return self._finish(x, y[:, 0]), after | {"time": state["time"] + 1}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the state after."""
        clock = Clock.of(state["time"], start)
        y, after = self._attend(x, state, _Segment(clock, state["values"].dtype))
        return self._finish(x, y), after | {"time": clock.after}

    def _attend(self, x: Tensor, state: State, means: _Means) -> tuple[Tensor, State]:
        tokens = self.project_in(self.norm(x)).to(state["values"].dtype)
        query, key, value = tokens.unflatten(-1, (3, self.heads, self.width)).unbind(2)
        return flow(query.sigmoid(), key.sigmoid(), value, state, means)

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.out(y.flatten(-2).to(self.out.weight.dtype))
        return x + self.feed_forward(x)


@runtime_checkable
class _Means(Protocol):
    """How means over an episode go on."""

    count: Float[Tensor, "batch time 1"]
    """The number n of each step in its episode."""

    def of(
        self, x: Float[Tensor, "batch time *some"], before: Float[Tensor, "batch *some"]
    ) -> tuple[Float[Tensor, "batch time *some"], Float[Tensor, "batch *some"]]:
        """Return the means of `x` up to each step and up to the last."""
        ...

    def read(
        self,
        query: Float[Tensor, "batch time heads width"],
        key: Float[Tensor, "batch time heads width"],
        value: Float[Tensor, "batch time heads width"],
        before: Float[Tensor, "batch heads width width"],
    ) -> tuple[Float[Tensor, "batch time heads width"], Float[Tensor, "batch heads width width"]]:
        """Return what each query reads in the mean of key value^T up to it, and that up to the last."""
        ...


@without_autocast
def flow(
    query: Float[Tensor, "batch time heads width"],
    key: Float[Tensor, "batch time heads width"],
    value: Float[Tensor, "batch time heads width"],
    state: State,
    means: _Means,
) -> tuple[Float[Tensor, "batch time heads width"], State]:
    """Return what is read and the means after; `query` and `key` are a and c, positive."""
    least = (_EPSILON / means.count)[..., None]
    both = torch.stack([key, query], dim=2)
    both, after = means.of(both, torch.stack([state["mean_key"], state["mean_query"]], dim=1))
    mean_key, mean_query = both.unbind(2)
    arriving = 1 / _dot(query + _EPSILON, mean_key + least)
    leaving = 1 / _dot(key + _EPSILON, mean_query + least)

    both = torch.stack([key * leaving, query * arriving], dim=2)
    both, refined = means.of(both, torch.stack([state["mean_out"], state["mean_in"]], dim=1))
    mean_out, mean_in = both.unbind(2)
    sink = _dot(query + _EPSILON, mean_out + least)
    source = _bounded(_dot(key + _EPSILON, mean_in + least)[..., 0]).exp()

    mean_source, source_after = means.of(source, state["mean_source"])
    competing = value * (source / mean_source)[..., None]
    y, values = means.read(query * arriving, key, competing, state["values"])
    named = ("mean_key", "mean_query", "mean_out", "mean_in")
    last = (part.clone() for pair in (after, refined) for part in pair.unbind(1))
    found = dict(zip(named, last, strict=True))
    return y * sink.sigmoid(), found | {"mean_source": source_after, "values": values}


class _Step:
    """Means that go on by one step."""

    def __init__(self, age: Int[Tensor, " batch"], dtype: torch.dtype) -> None:
        self.count = (age + 1).to(dtype)[:, None, None]

    def of(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        after = before + (x[:, 0] - before) / _like(self.count[:, 0, 0], before)
        return after[:, None], after

    def read(self, query: Tensor, key: Tensor, value: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        written = key[:, 0, :, :, None] * value[:, 0, :, None]
        after = before + (written - before) / _like(self.count[:, 0, 0], before)
        return query.transpose(1, 2).matmul(after).transpose(1, 2), after


class _Segment:
    """Means that go on by a segment."""

    def __init__(self, clock: Clock, dtype: torch.dtype) -> None:
        self.start = clock.start
        self.count = (clock.step + 1).to(dtype)[..., None]
        self.early = clock.episode == 0
        here = torch.arange(1, clock.length + 1, device=self.early.device)
        # How many of the n steps are of this segment.
        self.taken = torch.where(self.early, here, clock.step + 1).to(dtype)[..., None]

    def of(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        known = torch.where(_like(self.early, x), before[:, None], 0)
        apart = (x - known).flatten(2)[:, :, None]
        ones = torch.ones_like(apart[..., :1])
        more, _ = self._sums(ones, ones, apart)
        found = known + more.view(x.shape) / _like(self.count[..., 0], x)
        return found, found[:, -1].clone()

    def read(self, query: Tensor, key: Tensor, value: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        y, written = self._sums(query, key, value)
        known = query.transpose(1, 2).matmul(before).transpose(1, 2)
        known = torch.where(_like(self.early, known), known, 0)
        count, taken = self.count[..., None], self.taken[..., None]
        y = (y + (count - taken) * known) / count
        last = torch.where(_like(self.early[:, -1], before), before, 0)
        count, taken = _like(self.count[:, -1, 0], last), _like(self.taken[:, -1, 0], last)
        return y, last + (written - taken * last) / count

    def _sums(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return what queries read in sums of key value^T over their episode's steps here, and the last."""
        unfaded = torch.zeros_like(key[..., 0])
        batch, _, heads, width = key.shape
        empty = key.new_zeros(batch, heads, width, value.shape[-1])
        given = (query, key, value, unfaded, torch.ones_like(unfaded), empty)
        return linear_memory(*given, rule="hebbian", start=self.start)


def _bounded(source: Tensor) -> Tensor:
    """Return `source` within -1 and 1, without a gradient where rounding would decide if there is one."""
    bounded = source.clamp(-1, 1)
    return torch.where(source < 1 - _MARGIN, bounded, bounded.detach())


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _like(x: Tensor, other: Tensor) -> Tensor:
    """Return `x` with as many axes as `other`, the last of length one."""
    return x.view(*x.shape, *[1] * (other.ndim - x.ndim))
