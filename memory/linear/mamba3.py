"""Mamba-3: a state-space model with the trapezoidal rule and a state that rotates.

Lahoti et al. 2026 ("Mamba-3: Improved Sequence Modeling using State Space Principles", ICLR), with one input
and one output per head (SISO). With the step size d > 0, the rate a > 0, the weight l in (0, 1), the matrix
S, key k, value v and query q of a head,

    S_t = exp(-a_t d_t) (S_{t-1} + (1 - l_t) d_t k_{t-1} v_{t-1}^T) + l_t d_t k_t v_t^T,
    y_t = S_t^T q_t + D v_t.

For l = 1 this is the recurrence of `mamba2`. The values of two steps enter as in the trapezoidal rule, so no
convolution is needed. Half of the channels of keys and queries form pairs. A pair is rotated by its angle
p_t = p_{t-1} + pi d_t tanh(W x_t) for the input x. So the state is complex, and it can follow parities.
Before the rotation, keys and queries are normalized, and a learned bias of each head is added. a and l also
depend on the input. The outputs are normalized over all heads, multiplied by SiLU(U x), and projected.

`kernels.linear_memory` makes both writes of a key at once: the write at step t - 1 includes the strength that
step t gives to it. Step t reads the matrix before its own write, which is added to the output.

Differences from the published code: the outputs are normalized. Otherwise they grow with the length of an
episode, and learning by reward is unstable. There are two layers: what one layer writes depends only on its
input at the step, so it cannot notice the start of an episode. A layer ends with the feed-forward block of
`gated_delta`. The paper alternates such layers with gated feed-forward blocks. `state_size` is 32 by default
instead of 128, and heads are at most 32 wide instead of 64, so that the state of a small policy is small.
`make("mamba3", paper=True)` has the published `state_size` and no norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import linear_memory, linear_memory_step, scan
from scrubjay.memory.contract.base import PaperValues, State
from scrubjay.memory.linear.layers import LayeredMemory, draw_step_bias
from scrubjay.memory.linear.mamba2 import StateSpaceConfig
from scrubjay.memory.parts.layers import feed_forward

_NORM_EPSILON = 1e-5
_OUTPUT_EPSILON = 1e-4  # as in `mamba2`: small outputs are not scaled up to noise
_LEAST_RATE = 1e-4


@dataclass(frozen=True)
class Mamba3Config(StateSpaceConfig):
    """Configuration of `Mamba3`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {"state_size": 128, "output_norm": False}

    num_layers: int = 2
    """Number of layers. With one, what is written at a step does not depend on earlier steps."""
    output_norm: bool = True
    """Normalize the outputs of all heads before the gate."""
    feed_forward_ratio: int = 2
    """Hidden width of the feed-forward block, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("feed_forward_ratio")
        if self.state_size % 4:
            raise ValueError(f"state_size={self.state_size}: must be a multiple of 4, for rotated pairs")

    def build(self) -> Mamba3:
        """Return a newly initialized memory."""
        return Mamba3(self)


class _Tokens(NamedTuple):
    """Quantities of the recurrence, for a step or a segment."""

    query: Float[Tensor, "*batch heads size"]
    key: Float[Tensor, "*batch heads size"]
    value: Float[Tensor, "*batch heads width"]
    log_decay: Float[Tensor, "*batch heads"]
    own: Float[Tensor, "*batch heads"]
    """Strength of the write of the step's own key: l d."""
    previous: Float[Tensor, "*batch heads"]
    """Strength of the write of the previous step's key: (1 - l) d."""


class Mamba3Layer(nn.Module):
    """State-space model and a feed-forward block, both pre-norm with a residual connection.

    State: `matrix` `[batch, heads, state_size, width]` is the memory of each head. `key`
    `[batch, heads, state_size]` and `value` `[batch, heads, width]` are those of the previous step. `angle`
    `[batch, heads, state_size / 4]` are the angles of rotation, from 0 to 2 pi.
    """

    def __init__(self, config: Mamba3Config) -> None:
        super().__init__()
        self.heads, self.inner, self.size = config.heads, config.inner_width, config.state_size
        self.parts = [self.inner] * 2 + [self.size] * 2 + [self.heads] * 3 + [self.size // 4]
        self.norm = nn.LayerNorm(config.dim)
        self.project_in = nn.Linear(config.dim, sum(self.parts), bias=False)
        self.step_bias = nn.Parameter(draw_step_bias(self.heads))
        self.key_norm = nn.RMSNorm(self.size, eps=_NORM_EPSILON)
        self.query_norm = nn.RMSNorm(self.size, eps=_NORM_EPSILON)
        self.key_bias = nn.Parameter(torch.ones(self.heads, self.size))
        self.query_bias = nn.Parameter(torch.ones(self.heads, self.size))
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.out_norm = nn.RMSNorm(self.inner, eps=_OUTPUT_EPSILON) if config.output_norm else nn.Identity()
        self.out = nn.Linear(self.inner, config.dim, bias=False)
        self.feed_forward = feed_forward(config.dim, config.feed_forward_ratio * config.dim)

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the initial state of the layer: zeros."""
        width, device = self.inner // self.heads, self.out.weight.device
        shapes = {
            "matrix": (self.size, width),
            "key": (self.size,),
            "value": (width,),
            "angle": (self.size // 4,),
        }
        return {
            name: torch.zeros(batch_size, self.heads, *shape, dtype=dtype, device=device)
            for name, shape in shapes.items()
        }

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, out: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state.

        If `out` is a tensor, the new matrix is written to it in place.
        """
        start = torch.zeros_like(x[:, :1], dtype=torch.bool)
        tokens, gate, angle = self.project_tokens(x[:, None], state, start)
        token = _Tokens(*(part[:, 0] for part in tokens))
        previous = state["key"] * token.previous[..., None]
        matrix = torch.addcmul(state["matrix"], previous[..., None], state["value"][:, :, None], out=out)
        y, matrix = linear_memory_step(
            token.query, token.key, token.value, token.log_decay, token.own, matrix, rule="hebbian", out=out
        )
        after = {"matrix": matrix, "key": token.key, "value": _copy(token.value), "angle": angle}
        return self.finish(x, gate[:, 0], y, token.value), after

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state."""
        tokens, gate, angle = self.project_tokens(x, state, start)
        query, key, value, log_decay, own, previous = tokens
        # The first step of an episode has no previous one.
        previous = torch.where(start[..., None], 0, previous)
        first = state["key"] * previous[:, 0, :, None]
        matrix = state["matrix"] + first[..., None] * state["value"][:, :, None]
        strength = own + torch.cat([previous[:, 1:], torch.zeros_like(previous[:, :1])], dim=1)
        # This reads the matrix without its decay, so that a step does not depend on its successor.
        y, matrix = linear_memory(
            query,
            key,
            value,
            log_decay,
            strength,
            matrix,
            rule="hebbian",
            start=start,
            read_before_write=True,
        )
        y = log_decay.exp()[..., None] * y + ((query * key).sum(-1) * own)[..., None] * value
        after = {"matrix": matrix, "key": _copy(key[:, -1]), "value": _copy(value[:, -1]), "angle": angle}
        return self.finish(x, gate, y, value), after

    def project_tokens(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[_Tokens, Float[Tensor, "batch time inner"], Float[Tensor, "batch heads pairs"]]:
        """Return the quantities of the recurrence, the input of the output gate, and the last angles."""
        dtype = state["matrix"].dtype
        parts = self.project_in(self.norm(x)).split(self.parts, dim=-1)
        gate, value, key, query, step, rate, weight, turn = parts
        step = functional.softplus(step + self.step_bias).to(dtype)
        weight = torch.sigmoid(weight.to(dtype))
        turn = math.pi * torch.tanh(turn.to(dtype))[:, :, None] * step[..., None]
        angles, angle = self._rotate_on(turn, state["angle"], start)
        weight_dtype = self.key_norm.weight.dtype
        key = (self.key_norm(key.to(weight_dtype))[:, :, None] + self.key_bias).to(dtype)
        query = (self.query_norm(query.to(weight_dtype))[:, :, None] + self.query_bias).to(dtype)
        tokens = _Tokens(
            rotate(query, angles),
            rotate(key, angles),
            value.to(dtype).unflatten(-1, (self.heads, -1)),
            -_heavy_tail(rate.to(dtype)).clamp_min(_LEAST_RATE) * step,
            weight * step,
            (1 - weight) * step,
        )
        return tokens, gate, angle

    def finish(
        self, x: Tensor, gate: Tensor, y: Float[Tensor, "*batch heads width"], value: Tensor
    ) -> Float[Tensor, "*batch dim"]:
        """Return the layer outputs for inputs `x`, kernel outputs `y` and their `value`s."""
        y = self.out_norm((y + self.skip[:, None] * value).flatten(-2).to(self.out.weight.dtype))
        x = x + self.out(y * functional.silu(gate))
        return x + self.feed_forward(x)

    def _rotate_on(self, turn: Tensor, angle: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return the angles after every step and the last ones, from 0 to 2 pi.

        The sums are computed in float64, since they grow with the length of the segment.
        """
        one = torch.ones(turn.shape[2:], dtype=torch.float64, device=turn.device)
        angles, last = scan(one, turn.double(), angle.double(), start=start)
        circle = 2 * math.pi
        return torch.remainder(angles, circle).to(turn.dtype), torch.remainder(last, circle).to(turn.dtype)


def rotate(
    x: Float[Tensor, "*batch size"], angles: Float[Tensor, "*batch pairs"]
) -> Float[Tensor, "*batch size"]:
    """Rotate the first `pairs` pairs of neighboring channels of `x` by `angles`."""
    count = 2 * angles.shape[-1]
    left, right = x[..., :count:2], x[..., 1:count:2]
    cos, sin = angles.cos(), angles.sin()
    pairs = torch.stack([left * cos - right * sin, left * sin + right * cos], dim=-1).flatten(-2)
    return torch.cat([pairs, x[..., count:]], dim=-1)


def _heavy_tail(x: Tensor) -> Tensor:
    """Return 1 + x for positive x and 1 / (1 - x) for negative x."""
    return x.clamp_min(0) + 1 / (1 - x.clamp_max(0))


def _copy(x: Tensor) -> Tensor:
    """Return a copy: a view would keep a larger tensor in memory."""
    return x.clone(memory_format=torch.contiguous_format)


class Mamba3(LayeredMemory["Mamba3Layer"]):
    """Stack of state-space layers with the trapezoidal rule and a rotation, and of feed-forward blocks.

    State: the entries of `Mamba3Layer` for every layer l, with the suffix `_l`.
    """

    in_place = True

    def __init__(self, config: Mamba3Config) -> None:
        super().__init__(config, [Mamba3Layer(config) for _ in range(config.num_layers)])
