"""Causal attention over a sliding window of an episode, with relative positions.

Step t of an episode attends to itself and to the `window` inputs before it, never across a `start`.
What a module needs of the past is `recent`, the last inputs, oldest first and right-aligned, and `age`, the
number of steps already taken in the episode: of `recent` only the last `age` entries count. For a segment
its clock tells both age and starts.

How scores are made and what becomes of them are `WindowOptions`; the default is Transformer-XL's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from scrubjay.kernels.derivatives import has_own_gradient
from scrubjay.memory.contract.base import LATER
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts import relative
from scrubjay.memory.parts.convolution import ShortConvolution
from scrubjay.memory.parts.sinusoids import sinusoids

_SMALLEST_BLOCK = 16
_MOST_BLOCKS = 8
"""Of a segment whose gradient is taken by hand."""
_AT_FIRST = 0.2
"""How much of what a short convolution is born with of earlier steps is left."""
_MOST_HEADS = 4
_MOST_TOLD = 1024
"""Up to which numbers of heads are named in an error: a width that somebody mistyped may be any number."""

Positions = Literal["xl", "music", "only"]
Activation = Literal["softmax", "sigmoid"]


def resolve_heads(dim: int, num_heads: int | None, narrowest: int = 1, name: str = "num_heads") -> int:
    """Return `num_heads`, by default as many, up to 4, as divide `dim` into heads `narrowest` wide or more.

    Raises ValueError, with the field's `name`, if the heads do not divide the width or are too narrow.
    """
    most = dim // narrowest
    if num_heads is None:
        return max(_divisors(dim, min(most, _MOST_HEADS)))
    if not 1 <= num_heads <= most or dim % num_heads:
        wide = f" into heads at least {narrowest} wide" if narrowest > 1 else ""
        choices = ", ".join(map(str, _divisors(dim, min(most, _MOST_TOLD))))
        raise ValueError(f"{name}={num_heads} does not divide dim={dim}{wide}; choose from {choices}")
    return num_heads


def _divisors(number: int, most: int) -> list[int]:
    return [divisor for divisor in range(1, most + 1) if number % divisor == 0]


@dataclass(frozen=True)
class WindowOptions:
    """How attention to a window weighs what it sees; the options of every memory that has one."""

    positions: Positions = field(default="xl", metadata=LATER, kw_only=True)
    """What scores know of distances: `xl` sinusoids and biases, `music` a learned vector each, `only` a
    learned score each and nothing of contents."""
    activation: Activation = field(default="softmax", metadata=LATER, kw_only=True)
    """What makes weights of scores: a `softmax`, or a `sigmoid` each, which may all be small."""
    convolution: int = field(default=1, metadata=LATER, kw_only=True)
    """Steps over which queries, keys and values are filtered before they meet; 1 filters nothing."""

    def check_options(self) -> None:
        """Raise ValueError on a choice that there is not, or that another one makes no sense of."""
        if self.convolution < 1:
            raise ValueError(f"convolution={self.convolution}: must be at least 1, which filters nothing")
        for name, choices in (("positions", Positions), ("activation", Activation)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}; choose from {', '.join(get_args(choices))}"
                )
        if self.positions == "only" and self.convolution > 1:
            raise ValueError(
                f"convolution={self.convolution}: with positions='only' there are no queries and keys to "
                "filter, and the weights of values are a filter already; leave it at 1"
            )


_USUAL = WindowOptions()


class WindowAttention(nn.Module):
    """Multi-head attention to the input itself and the `window` inputs before it.

    With `positions="xl"` a score is (q + u)·k + (q + v)·(W R_d) for distance d, over sqrt(head width), with
    biases u and v per head (Transformer-XL, Dai et al. 2019, arXiv 1901.02860, section 3.3); with "music" it
    is q·k + q·E_d, over the same, with a vector E_d per head (Music Transformer, Huang et al. 2018, arXiv
    1809.04281, section 3.4). With "only" it is a number per distance and head, at first 0, so that a causal
    filter of values is learned (Positional Attention, Back de Luca et al. 2025, arXiv 2410.01686; its
    positions are distances here). Raises ValueError on a bad size.

    With `activation="sigmoid"` a score s weighs sigmoid(s - log window), whatever the others are, and there
    is nothing that a step must attend to (Gu et al. 2025, arXiv 2410.10781).

    With `convolution=n` queries, keys and values are sums over n steps of their episode, each channel by its
    own weights (RCMHA, Sugiharto et al. 2023, arXiv 2308.03429), at first nearly the present step alone;
    `recent` has the `before` = window + n - 1 inputs that the keys and values of the window are made of.
    """

    distances: Tensor

    def __init__(self, dim: int, num_heads: int, window: int, options: WindowOptions = _USUAL) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window={window}: the window must hold at least 1 earlier input")
        if dim % 2:
            raise ValueError(f"dim={dim}: the width must be even, one sine and one cosine per frequency")
        options.check_options()
        self.window, self.positions = window, options.positions
        self.before = window + options.convolution - 1
        # The weights of a whole window sum to 1 where all scores are 0.
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
        # Farthest first, in the order of `recent`.
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
                self.filters.weight[1:] *= _AT_FIRST

    def forward(
        self,
        x: Float[Tensor, "batch time dim"],
        recent: Float[Tensor, "batch before dim"],
        clock: Clock,
        seen: list[relative.Block] | None = None,
    ) -> Float[Tensor, "batch time dim"]:
        """Return what every step of a segment reads, in one pass whose cost is linear in time.

        `seen` is what `blocks` made of the same clock, for layers of one window to share where they may.
        """
        weights = self._weights()
        if seen is None and self.has_own_gradient(x, recent):
            seen = self.blocks(clock)
        if seen is None:
            return self._by_torch(clock, x, recent, *weights)
        plain = functools.partial(self._by_torch, clock)
        return relative.read_segment(plain, seen, self.offset, x, recent, *weights)

    def has_own_gradient(self, x: Tensor, recent: Tensor) -> bool:
        """Return whether a segment of such inputs may have its gradient by hand."""
        plain = self.filters is not None or self.positions == "only"
        return len(x) > 0 and not plain and has_own_gradient(x, recent, self.value.weight)

    @property
    def folds(self) -> bool:
        """Whether its projections may be multiplied with each other beforehand."""
        return self.filters is None

    def blocks(self, clock: Clock) -> list[relative.Block] | None:
        """Return what queries of a segment see, None of one too long for a gradient by hand."""
        if not 1 < clock.length <= _MOST_BLOCKS * max(self.window, _SMALLEST_BLOCK):
            return None
        return relative.blocks(clock, self.window, _SMALLEST_BLOCK)

    def attended(
        self,
        x: Float[Tensor, "batch time dim"],
        recent: Float[Tensor, "batch before dim"],
        clock: Clock,
    ) -> Float[Tensor, "batch heads time distances"]:
        """Return how much every step of a segment attends to what is so far back, farthest first."""
        weights, _ = self._weighed(clock, x, recent, self._weights() or None)
        block = weights.shape[3]
        column = torch.arange(block, device=x.device)[:, None] + torch.arange(
            self.window + 1, device=x.device
        )
        weights = weights.gather(4, column.expand(*weights.shape[:4], -1))
        return weights.transpose(1, 2).flatten(2, 3)[:, :, : x.shape[1]]

    def _by_torch(self, clock: Clock, x: Tensor, recent: Tensor, *weights: Tensor) -> Tensor:
        """Return what is read by plain operations, of the weights given."""
        w = relative.Weights(*weights) if weights else None
        weighed, value = self._weighed(clock, x, recent, w)
        read = (weighed @ value).transpose(2, 3)
        output = self.output.weight if w is None else w.output
        return F.linear(read.flatten(3).flatten(1, 2)[:, : x.shape[1]], output)

    def _weighed(
        self, clock: Clock, x: Tensor, recent: Tensor, w: relative.Weights | None
    ) -> tuple[Float[Tensor, "batch count heads block keys"], Float[Tensor, "batch count heads keys width"]]:
        """Return the weights of what queries of blocks see, and its values; without `w` by distance alone."""
        batch, time, dim = x.shape
        window, heads = self.window, self.num_heads
        # Queries go in blocks; those of a block share the keys of the block and of the window before it.
        count = math.ceil(time / max(window, _SMALLEST_BLOCK))
        block = math.ceil(time / count)
        padding = count * block - time

        def by_head(inputs: Tensor) -> Tensor:
            inputs = windows(padded(inputs, padding), count, block, window)
            return inputs.unflatten(3, (-1, dim // heads)).transpose(2, 3)

        if w is None:
            value = by_head(F.linear(torch.cat([recent.to(x.dtype), x], dim=1), self.value.weight))
            scores = _skew(self.distance_scores[:, None].expand(-1, block, -1))
        else:
            query, both = self._projected(clock, x, recent, w)
            query = padded(query, padding).view(batch, count, block, heads, dim // heads)
            content_query, position_query = _biased(query.transpose(2, 3), w.content_bias, w.position_bias)
            key, value = by_head(both).chunk(2, dim=2)
            scores = content_query @ key.mT + _skew(position_query @ w.far)
        hidden = torch.zeros(1, dtype=scores.dtype, device=x.device)
        hidden = torch.where(self._visible(clock, count, block), hidden, -math.inf)
        scores = scores + hidden[:, :, None]
        return self.weigh(scores), value

    def _projected(
        self, clock: Clock, x: Tensor, recent: Tensor, w: relative.Weights
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch window_and_time 2*dim"]]:
        """Return queries, and keys beside values of the window, too."""
        if self.filters is None:
            context = torch.cat([recent.to(x.dtype), x], dim=1)
            return F.linear(x, w.query), F.linear(context, torch.cat([w.key, w.value]))
        # Of inputs that there were not, a filter would see what the window hides.
        there = torch.arange(self.before, device=x.device) >= self.before - clock.age[:, None]
        context = torch.cat([torch.where(there[..., None], recent, 0).to(x.dtype), x], dim=1)
        tail, rest = F.linear(context, torch.cat([w.query, w.key, w.value])).tensor_split(
            [self.before - self.window], dim=1
        )
        start = None if clock.start is None else F.pad(clock.start, (self.window, 0))
        filtered, _ = self.filters(rest, tail, start)
        dim = x.shape[2]
        return filtered[:, self.window :, :dim], filtered[..., dim:]

    def step(
        self,
        x: Float[Tensor, "batch dim"],
        recent: Float[Tensor, "batch before dim"],
        age: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch dim"]:
        """Return what one step reads."""
        weights, behind = self._step_weights(x, recent, age)
        read = _total(
            torch.einsum("bhw,hdw->bhd", weights @ inputs, weight)
            for inputs, weight in zip(behind, self._filtered(self.value, 2), strict=True)
        )
        return self.output(read.flatten(1))

    def step_weights(
        self,
        x: Float[Tensor, "batch dim"],
        recent: Float[Tensor, "batch before dim"],
        age: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch heads distances"]:
        """Return how much one step reads of what is so far back, farthest first."""
        return self._step_weights(x, recent, age)[0]

    def _step_weights(
        self, x: Tensor, recent: Tensor, age: Tensor
    ) -> tuple[Float[Tensor, "batch heads distances"], list[Float[Tensor, "batch distances dim"]]]:
        """Return the same, and what the window held so many steps ago, for each step of a filter."""
        index = torch.arange(self.before + 1, device=x.device)
        visible = index >= self.before - age[:, None]
        context = torch.cat([recent.to(x.dtype), x[:, None]], dim=1)
        context = torch.where(visible[..., None], context, 0)
        behind = [context[:, lag : lag + self.window + 1] for lag in range(self.before - self.window, -1, -1)]
        scores = self.distance_scores if self.positions == "only" else self._step_scores(behind)
        hidden = ~visible[:, None, self.before - self.window :]
        return self.weigh(scores.masked_fill(hidden, -math.inf)), behind

    def _step_scores(
        self, behind: list[Float[Tensor, "batch distances dim"]]
    ) -> Float[Tensor, "batch heads distances"]:
        query = _total(
            F.linear(inputs[:, -1], weight.flatten(0, 1))
            for inputs, weight in zip(behind, self._filtered(self.query, 0), strict=True)
        )
        query = query.unflatten(1, (self.num_heads, -1))
        scale = query.shape[-1] ** -0.5
        content_query, position_query = ((query + bias) * scale for bias in self.biases())
        # Keys and values of the window are never formed: their projections move to the one query and the one
        # read-out, which costs heads * window * dim instead of window * dim².
        scores = _total(
            torch.einsum("bhd,hdw->bhw", content_query, weight) @ inputs.transpose(1, 2)
            for inputs, weight in zip(behind, self._filtered(self.key, 1), strict=True)
        )
        return scores + (position_query[:, :, None] @ self.distance_keys())[:, :, 0]

    def _filtered(self, projection: nn.Linear, part: int) -> list[Float[Tensor, "heads head_dim dim"]]:
        """Return by heads what a projection weighs the present input by, and those before it."""
        weight = projection.weight.unflatten(0, (self.num_heads, -1))
        if self.filters is None:
            return [weight]
        filters = self.filters.weight.chunk(3, dim=1)[part].unflatten(1, (self.num_heads, -1))
        return [weight * each[..., None] for each in filters]

    def weigh(self, scores: Float[Tensor, "*batch keys"]) -> Float[Tensor, "*batch keys"]:
        """Return the weights of scores, in at least float32 on the way."""
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = torch.softmax(exact, dim=-1) if self.offset is None else torch.sigmoid(exact + self.offset)
        return weights.to(scores.dtype)

    def distance_keys(self) -> Float[Tensor, "heads head_dim distances"]:
        """Return what queries meet at each distance, farthest first."""
        if self.positions == "music":
            return self.embedding.mT
        return F.linear(self.distances, self.position.weight).T.unflatten(0, (self.num_heads, -1))

    def biases(self) -> tuple[Float[Tensor, "heads head_dim"], Float[Tensor, "heads head_dim"]]:
        """Return what is added to queries before they meet contents, and before they meet distances."""
        if self.positions == "music":
            none = self.embedding.new_zeros(self.num_heads, self.embedding.shape[2])
            return none, none
        return self.content_bias, self.position_bias

    def _weights(self) -> relative.Weights | tuple[()]:
        """Return the parameters of scores and values, none where scores are of distances alone."""
        if self.positions == "only":
            return ()
        query, key, value, output = (part.weight for part in (self.query, self.key, self.value, self.output))
        return relative.Weights(query, key, value, self.distance_keys(), output, *self.biases())

    def _visible(self, clock: Clock, count: int, block: int) -> Bool[Tensor, "batch count block keys"]:
        """Return which keys of its block each query may see: those of its episode, inside its window."""
        step = F.pad(clock.step, (0, count * block - clock.length)).unflatten(1, (count, block))
        key = torch.arange(-self.window, block, device=step.device)
        behind = torch.arange(block, device=step.device)[:, None] - key
        return (behind >= 0) & (behind <= step.clamp(max=self.window)[..., None])


def _total(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


def _biased(
    query: Float[Tensor, "*batch heads block head_dim"], *biases: Float[Tensor, "heads head_dim"]
) -> list[Tensor]:
    scale = query.shape[-1] ** -0.5
    return [(query + bias[:, None]) * scale for bias in biases]


def windows(
    x: Float[Tensor, "batch before_and_steps width"], count: int, block: int, before: int
) -> Float[Tensor, "batch count before_and_block width"]:
    """Return the steps of every block and those `before` it.

    Whole blocks are laid side by side, which is quicker to differentiate than an unfolding.
    """
    if count == 1:
        return x[:, None]
    each = -(-before // block)
    blocks = padded(x, each * block - before).unflatten(1, (each + count, block))
    beside = torch.cat([blocks[:, place : place + count] for place in range(each + 1)], dim=2)
    return beside[:, :, : before + block]


def padded(x: Float[Tensor, "batch time width"], steps: int) -> Tensor:
    """Return so many steps of zeros behind a segment."""
    # A padding by nothing would copy all the same.
    return F.pad(x, (0, 0, 0, steps)) if steps else x


def _skew(scores: Float[Tensor, "... block distances"]) -> Float[Tensor, "... block keys"]:
    """Shift row j of a block by j to the right: from distances to the keys of the block."""
    block, distances = scores.shape[-2:]
    keys = block + distances - 1
    flat = F.pad(scores, (0, block)).flatten(-2)
    return flat[..., : block * keys].unflatten(-1, (block, keys))
