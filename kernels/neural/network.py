"""Network inside a neural memory, and the parts of its learning rule.

Each part is one small function. Another member of the family (Behrouz et al. 2025, "It's All Connected",
arXiv 2504.13173) replaces one of these functions:

- `forward_pass` and `backward_pass`: the network
- `residual_gradient`: the gradient of the loss at the network's output
- `clip_step`: the clip of a step
- `factors.Factors`: the accumulation of steps inside a chunk, as closed form of retention and momentum
- `mirror_weights`: the map from the accumulated dual to the weights
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

from scrubjay.kernels.neural.bias import Bias, Huber, Power, SquaredError
from scrubjay.kernels.neural.mirror_map import Identity, Mirror

# Decays below e^-80 count as e^-80; sums of lower logarithms would lose precision.
LEAST_LOG = -80.0
NEGLIGIBLE = 1e-30
NORM_EPSILON = 1e-5
_SQUARED, _IDENTITY = SquaredError(), Identity()


class NeuralState(NamedTuple):
    """State of a neural memory. The last dim holds the P weights of all layers of a head."""

    delta: Float[Tensor, "B H P"]
    """Difference from the initial weights."""
    momentum: Float[Tensor, "B H P"]
    """Accumulated momentum."""
    anchor: Float[Tensor, "B H P"]
    """Delta at which gradients are computed."""


class Gates(NamedTuple):
    """Gates of each token and head: the step size, and the log decays of momentum and weights."""

    step_size: Float[Tensor, "B T H"]
    """Step size of the gradient step."""
    log_momentum: Float[Tensor, "B T H"]
    """Log decay of the momentum, at most 0."""
    log_retention: Float[Tensor, "B T H"]
    """Log decay of the weights, at most 0."""


class Problem(NamedTuple):
    """Arguments of `neural_memory`, validated and in one dtype."""

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
    """Learning rule of a neural memory of the Miras family, by default the rule of Titans.

    Raises:
        ValueError: On an unknown activation.
    """

    activation: Literal["silu", "gelu"] = "silu"
    """Activation between the layers."""
    bias: Bias = _SQUARED
    """Attentional bias: the loss that the memory minimizes."""
    mirror: Mirror = _IDENTITY
    """Map from the accumulated dual to the weights."""

    def __post_init__(self) -> None:
        if self.activation not in ("silu", "gelu"):
            raise ValueError(f"activation={self.activation!r}; choose from silu, gelu")

    @property
    def has_threshold(self) -> bool:
        """True if the loss needs a threshold for each token."""
        return isinstance(self.bias, Huber)


TITANS = Learning()


@dataclass(frozen=True)
class NetworkShape:
    """Widths `(in, out)` of the layers, the options of the output, and the learning rule.

    Raises ValueError if the widths of consecutive layers do not match.
    """

    layers: tuple[tuple[int, int], ...]
    residual: bool
    norm: bool
    clip: bool = True
    learning: Learning = TITANS

    @classmethod
    def from_weights(
        cls,
        weights: Sequence[Tensor],
        residual: bool,
        norm: bool,
        clip: bool = True,
        learning: Learning = TITANS,
    ) -> NetworkShape:
        """Return the shape of a network with the weights `[heads, in, out]`."""
        layers = tuple((weight.shape[-2], weight.shape[-1]) for weight in weights)
        if not layers or any(a[1] != b[0] for a, b in itertools.pairwise(layers)):
            raise ValueError(
                f"weights of widths {layers} do not form a network; each output width must equal the next "
                "input width"
            )
        return cls(layers, residual, norm, clip, learning)

    @property
    def size(self) -> int:
        """Number of weights of one head."""
        return sum(a * b for a, b in self.layers)


def unpack(flat: Float[Tensor, "*heads P"], shape: NetworkShape) -> list[Tensor]:
    """Return the weight matrices of all layers, `[*heads, in, out]`, as views of the packed weights."""
    views, begin = [], 0
    for a, b in shape.layers:
        views.append(flat[..., begin : begin + a * b].unflatten(-1, (a, b)))
        begin += a * b
    return views


def pack(layers: Sequence[Float[Tensor, "*heads _In _Out"]]) -> Float[Tensor, "*heads P"]:
    """Return the weight matrices of all layers in one packed dim; the inverse of `unpack`."""
    flat = [layer.flatten(-2) for layer in layers]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)


def forward_pass(
    x: Float[Tensor, "*heads C D"], weights: Sequence[Float[Tensor, "*heads _In _Out"]], shape: NetworkShape
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return the inputs of all layers, their products with the weights, and the network's output."""
    inputs, products = [x], [x @ weights[0]]
    for weight in weights[1:]:
        inputs.append(activate(products[-1], shape))
        products.append(inputs[-1] @ weight)
    return inputs, products, compute_output(x, products[-1], shape)


def activate(product: Tensor, shape: NetworkShape) -> Tensor:
    """Return the next layer's input: the activation of a layer's product."""
    return functional.silu(product) if shape.learning.activation == "silu" else functional.gelu(product)


def compute_output(x: Tensor, product: Tensor, shape: NetworkShape) -> Tensor:
    """Return the output of the network: the product of its last layer, normalized if `shape.norm`, plus its
    input `x` if `shape.residual`."""
    if shape.norm:
        product = functional.layer_norm(product, product.shape[-1:], eps=NORM_EPSILON)
    return x + product if shape.residual else product


def backward_pass(
    gradient: Float[Tensor, "*heads C D"],
    products: Sequence[Tensor],
    weights: Sequence[Float[Tensor, "*heads _In _Out"]],
    shape: NetworkShape,
) -> list[Tensor]:
    """Return the gradient of each layer's pre-activation, from `gradient`, the gradient of the output."""
    if shape.norm:
        last = products[-1]
        difference = last - last.mean(-1, keepdim=True)
        deviation = (difference.square().mean(-1, keepdim=True) + NORM_EPSILON).sqrt()
        unit = difference / deviation
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
    """Return the gradient of the loss with respect to the output, from the error (output minus value)."""
    return shape.learning.bias.gradient(error, threshold)


def mirror_weights(
    weights: Sequence[Float[Tensor, "... _In _Out"]],
    learned_weights: Sequence[Float[Tensor, "... _In _Out"]],
    shape: NetworkShape,
) -> list[Tensor]:
    """Return the network's weights: the mirror map of the sum of initial and learned duals."""
    mirror = shape.learning.mirror
    return [mirror.weights(w + x) for w, x in zip(weights, learned_weights, strict=True)]


def compute_tangent_base(
    weights: Sequence[Tensor], anchor_weights: Sequence[Tensor], anchor: Sequence[Tensor], shape: NetworkShape
) -> Sequence[Tensor]:
    """Return, for each layer, the part of the network's weights that is constant inside a chunk.

    The weights are this part plus delta, the change that learning has made so far.

    Args:
        weights: Initial weights, before the mirror map.
        anchor_weights: Weights at the anchor, from `mirror_weights`.
        anchor: Anchor of the chunk: the delta at which the chunk's gradients are computed.
        shape: Sizes of the network.
    """
    if shape.learning.mirror == _IDENTITY:
        return weights
    return [w - a for w, a in zip(anchor_weights, anchor, strict=True)]


def is_clipped(shape: NetworkShape) -> bool:
    """Return True if steps must be clipped.

    A network of one layer needs no clip if its keys have at most unit length. With an output norm, a `Power`
    loss or a mirror map, it needs the clip.
    """
    learning = shape.learning
    needs_clip = isinstance(learning.bias, Power) or learning.mirror != _IDENTITY
    return shape.clip and (len(shape.layers) > 1 or shape.norm or needs_clip)


def clip_step(
    step_size: Float[Tensor, "*heads C 1"],
    share: Float[Tensor, "*heads C 1"],
    error: Tensor,
    gradient: Tensor,
    inputs: Sequence[Tensor],
    deltas: Sequence[Tensor],
    shape: NetworkShape,
) -> tuple[Float[Tensor, "*heads C 1"], Float[Tensor, "*heads C 1"]]:
    """Return the clipped step size and the squared norm of the token's gradient.

    Args:
        step_size: Step size before clipping.
        share: Largest part of the token's error that a step may remove, to first order.
        error: Output of the network minus the value.
        gradient: Gradient of the loss at the output.
        inputs: Inputs of all layers.
        deltas: Gradients with respect to the products of all layers, before the activation.
        shape: Sizes of the network.
    """
    squared_norm = torch.zeros_like(step_size)
    for x, delta in zip(inputs, deltas, strict=True):
        squared_norm = squared_norm + row_inner(x, x) * row_inner(delta, delta)
    if not is_clipped(shape):
        return step_size, squared_norm
    pull = row_inner(error, gradient)
    most = share * pull / torch.where(squared_norm > 0, squared_norm, 1)
    return torch.where(step_size * squared_norm > share * pull, most, step_size), squared_norm


def compute_error_share(log_momentum: Tensor, chunk_size: int) -> Tensor:
    """Return the largest part of a token's error that the token's step may remove.

    This part is (1 - momentum) / `chunk_size`, because momentum repeats each step, and because a chunk can
    contain the same token several times.
    """
    return -torch.expm1(log_momentum) / chunk_size


def row_inner(a: Float[Tensor, "*heads C D"], b: Tensor) -> Float[Tensor, "*heads C 1"]:
    """Return the inner products of the rows of `a` and `b`."""
    return (a * b).sum(-1, keepdim=True)


class Decays(NamedTuple):
    """Decays of momentum and delta from each token of a chunk to each later one."""

    decay: Float[Tensor, "*heads C C"]
    """Decay of delta from an earlier token (column) to a later one (row); 0 if the earlier one is skipped."""
    trace: Float[Tensor, "*heads C C"]
    """Decay of momentum from an earlier token (column) to a later one (row)."""
    retention: Float[Tensor, "*heads C"]
    """Decay of delta from the chunk's start to each token."""
    momentum_retention: Float[Tensor, "*heads C"]
    """Decay of momentum from the chunk's start to each token."""


def compute_decays(
    log_retention: Float[Tensor, "*heads C"],
    log_momentum: Float[Tensor, "*heads C"],
    valid: Bool[Tensor, "*heads C"] | None,
) -> Decays:
    """Return the decays between tokens of chunks. Tokens that are not `valid` must have log decays of 0."""
    # In float64: differences of sums as low as -80 C are not precise enough in float32.
    logs = torch.stack([log_retention, log_momentum]).clamp(min=LEAST_LOG).double().cumsum(-1)
    size, dtype = logs.shape[-1], log_retention.dtype
    future = torch.full((size, size), -torch.inf, dtype=dtype, device=logs.device).triu(1)
    decay, trace = ((logs[..., :, None] - logs[..., None, :]).to(dtype) + future).exp().unbind(0)
    retention, momentum_retention = logs.to(dtype).exp().unbind(0)
    if valid is not None:
        # A skipped token adds no momentum to delta, and momentum does not decay there.
        decay = decay * valid[..., None, :].to(dtype)
    return Decays(decay, trace, retention, momentum_retention)


def flush_denormals(x: Tensor) -> Tensor:
    """Return `x` with negligible values replaced by zero.

    Arithmetic on denormal numbers is ten times slower. The gradient passes through unchanged.
    """
    flat = x.detach()
    correction = torch.where(flat.abs() < NEGLIGIBLE, flat, 0)
    return x - correction
