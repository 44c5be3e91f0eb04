"""The network inside a neural memory, and the choices that make a learning rule of it.

Each choice is one small function, so that another member of the family (Behrouz et al. 2025, "It's All
Connected", arXiv 2504.13173) is another function: the memory's net (`forward_pass`, `backward_pass`), the map
from its error to the gradient at its output (`residual_gradient`), how much of a token's gradient is taken
(`clipped_step`), how steps add up (`rule`, the closed form of retention and momentum inside a chunk), and
what weights are of what has added up (`mirrored`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.neural.bias import Bias, Huber, Power, Squared
from scrubjay.kernels.neural.mirror import Identity, Mirror

# Nothing is left of what was multiplied by e^-80; below this, sums of logarithms would lose their digits.
LEAST_LOG = -80.0
NEGLIGIBLE = 1e-30
NORM_EPSILON = 1e-5
_SQUARED, _IDENTITY = Squared(), Identity()


class NeuralState(NamedTuple):
    """What a memory has learned, all layers of a head in one row of P numbers."""

    delta: Float[Tensor, "B H P"]
    momentum: Float[Tensor, "B H P"]
    anchor: Float[Tensor, "B H P"]


class Gates(NamedTuple):
    """How a token is learned, per head: its step, and logarithms of what momentum and weights keep.

    Logarithms are at most 0.
    """

    step_size: Float[Tensor, "B T H"]
    log_momentum: Float[Tensor, "B T H"]
    log_retention: Float[Tensor, "B T H"]


class Problem(NamedTuple):
    """The arguments of `neural_memory`, checked, in one dtype."""

    query: Float[Tensor, "B T H D"]
    key: Float[Tensor, "B T H D"]
    value: Float[Tensor, "B T H D"]
    gates: Gates
    weights: Sequence[Float[Tensor, "H In Out"]]
    state: NeuralState
    shape: NetworkShape
    chunk_size: int
    valid: Bool[Tensor, "B T"] | None
    fresh: Bool[Tensor, "B N"] | None
    cut: Bool[Tensor, "B N"] | None
    read_before_write: bool
    threshold: Float[Tensor, "B T H"] | None = None


@dataclass(frozen=True)
class Learning:
    """What tells members of the family apart; by default Titans'.

    Raises ValueError on an unknown activation.
    """

    activation: Literal["silu", "gelu"] = "silu"
    """Between the layers."""
    bias: Bias = _SQUARED
    """What is minimised."""
    mirror: Mirror = _IDENTITY
    """What weights are of what has added up."""

    def __post_init__(self) -> None:
        if self.activation not in ("silu", "gelu"):
            raise ValueError(f"activation={self.activation!r}; choose from silu, gelu")

    @property
    def has_threshold(self) -> bool:
        """Whether tokens have a threshold."""
        return isinstance(self.bias, Huber)


TITANS = Learning()


@dataclass(frozen=True)
class NetworkShape:
    """Widths `(in, out)` of the layers, what is done to the output, if steps may be clipped, how it learns.

    Raises ValueError if layers do not chain.
    """

    layers: tuple[tuple[int, int], ...]
    residual: bool
    norm: bool
    clip: bool = True
    learning: Learning = TITANS

    @classmethod
    def of(
        cls,
        weights: Sequence[Tensor],
        residual: bool,
        norm: bool,
        clip: bool = True,
        learning: Learning = TITANS,
    ) -> NetworkShape:
        """Return the shape of a network of these weights `[heads, in, out]`."""
        layers = tuple((weight.shape[-2], weight.shape[-1]) for weight in weights)
        if not layers or any(a[1] != b[0] for a, b in itertools.pairwise(layers)):
            raise ValueError(f"weights of widths {layers} do not make a network")
        return cls(layers, residual, norm, clip, learning)

    @property
    def size(self) -> int:
        """Weights of one head."""
        return sum(a * b for a, b in self.layers)


def unpack(flat: Float[Tensor, "*heads P"], shape: NetworkShape) -> list[Tensor]:
    """Return views `[*heads, in, out]` of the layers in a packed row."""
    views, begin = [], 0
    for a, b in shape.layers:
        views.append(flat[..., begin : begin + a * b].unflatten(-1, (a, b)))
        begin += a * b
    return views


def pack(layers: Sequence[Float[Tensor, "*heads _In _Out"]]) -> Float[Tensor, "*heads P"]:
    """Return the layers as packed rows; the inverse of `unpack`."""
    flat = [layer.flatten(-2) for layer in layers]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)


def forward_pass(
    x: Float[Tensor, "*heads C D"], weights: Sequence[Float[Tensor, "*heads _In _Out"]], shape: NetworkShape
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return every layer's input and its product with the weights, and the network's output."""
    inputs, products = [x], [x @ weights[0]]
    for weight in weights[1:]:
        inputs.append(activated(products[-1], shape))
        products.append(inputs[-1] @ weight)
    return inputs, products, finish(x, products[-1], shape)


def activated(product: Tensor, shape: NetworkShape) -> Tensor:
    """Return a layer's input from the product before it."""
    return functional.silu(product) if shape.learning.activation == "silu" else functional.gelu(product)


def finish(x: Tensor, product: Tensor, shape: NetworkShape) -> Tensor:
    """Return the network's output from its input and the last layer's product."""
    if shape.norm:
        product = functional.layer_norm(product, product.shape[-1:], eps=NORM_EPSILON)
    return x + product if shape.residual else product


def backward_pass(
    gradient: Float[Tensor, "*heads C D"],
    products: Sequence[Tensor],
    weights: Sequence[Float[Tensor, "*heads _In _Out"]],
    shape: NetworkShape,
) -> list[Tensor]:
    """Return the gradient at every layer's product, from that at the output."""
    if shape.norm:
        last = products[-1]
        centred = last - last.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + NORM_EPSILON).sqrt()
        unit = centred / deviation
        along = (gradient * unit).mean(-1, keepdim=True)
        gradient = (gradient - gradient.mean(-1, keepdim=True) - unit * along) / deviation
    deltas = [gradient]
    for layer in range(len(weights) - 1, 0, -1):
        slope = _slope(products[layer - 1], shape)
        deltas.append((deltas[-1] @ weights[layer].transpose(-1, -2)) * slope)
    return deltas[::-1]


def _slope(product: Tensor, shape: NetworkShape) -> Tensor:
    return silu_slope(product) if shape.learning.activation == "silu" else gelu_slope(product)


def silu_slope(x: Tensor) -> Tensor:
    """Return the derivative of SiLU."""
    gate = torch.sigmoid(x)
    return torch.addcmul(gate, x * gate, 1 - gate)


def gelu_slope(x: Tensor) -> Tensor:
    """Return the derivative of GELU."""
    below = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    return torch.addcmul(below, x, torch.exp(-0.5 * x * x), value=1 / math.sqrt(2 * math.pi))


def residual_gradient(
    error: Float[Tensor, "*heads C D"], threshold: Float[Tensor, "*heads C 1"] | None, shape: NetworkShape
) -> Float[Tensor, "*heads C D"]:
    """Return the gradient at the output of what is minimised, from what is said less what should be."""
    return shape.learning.bias.gradient(error, threshold)


def mirrored(
    weights: Sequence[Float[Tensor, "... _In _Out"]],
    learned: Sequence[Float[Tensor, "... _In _Out"]],
    shape: NetworkShape,
) -> list[Tensor]:
    """Return the weights of a network from those it was born with and what it has learned, both duals."""
    mirror = shape.learning.mirror
    return [mirror.weights(w + x) for w, x in zip(weights, learned, strict=True)]


def tangent(
    weights: Sequence[Tensor], anchored: Sequence[Tensor], anchor: Sequence[Tensor], shape: NetworkShape
) -> Sequence[Tensor]:
    """Return what added to a delta makes a network's weights inside the anchor's chunk.

    Args:
        weights: Those it was born with.
        anchored: Those at the anchor, `mirrored`.
        anchor: What it had learned there.
        shape: Sizes of the network.
    """
    if shape.learning.mirror == _IDENTITY:
        return weights
    return [w - a for w, a in zip(anchored, anchor, strict=True)]


def is_clipped(shape: NetworkShape) -> bool:
    """Return whether steps need a clip: that of a matrix and a key of at most unit length never does.

    Unless its errors are raised to a power, or what moves is not the matrix itself.
    """
    learning = shape.learning
    untamed = isinstance(learning.bias, Power) or learning.mirror != _IDENTITY
    return shape.clip and (len(shape.layers) > 1 or shape.norm or untamed)


def clipped_step(
    step_size: Float[Tensor, "*heads C 1"],
    share: Float[Tensor, "*heads C 1"],
    error: Tensor,
    gradient: Tensor,
    inputs: Sequence[Tensor],
    deltas: Sequence[Tensor],
    shape: NetworkShape,
) -> tuple[Float[Tensor, "*heads C 1"], Float[Tensor, "*heads C 1"]]:
    """Return the step that is taken and the squared length of the token's gradient.

    Args:
        step_size: The step that was asked for.
        share: A step may remove no more than this part of the token's error, to first order.
        error: What the network says, less what it should.
        gradient: Of the loss by what the network says.
        inputs: Of each layer.
        deltas: Of each layer: the gradient by what it says before its activation.
        shape: Sizes of the network.
    """
    squared = torch.zeros_like(step_size)
    for x, delta in zip(inputs, deltas, strict=True):
        squared = squared + row_inner(x, x) * row_inner(delta, delta)
    if not is_clipped(shape):
        return step_size, squared
    pull = row_inner(error, gradient)
    most = share * pull / torch.where(squared > 0, squared, 1)
    return torch.where(step_size * squared > share * pull, most, step_size), squared


def error_share(log_momentum: Tensor, chunk_size: int) -> Tensor:
    """Return the part of its error a token may remove: momentum repeats a step, tokens may be alike."""
    return -torch.expm1(log_momentum) / chunk_size


def row_inner(a: Float[Tensor, "*heads C D"], b: Tensor) -> Float[Tensor, "*heads C 1"]:
    """Return the inner product of every token's two vectors."""
    return (a * b).sum(-1, keepdim=True)


class Rule(NamedTuple):
    """How a chunk's tokens add up, row t as delta and momentum stand after token t; see `rule`."""

    retained: Float[Tensor, "*heads C"]
    """b: what is left of the chunk's first delta."""
    built: Float[Tensor, "*heads C"]
    """f: how much of the chunk's first momentum is in delta."""
    kept: Float[Tensor, "*heads C"]
    """What is left of the chunk's first momentum."""
    mixed: Float[Tensor, "*heads C C"]
    """G: how much of token j's step is in delta."""
    trace: Float[Tensor, "*heads C"]
    """The last row of E: how much of token j's step is in the momentum at the chunk's end."""


class Decays(NamedTuple):
    """What momentum and retention leave from each token of a chunk to each later one."""

    decay: Float[Tensor, "*heads C C"]
    """D: of delta; zero from tokens that are skipped."""
    trace: Float[Tensor, "*heads C C"]
    """E: of momentum."""
    retained: Float[Tensor, "*heads C"]
    """From the chunk's beginning, of delta..."""
    kept: Float[Tensor, "*heads C"]
    """...and of momentum."""


def decays_of(
    log_retention: Float[Tensor, "*heads C"],
    log_momentum: Float[Tensor, "*heads C"],
    valid: Bool[Tensor, "*heads C"] | None,
) -> Decays:
    """Return what is left of what. Tokens not `valid` must have logarithms of 0."""
    # In float64: a difference of sums that reach -80 C keeps too few digits of a float32.
    logs = torch.stack([log_retention, log_momentum]).clamp(min=LEAST_LOG).double().cumsum(-1)
    size, dtype = logs.shape[-1], log_retention.dtype
    future = torch.full((size, size), -torch.inf, dtype=dtype, device=logs.device).triu(1)
    decay, trace = ((logs[..., :, None] - logs[..., None, :]).to(dtype) + future).exp().unbind(0)
    retained, kept = logs.to(dtype).exp().unbind(0)
    if valid is not None:
        # A skipped token adds no momentum to delta, though it keeps all of it.
        decay = decay * valid[..., None, :].to(dtype)
    return Decays(decay, trace, retained, kept)


def rule(
    log_retention: Float[Tensor, "*heads C"],
    log_momentum: Float[Tensor, "*heads C"],
    valid: Bool[Tensor, "*heads C"] | None,
) -> Rule:
    """Return the closed form of retention and momentum. Tokens not `valid` must have logarithms of 0."""
    decay, trace, retained, kept = decays_of(log_retention, log_momentum, valid)
    built = (decay @ kept[..., None])[..., 0]
    return Rule(retained, built, kept, decay @ trace, trace[..., -1, :])


def flushed(x: Tensor) -> Tensor:
    """Return `x` with zeros for what is too small to matter: denormal numbers are ten times slower.

    The gradient is that of the identity.
    """
    flat = x.detach()
    correction = torch.where(flat.abs() < NEGLIGIBLE, flat, 0)
    return x - correction
