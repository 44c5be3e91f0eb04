"""Flowformer: attention with flow conservation, with running means as its memory.

Wu, Wu, Xu, Wang & Long 2022 (arXiv 2202.06258), the causal form of equations 5 to 8. For queries q, keys k
and values v, let a = sigmoid(q), c = sigmoid(k) and e = 1e-6. n is the number of the step in its episode,
from 1. A mean runs over the steps of the episode up to the present step. The output y of a step
follows from four intermediate values, I, O, s and z:

    I = 1 / ((a + e) . (mean c + e/n)),             O = 1 / ((c + e) . (mean a + e/n)),
    s = (a + e) . (mean(c O) + e/n),                z = exp(clamp((c + e) . (mean(a I) + e/n), -1, 1)),
    y = sigmoid(s) (a I) mean(c (v z / mean z)^T).

I is the inverse of a query's incoming flow and O the inverse of a key's outgoing flow. Keys compete for
incoming flow by z, and s scales the output of a query. A step also attends to itself. In the causal form,
every sum over all steps is a sum up to the present step. The non-causal form with a causal mask would differ.

Differences from the published code: the published code stores sums and multiplies by n. This module stores
means, which give the same results and stay bounded. A step moves a mean m to m + (x - m) / n. A segment sums
the differences from its initial mean by `kernels.linear_memory` without decay, and divides by n. A decay of
1 - 1/n would be simpler. At a million steps in float32, however, it would be wrong by a hundredth of 1/n. In
float32, steps beyond 2^24 no longer change the means.

The clamped value in z is exactly 1, the upper bound, in the first step of an episode and as long as inputs
are constant. The gradient of z is set to zero there. Otherwise, rounding would decide between two gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.kernels import linear_memory
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.memory.contract.base import SAME_AS_PAPER, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.linear.layers import LayeredMemory
from scrubjay.memory.parts.layers import feed_forward
from scrubjay.memory.parts.window import count_heads

_EPSILON = 1e-6
# Largest rounding error of a value that is exactly one.
_MARGIN = 1e-4


@dataclass(frozen=True)
class FlowConfig(MemoryConfig):
    """Configuration of `Flow`. Raises ValueError on an invalid size."""

    paper_values = SAME_AS_PAPER

    num_layers: int = 1
    """Number of layers, each with its own memory."""
    num_heads: int | None = None
    """Heads per layer. Default: the smallest number whose heads are 8 to 64 wide; 1 if there is none."""
    feed_forward_ratio: int = 2
    """Hidden width of the feed-forward block, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("num_layers", "feed_forward_ratio")
        count_heads(self.dim, self.num_heads)

    def build(self) -> Flow:
        """Return a newly initialized memory."""
        return Flow(self)


class Flow(LayeredMemory["FlowLayer"]):
    """Stack of flow-attention and feed-forward layers.

    State: the entries of `FlowLayer` for every layer l, with the suffix `_l`.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config, [FlowLayer(config) for _ in range(config.num_layers)])


class FlowLayer(nn.Module):
    """Flow attention and a feed-forward block, both pre-norm with a residual connection.

    State: `time` `[batch]` is the number of steps in the episode. The other entries are means over these
    steps, with the symbols of the module's docstring. `mean_key` (of c), `mean_query` (of a), `mean_out` (of
    c O) and `mean_in` (of a I) are `[batch, heads, width]`. `mean_source` (of z) is `[batch, heads]`.
    `values`, the mean of c (v z / mean z)^T, is `[batch, heads, width, width]`.
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
        """Return the initial state of the layer: zeros."""
        shapes = {
            name: (self.heads, self.width) for name in ("mean_key", "mean_query", "mean_out", "mean_in")
        }
        shapes |= {"mean_source": (self.heads,), "values": (self.heads, self.width, self.width)}
        device = self.out.weight.device
        state = {n: torch.zeros(batch_size, *s, dtype=dtype, device=device) for n, s in shapes.items()}
        return state | {"time": torch.zeros(batch_size, dtype=torch.int64, device=device)}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state."""
        y, after = self._attend(x[:, None], state, _StepMeans(state["time"], state["values"].dtype))
        return self._finish(x, y[:, 0]), after | {"time": state["time"] + 1}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state."""
        clock = Clock.from_starts(state["time"], start)
        y, after = self._attend(x, state, _SegmentMeans(clock, state["values"].dtype))
        return self._finish(x, y), after | {"time": clock.age_after}

    def _attend(self, x: Tensor, state: State, means: _StepMeans | _SegmentMeans) -> tuple[Tensor, State]:
        tokens = self.project_in(self.norm(x)).to(state["values"].dtype)
        query, key, value = tokens.unflatten(-1, (3, self.heads, self.width)).unbind(2)
        return flow(query.sigmoid(), key.sigmoid(), value, state, means)

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.out(y.flatten(-2).to(self.out.weight.dtype))
        return x + self.feed_forward(x)


@without_autocast
def flow(
    query: Float[Tensor, "batch time heads width"],
    key: Float[Tensor, "batch time heads width"],
    value: Float[Tensor, "batch time heads width"],
    state: State,
    means: _StepMeans | _SegmentMeans,
) -> tuple[Float[Tensor, "batch time heads width"], State]:
    """Return the attention outputs, and the running means after the last step.

    `query` and `key` are the sigmoids of the queries and keys (a and c in the module's docstring).
    """
    epsilon = (_EPSILON / means.count)[..., None]
    both = torch.stack([key, query], dim=2)
    both, after = means.average(both, torch.stack([state["mean_key"], state["mean_query"]], dim=1))
    mean_key, mean_query = both.unbind(2)
    inverse_inflow = 1 / _dot(query + _EPSILON, mean_key + epsilon)
    inverse_outflow = 1 / _dot(key + _EPSILON, mean_query + epsilon)

    both = torch.stack([key * inverse_outflow, query * inverse_inflow], dim=2)
    both, normalized_means = means.average(both, torch.stack([state["mean_out"], state["mean_in"]], dim=1))
    mean_out, mean_in = both.unbind(2)
    sink = _dot(query + _EPSILON, mean_out + epsilon)
    source = _clamp_source(_dot(key + _EPSILON, mean_in + epsilon)[..., 0]).exp()

    mean_source, source_after = means.average(source, state["mean_source"])
    competing_values = value * (source / mean_source)[..., None]
    y, values = means.read(query * inverse_inflow, key, competing_values, state["values"])
    names = ("mean_key", "mean_query", "mean_out", "mean_in")
    last_means = (part.clone() for pair in (after, normalized_means) for part in pair.unbind(1))
    new_state = dict(zip(names, last_means, strict=True))
    return y * sink.sigmoid(), new_state | {"mean_source": source_after, "values": values}


class _StepMeans:
    """Running means over an episode, for a single step. `_SegmentMeans` has the same interface.

    `count` `[batch, time, 1]` is the index n of each step in its episode, counted from 1.
    """

    def __init__(self, age: Int[Tensor, " batch"], dtype: torch.dtype) -> None:
        self.count = (age + 1).to(dtype)[:, None, None]

    def average(
        self, x: Float[Tensor, "batch time *some"], before: Float[Tensor, "batch *some"]
    ) -> tuple[Tensor, Tensor]:
        """Return the mean of `x` up to each step, and the mean up to the last step.

        `before` is the mean before the first step.
        """
        after = before + (x[:, 0] - before) / _append_axes(self.count[:, 0, 0], before)
        return after[:, None], after

    def read(
        self,
        query: Float[Tensor, "batch time heads width"],
        key: Float[Tensor, "batch time heads width"],
        value: Float[Tensor, "batch time heads width"],
        before: Float[Tensor, "batch heads width width"],
    ) -> tuple[Tensor, Tensor]:
        """Multiply every query by the mean of the matrices key value^T up to the query's step.

        Return one output per query, and the mean matrix up to the last step. `before` is the mean matrix
        before the first step.
        """
        _, after = self.average(key[..., None] * value[..., None, :], before)
        return query.transpose(1, 2).matmul(after).transpose(1, 2), after


class _SegmentMeans:
    """Running means for a segment of steps."""

    def __init__(self, clock: Clock, dtype: torch.dtype) -> None:
        self.start = clock.start
        self.count = (clock.step + 1).to(dtype)[..., None]
        self.in_first_episode = clock.episode == 0
        positions = torch.arange(1, clock.length + 1, device=self.in_first_episode.device)
        # How many of the n steps lie in this segment.
        self.local_count = torch.where(self.in_first_episode, positions, clock.step + 1).to(dtype)[..., None]

    def average(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        prior = torch.where(_append_axes(self.in_first_episode, x), before[:, None], 0)
        difference = (x - prior).flatten(2)[:, :, None]
        ones = torch.ones_like(difference[..., :1])
        sums, _ = self._sums(ones, ones, difference)
        means = prior + sums.view(x.shape) / _append_axes(self.count[..., 0], x)
        return means, means[:, -1].clone()

    def read(self, query: Tensor, key: Tensor, value: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        y, total = self._sums(query, key, value)
        prior = query.transpose(1, 2).matmul(before).transpose(1, 2)
        prior = torch.where(_append_axes(self.in_first_episode, prior), prior, 0)
        count, local = self.count[..., None], self.local_count[..., None]
        y = (y + (count - local) * prior) / count
        last = torch.where(_append_axes(self.in_first_episode[:, -1], before), before, 0)
        count, local = (_append_axes(number[:, -1, 0], last) for number in (self.count, self.local_count))
        return y, last + (total - local * last) / count

    def _sums(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply every query by the sum of the products key value^T up to the query's step.

        A sum runs over the steps of this segment that belong to the query's episode. Return the products, and
        the sum up to the last step.
        """
        log_decay = torch.zeros_like(key[..., 0])
        batch, _, heads, width = key.shape
        empty = key.new_zeros(batch, heads, width, value.shape[-1])
        arguments = (query, key, value, log_decay, torch.ones_like(log_decay), empty)
        return linear_memory(*arguments, rule="hebbian", start=self.start)


def _clamp_source(source: Tensor) -> Tensor:
    """Clamp `source` to [-1, 1], with a zero gradient from `1 - _MARGIN` upwards.

    Without this margin, rounding errors in values near 1 would decide whether the gradient is zero.
    """
    clamped_source = source.clamp(-1, 1)
    return torch.where(source < 1 - _MARGIN, clamped_source, clamped_source.detach())


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _append_axes(x: Tensor, other: Tensor) -> Tensor:
    """Return `x` with trailing axes of length one, so that it has the number of axes of `other`."""
    return x.view(*x.shape, *[1] * (other.ndim - x.ndim))
