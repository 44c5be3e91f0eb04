"""Causal sliding-window attention within an episode, with relative positions.

Step t of an episode attends to itself and to the `window` inputs before it, never across a `start`. The state
consists of `recent`, the last inputs, oldest first and right-aligned, and `age`, the number of steps of the
episode so far: only the last `age` entries of `recent` are valid. For a segment, a `Clock` holds age and
starts.

`WindowOptions` select the scores and the activation; the defaults are those of Transformer-XL.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from scrubjay.kernels.dispatch import is_traced
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.contract.stepper import load_fast_path
from scrubjay.memory.parts.layers import ShortConvolution, sinusoids

SMALLEST_BLOCK = 16
"""Smallest number of queries that share their keys, unless a segment is shorter."""
_INITIAL_FILTER_SCALE = 0.2
"""Factor of the initial weights of a short convolution for earlier steps."""
_MAX_DEFAULT_HEADS = 4
_MAX_LISTED_DIVISORS = 1024
"""Largest number of heads listed in an error message, since a mistyped width may be huge."""

Positions = Literal["xl", "music", "only"]
Activation = Literal["softmax", "sigmoid"]

_WIDEST_HEAD, _NARROWEST_HEAD = 64, 8


def resolve_heads(dim: int, num_heads: int | None, narrowest: int = 1, name: str = "num_heads") -> int:
    """Return `num_heads`; by default the largest divisor of `dim` up to 4 whose heads are wide enough.

    A head must be at least `narrowest` wide. Raises ValueError if the number of heads does not divide `dim`
    or if the heads are too narrow. `name` is the name of the config field for the message.
    """
    most = dim // narrowest
    if num_heads is None:
        return max(_divisors(dim, min(most, _MAX_DEFAULT_HEADS)))
    if not 1 <= num_heads <= most or dim % num_heads:
        wide = f" into heads at least {narrowest} wide" if narrowest > 1 else ""
        choices = ", ".join(map(str, _divisors(dim, min(most, _MAX_LISTED_DIVISORS))))
        raise ValueError(f"{name}={num_heads} does not divide dim={dim}{wide}; choose from {choices}")
    return num_heads


def count_heads(dim: int, num_heads: int | None, widest: int = _WIDEST_HEAD, name: str = "dim") -> int:
    """Return `num_heads`, or the default number of heads if it is None.

    The default is the smallest number whose heads are 8 to `widest` wide, or 1 if no number has such heads.

    Raises ValueError if `num_heads` does not divide `dim`. `name` is the name of `dim` for the message.
    """
    if num_heads is not None:
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide {name}={dim}; choose a divisor of {dim}")
        return num_heads
    widths = range(min(widest, dim), _NARROWEST_HEAD - 1, -1)
    return next((dim // width for width in widths if dim % width == 0), 1)


def _divisors(number: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, most + 1) if number % divisor == 0]


@dataclass(frozen=True)
class WindowOptions:
    """Options of the window attention, shared by all memories that have one."""

    positions: Positions = field(default="xl", kw_only=True)
    """Relative positions in scores: `xl` uses sinusoids and biases, `music` a learned vector per distance,
    `only` a learned score per distance without content scores."""
    activation: Activation = field(default="softmax", kw_only=True)
    """Function from scores to weights: `softmax`, or an independent `sigmoid` per score."""
    convolution: int = field(default=1, kw_only=True)
    """Width of a causal convolution of queries, keys and values; 1 disables it."""

    def check_options(self) -> None:
        """Raise ValueError on an unknown choice or an invalid combination of options."""
        if self.convolution < 1:
            raise ValueError(f"convolution={self.convolution}: must be at least 1; 1 means no convolution")
        for name, choices in (("positions", Positions), ("activation", Activation)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}; choose from {', '.join(get_args(choices))}"
                )
        if self.positions == "only" and self.convolution > 1:
            raise ValueError(
                f"convolution={self.convolution}: positions='only' has no queries and keys to filter; use "
                "convolution=1"
            )


_DEFAULT_OPTIONS = WindowOptions()


class WindowWeights(NamedTuple):
    """Parameters of `WindowAttention`, in the order in which autograd functions take them."""

    query: Float[Tensor, "dim dim"]
    key: Float[Tensor, "dim dim"]
    value: Float[Tensor, "dim dim"]
    distance_keys: Float[Tensor, "heads head_dim distances"]
    """Key vector of each distance between query and key, from `window` steps down to 0."""
    output: Float[Tensor, "dim dim"]
    content_bias: Float[Tensor, "heads head_dim"]
    position_bias: Float[Tensor, "heads head_dim"]


class WindowAttention(nn.Module):
    """Multi-head attention to the present input and the `window` inputs before it.

    With `positions="xl"` the score of query q and key k at distance d is ((q + u)·k + (q + v)·(W R_d)) /
    sqrt(head width). R_d is a sinusoid of d, W is a learned matrix, and u and v are learned biases of the
    head (Transformer-XL, Dai et al. 2019, arXiv 1901.02860, section 3.3). With "music" the score is (q·k +
    q·E_d) / sqrt(head width), with a learned vector E_d per distance and head (Music Transformer, Huang et
    al. 2018, arXiv 1809.04281, section 3.4). With "only" the score is a learned number per distance and head,
    initially 0. The layer then learns a causal filter of values (Positional Attention, Back de Luca et al.
    2025, arXiv 2410.01686, here with distances in place of positions). Raises ValueError if a size or an
    option is invalid.

    With `activation="sigmoid"` the weight of a score s is sigmoid(s - log(window)). The weight does not
    depend on other scores, so a step may attend to nothing (Gu et al. 2025, arXiv 2410.10781).

    With `convolution=n` a causal convolution per channel filters queries, keys and values over n steps of the
    episode (RCMHA, Sugiharto et al. 2023, arXiv 2308.03429). Initially the weight of the present step is the
    largest. The state `recent` then holds `before` = window + n - 1 inputs, from which the keys and values of
    the window are computed.
    """

    distances: Tensor

    def __init__(
        self, dim: int, num_heads: int, window: int, options: WindowOptions = _DEFAULT_OPTIONS
    ) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window={window}: the window must hold at least 1 earlier input")
        if dim % 2:
            raise ValueError(f"dim={dim}: the width must be even, for a sine and a cosine per frequency")
        options.check_options()
        self.window, self.positions = window, options.positions
        self.before = window + options.convolution - 1
        # With all scores 0, the weights of a full window sum to 1.
        self.offset = -math.log(window) if options.activation == "sigmoid" else None
        self.num_heads = resolve_heads(dim, num_heads)
        width = dim // self.num_heads
        if self.positions != "only":
            self.query = nn.Linear(dim, dim, bias=False)
            self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        if self.positions == "xl":
            self.position = nn.Linear(dim, dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        # Distances are in the order of `recent`, farthest first.
        if self.positions == "xl":
            self.content_bias = nn.Parameter(torch.zeros(self.num_heads, width))
            self.position_bias = nn.Parameter(torch.zeros(self.num_heads, width))
            distances = sinusoids(torch.arange(window + 1), dim).to(torch.get_default_dtype())
            self.register_buffer("distances", distances.flip(0), persistent=False)
        elif self.positions == "only":
            self.distance_scores = nn.Parameter(torch.zeros(self.num_heads, window + 1))
        else:
            self.embedding = nn.Parameter(torch.randn(self.num_heads, window + 1, width) * width**-0.5)
        self.filters = None
        if options.convolution > 1:
            self.filters = ShortConvolution(3 * dim, options.convolution)
            with torch.no_grad():
                self.filters.weight[1:] *= _INITIAL_FILTER_SCALE

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        recent: Float[Tensor, "batch before dim"],
        clock: Clock,
        blocks: list[Any] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """Return the attention output of every step of a segment. The cost is linear in the number of steps.

        `blocks` is the result of `build_blocks` for this clock. Layers with the same window can share it.
        """
        weights = self._weights()
        if blocks is None and self.supports_custom_backward(x, recent):
            blocks = self.build_blocks(clock)
        if blocks is None:
            return self._run_torch(clock, x, recent, *weights)
        plain = functools.partial(self._run_torch, clock)
        return self._reader().read(plain, blocks, x, recent, weights)

    def supports_custom_backward(self, x: Tensor, recent: Tensor) -> bool:
        """Check that a segment of these inputs supports the custom backward pass."""
        plain = self.filters is not None or self.positions == "only" or is_traced()
        return not plain and self._reader().supports(x, recent, self.value.weight)

    @property
    def is_foldable(self) -> bool:
        """True if the projections may be multiplied with each other in advance."""
        return self.filters is None

    def build_blocks(self, clock: Clock) -> list[Any] | None:
        """Return the query blocks of a segment; None if its length rules out the custom backward pass."""
        return self._reader().build_blocks(clock)

    def _reader(self) -> Any:
        """Return the fast path for segments."""
        return load_fast_path("window segment")(self.window, self.offset)

    def segment_weights(
        self,
        x: Float[Tensor, "batch time dim"],
        recent: Float[Tensor, "batch before dim"],
        clock: Clock,
    ) -> Float[Tensor, "batch heads time distances"]:
        """Return the attention weights of every step of a segment by distance, farthest first."""
        weights, _ = self._weigh_segment(clock, x, recent, self._weights() or None)
        block = weights.shape[3]
        column = torch.arange(block, device=x.device)[:, None] + torch.arange(
            self.window + 1, device=x.device
        )
        weights = weights.gather(4, column.expand(*weights.shape[:4], -1))
        return weights.transpose(1, 2).flatten(2, 3)[:, :, : x.shape[1]]

    def _run_torch(self, clock: Clock, x: Tensor, recent: Tensor, *weights: Tensor) -> Tensor:
        """Return the attention output, computed by differentiable torch operations."""
        w = WindowWeights(*weights) if weights else None
        attention_weights, value = self._weigh_segment(clock, x, recent, w)
        read = (attention_weights @ value).transpose(2, 3)
        output = self.output.weight if w is None else w.output
        return F.linear(read.flatten(3).flatten(1, 2)[:, : x.shape[1]], output)

    def _weigh_segment(
        self, clock: Clock, x: Tensor, recent: Tensor, w: WindowWeights | None
    ) -> tuple[Float[Tensor, "batch count heads block keys"], Float[Tensor, "batch count heads keys width"]]:
        """Return the attention weights of the queries of each block, and the values of the block's keys.

        `w` contains the parameters of the attention. If `w` is None, the scores depend only on distance.
        """
        batch, time, dim = x.shape
        window, heads = self.window, self.num_heads
        # Queries are processed in blocks that share the keys of the block and of the window before it.
        count = math.ceil(time / max(window, SMALLEST_BLOCK))
        block = math.ceil(time / count)
        padding = count * block - time

        def by_head(inputs: Tensor) -> Tensor:
            inputs = unfold_windows(pad_steps(inputs, padding), count, block, window)
            return inputs.unflatten(3, (-1, dim // heads)).transpose(2, 3)

        if w is None:
            value = by_head(F.linear(torch.cat([recent.to(x.dtype), x], dim=1), self.value.weight))
            scores = _skew(self.distance_scores[:, None].expand(-1, block, -1))
        else:
            query, both = self._project(clock, x, recent, w)
            query = pad_steps(query, padding).view(batch, count, block, heads, dim // heads)
            content_query, position_query = _add_biases(
                query.transpose(2, 3), w.content_bias, w.position_bias
            )
            key, value = by_head(both).chunk(2, dim=2)
            scores = content_query @ key.mT + _skew(position_query @ w.distance_keys)
        mask = torch.zeros(1, dtype=scores.dtype, device=x.device)
        mask = torch.where(self._visible(clock, count, block), mask, -math.inf)
        scores = scores + mask[:, :, None]
        return self.weigh(scores), value

    def _project(
        self, clock: Clock, x: Tensor, recent: Tensor, w: WindowWeights
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch window_and_time 2*dim"]]:
        """Return queries of the segment, and concatenated keys and values of window and segment."""
        if self.filters is None:
            context = torch.cat([recent.to(x.dtype), x], dim=1)
            return F.linear(x, w.query), F.linear(context, torch.cat([w.key, w.value]))
        # Inputs before the episode are zeroed, since the filter would read what the mask hides later.
        in_episode = torch.arange(self.before, device=x.device) >= self.before - clock.age[:, None]
        context = torch.cat([torch.where(in_episode[..., None], recent, 0).to(x.dtype), x], dim=1)
        tail, rest = F.linear(context, torch.cat([w.query, w.key, w.value])).tensor_split(
            [self.before - self.window], dim=1
        )
        start = None if clock.start is None else F.pad(clock.start, (self.window, 0))
        projections, _ = self.filters(rest, tail, start)
        dim = x.shape[2]
        return projections[:, self.window :, :dim], projections[..., dim:]

    def step(
        self,
        x: Float[Tensor, "batch dim"],
        recent: Float[Tensor, "batch before dim"],
        age: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the attention output of one step."""
        weights, behind = self._step_weights(x, recent, age)
        read = _total(
            torch.einsum("bhw,hdw->bhd", weights @ inputs, weight)
            for inputs, weight in zip(behind, self._filter_weights(self.value, 2), strict=True)
        )
        return self.output(read.flatten(1))

    def step_weights(
        self,
        x: Float[Tensor, "batch dim"],
        recent: Float[Tensor, "batch before dim"],
        age: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch heads distances"]:
        """Return the attention weights of one step by distance, farthest first."""
        return self._step_weights(x, recent, age)[0]

    def _step_weights(
        self, x: Tensor, recent: Tensor, age: Tensor
    ) -> tuple[Float[Tensor, "batch heads distances"], list[Float[Tensor, "batch distances dim"]]]:
        """Return the attention weights of one step, and a list of inputs with one item per convolution lag.

        The item of a lag contains the inputs of the window and of the step, each from `lag` steps earlier.
        """
        index = torch.arange(self.before + 1, device=x.device)
        visible = index >= self.before - age[:, None]
        context = torch.cat([recent.to(x.dtype), x[:, None]], dim=1)
        context = torch.where(visible[..., None], context, 0)
        behind = [context[:, lag : lag + self.window + 1] for lag in range(self.before - self.window, -1, -1)]
        scores = self.distance_scores if self.positions == "only" else self._step_scores(behind)
        mask = ~visible[:, None, self.before - self.window :]
        return self.weigh(scores.masked_fill(mask, -math.inf)), behind

    def _step_scores(
        self, behind: list[Float[Tensor, "batch distances dim"]]
    ) -> Float[Tensor, "batch heads distances"]:
        query = _total(
            F.linear(inputs[:, -1], weight.flatten(0, 1))
            for inputs, weight in zip(behind, self._filter_weights(self.query, 0), strict=True)
        )
        query = query.unflatten(1, (self.num_heads, -1))
        scale = query.shape[-1] ** -0.5
        content_query, position_query = ((query + bias) * scale for bias in self.biases())
        # Keys and values of the window are not computed. Their projections are applied to the query and the
        # read-out, which costs heads * window * dim instead of window * dim².
        scores = _total(
            torch.einsum("bhd,hdw->bhw", content_query, weight) @ inputs.transpose(1, 2)
            for inputs, weight in zip(behind, self._filter_weights(self.key, 1), strict=True)
        )
        return scores + (position_query[:, :, None] @ self.distance_keys())[:, :, 0]

    def _filter_weights(self, projection: nn.Linear, part: int) -> list[Float[Tensor, "heads head_dim dim"]]:
        """Return the projection weights by head for each lag of the convolution, from lag 0 on."""
        weight = projection.weight.unflatten(0, (self.num_heads, -1))
        if self.filters is None:
            return [weight]
        filters = self.filters.weight.chunk(3, dim=1)[part].unflatten(1, (self.num_heads, -1))
        return [weight * each[..., None] for each in filters]

    def weigh(self, scores: Float[Tensor, "*batch keys"]) -> Float[Tensor, "*batch keys"]:
        """Return the attention weights of scores, computed in at least float32."""
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = torch.softmax(exact, dim=-1) if self.offset is None else torch.sigmoid(exact + self.offset)
        return weights.to(scores.dtype)

    def distance_keys(self) -> Float[Tensor, "heads head_dim distances"]:
        """Return the key vector of each distance between query and key, the longest distance first."""
        if self.positions == "music":
            return self.embedding.mT
        return F.linear(self.distances, self.position.weight).T.unflatten(0, (self.num_heads, -1))

    def biases(self) -> tuple[Float[Tensor, "heads head_dim"], Float[Tensor, "heads head_dim"]]:
        """Return the query biases for content scores and for distance scores."""
        if self.positions == "music":
            none = self.embedding.new_zeros(self.num_heads, self.embedding.shape[2])
            return none, none
        return self.content_bias, self.position_bias

    def _weights(self) -> WindowWeights | tuple[()]:
        """Return the parameters of the attention, or () if scores depend on distances alone."""
        if self.positions == "only":
            return ()
        query, key, value, output = (part.weight for part in (self.query, self.key, self.value, self.output))
        return WindowWeights(query, key, value, self.distance_keys(), output, *self.biases())

    def _visible(self, clock: Clock, count: int, block: int) -> Bool[Tensor, "batch count block keys"]:
        """Return for each query a mask of its block's keys: True inside its episode and its window."""
        step = F.pad(clock.step, (0, count * block - clock.length)).unflatten(1, (count, block))
        key = torch.arange(-self.window, block, device=step.device)
        behind = torch.arange(block, device=step.device)[:, None] - key
        return (behind >= 0) & (behind <= step.clamp(max=self.window)[..., None])


def _total(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


def _add_biases(
    query: Float[Tensor, "*batch heads block head_dim"], *biases: Float[Tensor, "heads head_dim"]
) -> list[Tensor]:
    scale = query.shape[-1] ** -0.5
    return [(query + bias[:, None]) * scale for bias in biases]


def unfold_windows(
    x: Float[Tensor, "batch before_and_steps width"], count: int, block: int, before: int
) -> Float[Tensor, "batch count before_and_block width"]:
    """Return the steps of every block, preceded by the `before` earlier steps.

    The function concatenates shifted blocks instead of calling `Tensor.unfold`, whose backward pass is
    slower.
    """
    if count == 1:
        return x[:, None]
    each = -(-before // block)
    blocks = pad_steps(x, each * block - before).unflatten(1, (each + count, block))
    beside = torch.cat([blocks[:, place : place + count] for place in range(each + 1)], dim=2)
    return beside[:, :, : before + block]


def pad_steps(x: Float[Tensor, "batch time width"], steps: int) -> Tensor:
    """Append `steps` steps of zeros to a segment."""
    # F.pad by 0 would still copy.
    return F.pad(x, (0, 0, 0, steps)) if steps else x


def _skew(scores: Float[Tensor, "... block distances"]) -> Float[Tensor, "... block keys"]:
    """Align scores by distance with the keys of the block. Keys without a distance get score 0.

    The last axis of `scores` is the distance, farthest first. Row j is shifted to the right by j columns.
    """
    block, distances = scores.shape[-2:]
    keys = block + distances - 1
    flat = F.pad(scores, (0, block)).flatten(-2)
    return flat[..., : block * keys].unflatten(-1, (block, keys))
