"""Mamba-2: a selective state-space model whose heads have one decay each.

Dao & Gu 2024 (arXiv 2405.21060, sections 3 and 7.1). With the step size d > 0, the rate a > 0, the matrix S,
the input projection k (B in the paper), the output projection q (C) and the input v (x) of a head,

    S_t = exp(-a d_t) S_{t-1} + d_t k_t v_t^T,    y_t = S_t^T q_t + D v_t.

This is the rule "hebbian" of `kernels.linear_memory` with step size d and log decay -a d: the paper's
state-space duality. k and q are the same for all heads. k, q and v pass a causal convolution of 4 steps and
SiLU. d is softplus(W x + b) for the input x. The outputs of all heads are multiplied by SiLU(U x), normalized
together and projected. A layer has no feed-forward block. D, a and b have one value per head; W and U are
matrices.

Differences from the published code: the norm's epsilon is 1e-4 instead of 1e-5, because outputs in the first
steps of an episode are small, and normalization must not amplify their rounding errors. At initialization,
convolutions use almost only the present input. `state_size` is 32 by default instead of 128, and heads are at
most 32 wide instead of 64, so that the state of a small policy is small. `make("mamba2", paper=True)` has the
published epsilon and `state_size`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import linear_memory, linear_memory_step
from scrubjay.memory.contract.base import MemoryConfig, PaperValues, State
from scrubjay.memory.linear.layers import LayeredMemory, LinearTokens, draw_step_bias
from scrubjay.memory.parts.layers import ShortConvolution
from scrubjay.memory.parts.window import count_heads

_WIDEST_HEAD = 32


@dataclass(frozen=True)
class StateSpaceConfig(MemoryConfig):
    """Sizes that `Mamba2` and `Mamba3` share. Raises ValueError on an invalid value."""

    num_layers: int = 1
    """Number of layers, each with its own memory."""
    expand: int = 2
    """Width of the inputs of all heads together, in units of `dim`."""
    num_heads: int | None = None
    """Heads per layer. Default: the smallest number whose heads are 8 to 32 wide; 1 if there is none."""
    state_size: int = 32
    """Number of rows of a head's matrix: the width of keys and queries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("num_layers", "expand", "state_size")
        _ = self.heads

    @property
    def inner_width(self) -> int:
        """Width of the inputs of all heads together."""
        return self.expand * self.dim

    @property
    def heads(self) -> int:
        """Number of heads per layer. Each head has one matrix."""
        return count_heads(self.inner_width, self.num_heads, _WIDEST_HEAD, "expand * dim")


@dataclass(frozen=True)
class Mamba2Config(StateSpaceConfig):
    """Configuration of `Mamba2`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {"state_size": 128, "epsilon": 1e-5}

    convolution: int = 4
    """Number of steps in the causal convolution. With 1, a step uses only its own input."""
    epsilon: float = 1e-4
    """Number that the output norm adds to the mean square of a step's outputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("convolution")
        self.check_above_zero("epsilon")

    def build(self) -> Mamba2:
        """Return a newly initialized memory."""
        return Mamba2(self)


class Mamba2Layer(nn.Module):
    """Selective state-space model, pre-norm with a residual connection.

    State: `matrix` `[batch, heads, state_size, width]` is the memory of each head. `tail`
    `[batch, convolution - 1, inner_width + 2 state_size]` holds the last inputs of the convolution.
    """

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.heads, self.inner, self.size = config.heads, config.inner_width, config.state_size
        self.channels = self.inner + 2 * self.size
        self.norm = nn.LayerNorm(config.dim)
        self.project_in = nn.Linear(config.dim, self.inner + self.channels + self.heads, bias=False)
        self.convolution = ShortConvolution(self.channels, config.convolution)
        self.convolution_bias = nn.Parameter(torch.zeros(self.channels))
        self.step_bias = nn.Parameter(draw_step_bias(self.heads))
        self.rate = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.out_norm = nn.RMSNorm(self.inner, eps=config.epsilon)
        self.out = nn.Linear(self.inner, config.dim, bias=False)
        with torch.no_grad():
            self.convolution.weight[1:] *= 0.2

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the initial state of the layer: zeros."""
        tail = self.convolution.initial_state(batch_size)
        shape = (batch_size, self.heads, self.size, self.inner // self.heads)
        return {"matrix": torch.zeros(shape, dtype=dtype, device=tail.device), "tail": tail}

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, out: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state.

        If `out` is a tensor, the new matrix is written to it in place.
        """
        tokens, gate, tail = self.project_tokens(x[:, None], state["tail"], None)
        step_tokens = LinearTokens(*(part[:, 0] for part in tokens))
        y, matrix = linear_memory_step(*step_tokens, state["matrix"], rule="hebbian", out=out)
        return self.finish(x, gate[:, 0], y, step_tokens.value), {"matrix": matrix, "tail": tail}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state."""
        tokens, gate, tail = self.project_tokens(x, state["tail"], start)
        y, matrix = linear_memory(*tokens, state["matrix"], rule="hebbian", start=start)
        return self.finish(x, gate, y, tokens.value), {"matrix": matrix, "tail": tail}

    def project_tokens(
        self, x: Float[Tensor, "batch time dim"], tail: Tensor, start: Tensor | None
    ) -> tuple[LinearTokens, Float[Tensor, "batch time inner"], Tensor]:
        """Return the kernel inputs, the input of the output gate, and the last inputs of the convolution."""
        gate, inputs, step = self.project_in(self.norm(x)).split(
            [self.inner, self.channels, self.heads], dim=-1
        )
        inputs, tail = self.convolution(inputs, tail, start)
        inputs = functional.silu(inputs + self.convolution_bias).to(tail.dtype)
        value, key, query = inputs.split([self.inner, self.size, self.size], dim=-1)
        key, query = (part[:, :, None].expand(-1, -1, self.heads, -1) for part in (key, query))
        step = functional.softplus(step + self.step_bias).to(tail.dtype)
        log_decay = -self.rate.to(tail.dtype).exp() * step
        return LinearTokens(query, key, value.unflatten(-1, (self.heads, -1)), log_decay, step), gate, tail

    def finish(
        self, x: Tensor, gate: Tensor, y: Float[Tensor, "*batch heads width"], value: Tensor
    ) -> Float[Tensor, "*batch dim"]:
        """Return the layer outputs for inputs `x`, kernel outputs `y` and their `value`s."""
        y = (y + self.skip[:, None] * value).flatten(-2) * functional.silu(gate)
        return x + self.out(self.out_norm(y.to(self.out_norm.weight.dtype)))


class Mamba2(LayeredMemory["Mamba2Layer"]):
    """Stack of selective state-space layers.

    State: the entries of `Mamba2Layer` for every layer l, with the suffix `_l`.
    """

    in_place = True

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__(config, [Mamba2Layer(config) for _ in range(config.num_layers)])
