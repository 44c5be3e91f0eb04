"""Gated DeltaNet: a matrix per head that fades and is corrected towards each key's value.

Yang, Kautz & Hatamizadeh 2024 (arXiv 2412.06464), equation 10; with a decay per channel Kimi Delta Attention
(Kimi Team 2025, arXiv 2510.26692), with none DeltaNet (Yang et al. 2024, arXiv 2406.06484):

    S_t = diag(exp g_t) S_{t-1} + b_t k_t (v_t - (diag(exp g_t) S_{t-1})^T k_t)^T,    y_t = S_t^T q_t

which is `kernels.linear_memory`. Keys and queries pass a causal convolution, SiLU and a division by their
length, values the first two; b = sigmoid, or twice that with `negative_eigenvalues` (Grazzi et al. 2024,
arXiv 2411.12537), without which no such memory counts modulo anything; g = -exp(A) softplus(W x + d), A of a
head, d of each decay. What is read is normalised, gated by the input and projected.

Where it differs: a read comes before the write of its own step unless `read_before_write` is False; W is one
matrix, that of Kimi Delta two of low rank; the gate of what is read is SiLU with all decays; a layer's
feed-forward part has GELU and no gate; at first, convolutions take in nearly the present input alone, as in
`memory/titans/neural.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import linear_memory, linear_memory_step
from scrubjay.memory.contract.base import MemoryConfig, State
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.linear.layered import LayeredMemory, count_heads
from scrubjay.memory.linear.stepping import MatrixStepper
from scrubjay.memory.parts.convolution import ShortConvolution
from scrubjay.memory.parts.feed_forward import feed_forward
from scrubjay.memory.parts.unit import unit

# What is read in the first steps of an episode is small, and its rounding must stay so.
_READ_EPSILON = 1e-4


@dataclass(frozen=True)
class GatedDeltaConfig(MemoryConfig):
    """Sizes of `GatedDelta`. Raises ValueError on one that cannot work."""

    num_layers: int = 1
    """Layers, each with a memory of its own."""
    num_heads: int | None = None
    """Matrices of a layer; by default as few as make heads of 8 to 64, else 1."""
    decay: Literal["head", "channel", "none"] = "head"
    """What fades by itself: a head, a channel of its keys, or nothing."""
    negative_eigenvalues: bool = False
    """Whether a step may turn what is known of a key into its opposite, which counting needs."""
    convolution: int = 4
    """Steps that a key, query or value is made of, the present one included."""
    read_before_write: bool = True
    """Whether a step is read before it is written."""
    feed_forward_ratio: int = 2
    """Width of the feed-forward part's hidden layer, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_layers", "convolution", "feed_forward_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.decay not in ("head", "channel", "none"):
            raise ValueError(f"decay={self.decay!r}; choose from head, channel, none")
        count_heads(self.dim, self.num_heads)

    @property
    def heads(self) -> int:
        """Matrices of a layer."""
        return count_heads(self.dim, self.num_heads)

    def build(self) -> GatedDelta:
        """Return a freshly initialised memory of these sizes."""
        return GatedDelta(self)


class Tokens(NamedTuple):
    """What a step or a segment is to the kernel."""

    query: Float[Tensor, "*batch heads width"]
    key: Float[Tensor, "*batch heads width"]
    value: Float[Tensor, "*batch heads width"]
    log_decay: Float[Tensor, "*batch heads *width"]
    step: Float[Tensor, "*batch heads"]


class GatedDeltaLayer(nn.Module):
    """A memory and a feed-forward part, both on a normed input with a plain residual.

    State: `matrix` `[batch, heads, width, width]`, and `tail` `[batch, convolution - 1, 3 dim]`, the last
    inputs of the convolution.
    """

    def __init__(self, config: GatedDeltaConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.feed_forward_ratio * config.dim
        self.heads, self.width, self.decay = config.heads, dim // config.heads, config.decay
        self.most = 2.0 if config.negative_eigenvalues else 1.0
        self.read_before_write = config.read_before_write
        self.norm = nn.LayerNorm(dim)
        self.project_in = nn.Linear(dim, 3 * dim, bias=False)
        self.convolution = ShortConvolution(3 * dim, config.convolution)
        self.step_size = nn.Linear(dim, self.heads)
        if config.decay != "none":
            self.forgetting = nn.Linear(dim, self.heads if config.decay == "head" else dim)
            # As the published code: rates up to 16, times 0.001 to 0.1.
            self.rate = nn.Parameter(torch.empty(self.heads).uniform_(0.01, 16).log())
        self.out_norm = nn.RMSNorm(self.width, eps=_READ_EPSILON)
        self.output_gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.feed_forward = feed_forward(dim, hidden)
        with torch.no_grad():
            self.convolution.weight[1:] *= 0.2
            if config.decay != "none":
                least, largest = math.log(1e-3), math.log(1e-1)
                amount = torch.empty_like(self.forgetting.bias).uniform_(least, largest).exp()
                self.forgetting.bias.copy_(amount + torch.log(-torch.expm1(-amount)))

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the state of a layer that knows nothing."""
        tail = self.convolution.initial_state(batch_size)
        shape = (batch_size, self.heads, self.width, self.width)
        return {"matrix": torch.zeros(shape, dtype=dtype, device=tail.device), "tail": tail}

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, out: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one input and the state after, its matrix in `out` if that is given."""
        tokens, normed, tail = self.tokens(x[:, None], state["tail"], None)
        one = Tokens(*(part[:, 0] for part in tokens))
        y, matrix = linear_memory_step(
            *one, state["matrix"], rule="delta", read_before_write=self.read_before_write, out=out
        )
        return self.finish(x, normed[:, 0], y), {"matrix": matrix, "tail": tail}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the state after."""
        tokens, normed, tail = self.tokens(x, state["tail"], start)
        y, matrix = linear_memory(
            *tokens, state["matrix"], rule="delta", start=start, read_before_write=self.read_before_write
        )
        return self.finish(x, normed, y), {"matrix": matrix, "tail": tail}

    def tokens(
        self, x: Float[Tensor, "batch time dim"], tail: Tensor, start: Tensor | None
    ) -> tuple[Tokens, Float[Tensor, "batch time dim"], Tensor]:
        """Return what inputs are to the kernel, the normed inputs, and the last ones of the convolution."""
        normed = self.norm(x)
        mixed, tail = self.convolution(self.project_in(normed), tail, start)
        mixed = functional.silu(mixed).to(tail.dtype).unflatten(-1, (3, self.heads, self.width))
        query, key, value = mixed.unbind(2)
        step = self.most * torch.sigmoid(self.step_size(normed).to(tail.dtype))
        return Tokens(unit(query), unit(key), value, self._log_decay(normed, step), step), normed, tail

    def finish(self, x: Tensor, normed: Tensor, y: Float[Tensor, "*batch heads width"]) -> Tensor:
        """Return the outputs of inputs and what they read."""
        y = self.out_norm(y.to(self.out_norm.weight.dtype)).flatten(-2)
        x = x + self.out(y * functional.silu(self.output_gate(normed)))
        return x + self.feed_forward(x)

    def _log_decay(self, normed: Tensor, step: Tensor) -> Tensor:
        if self.decay == "none":
            return torch.zeros_like(step)
        amount = functional.softplus(self.forgetting(normed).to(step.dtype))
        rate = self.rate.to(step.dtype).exp()
        if self.decay == "head":
            return -rate * amount
        return -rate[:, None] * amount.unflatten(-1, (self.heads, self.width))


class GatedDelta(LayeredMemory["GatedDeltaLayer"]):
    """Layers of a matrix per head, written by the gated delta rule, and feed-forward.

    State: that of `GatedDeltaLayer` for every layer l, names followed by `_l`.
    """

    def __init__(self, config: GatedDeltaConfig) -> None:
        super().__init__(config, [GatedDeltaLayer(config) for _ in range(config.num_layers)])

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows in place."""
        if not self.steps_as(GatedDelta, state):
            return super().stepper(state)
        return MatrixStepper(self.layers, state)
