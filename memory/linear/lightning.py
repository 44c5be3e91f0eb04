"""Lightning Attention: one matrix per head with a fixed decay per head and layer.

Qin et al. 2023 (TransNormerLLM, arXiv 2307.14995, section 3.1) and 2024 (Lightning Attention-2, arXiv
2401.04658, equation 8). Heads h = 0, ..., H - 1 and layers l = 0, ..., L - 1 are counted from 0. With the
matrix S, key k, value v, query q and output y of a head,

    S_t = exp(-(8 h / H) (1 - l / L)) S_{t-1} + k_t v_t^T,    y_t = S_t^T q_t.

The kernel is `kernels.linear_memory` with write strength 1. Queries and keys pass SiLU. The output y is
divided by its root mean square (SRMSNorm, without weights), multiplied by U x for the input x, and projected.
The feed-forward block is W (V x * U' x), without another nonlinearity (SGLU). U, U', V and W are weight
matrices.

Differences from the paper: the paper counts heads from 1. Here they are counted from 0, as in other
implementations, so the first head of each layer never decays. Outputs are normalized per head. With a norm
over all heads (`joint_norm`), the head that never decays would dominate. `slopes="geometric"` replaces
8 h / H by the slopes of the published models, 2^(-8 (h + 1) / H). Their time scales in the first layer reach
from a few steps to 256 steps. Positions are left out unless `relative_positions` is True, because the decays
encode distances. `make("lightning", paper=True)` has the slopes, the norm and the positions of the published
models.

Relative positions (LRPE, Qin et al. 2023, arXiv 2307.09270) are in the first layer. With a learned angle a_i
for each channel i of keys and queries, the product q . k of the steps t and s becomes

    sum over i of q_i k_i cos(a_i (t - s)).

The published code encodes absolute step numbers in keys and queries. Here the state turns by a_i at each
step, which gives the same outputs without a step number. Angles therefore stay exact in long episodes, and
their gradients do not grow with the step number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import linear_memory, linear_memory_step
from scrubjay.memory.contract.base import MemoryConfig, PaperValues, State
from scrubjay.memory.linear.layers import HebbianLayer, LayeredMemory, LinearTokens
from scrubjay.memory.parts.window import resolve_heads

_EPSILON = 1e-6


@dataclass(frozen=True)
class LightningConfig(MemoryConfig):
    """Configuration of `Lightning`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {
        "slopes": "geometric",
        "joint_norm": True,
        "relative_positions": True,
        "epsilon": 1e-6,
    }

    num_layers: int = 2
    """Number of layers, each with its own memory; later layers decay more slowly."""
    num_heads: int | None = None
    """Number of heads per layer, each with its own decay. Default: the largest divisor of `dim` up to 4."""
    slopes: Literal["linear", "geometric"] = "linear"
    """Dependence of the decay rate on the head: `linear` as in the paper's equation, or `geometric` as in the
    published models."""
    feed_forward_ratio: int = 2
    """Hidden width of the feed-forward block, in units of `dim`."""
    joint_norm: bool = False
    """Normalize the outputs of all heads together instead of each head."""
    relative_positions: bool = False
    """Use relative positions in the first layer (LRPE). They double its state."""
    epsilon: float = 1e-4
    """Number that the norm of the outputs adds to their mean square. Outputs are small where a query matches
    no key, and a smaller number amplifies their rounding errors more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above_zero("epsilon")
        self.check_positive("num_layers", "feed_forward_ratio")
        if self.slopes not in ("linear", "geometric"):
            raise ValueError(f"slopes={self.slopes!r}; choose from linear, geometric")
        resolve_heads(self.dim, self.num_heads)

    @property
    def heads(self) -> int:
        """Number of heads per layer. Each head has one matrix."""
        return resolve_heads(self.dim, self.num_heads)

    def log_decays(self, layer: int) -> list[float]:
        """Return the log decay per step of each head of a layer."""
        slower, heads = 1 - layer / self.num_layers, self.heads
        if self.slopes == "linear":
            return [-8 * head / heads * slower for head in range(heads)]
        return [-(2.0 ** (-8 * (head + 1) / heads)) * slower for head in range(heads)]

    def build(self) -> Lightning:
        """Return a newly initialized memory."""
        return Lightning(self)


class Lightning(LayeredMemory["LightningLayer"]):
    """Stack of linear attention layers with fixed decays and gated feed-forward blocks.

    State: the entries of `LightningLayer` for every layer l, with the suffix `_l`.
    """

    in_place = True

    def __init__(self, config: LightningConfig) -> None:
        first = RelativeLightningLayer if config.relative_positions else LightningLayer
        layer_classes = [first, *[LightningLayer] * (config.num_layers - 1)]
        super().__init__(config, [layer(config, index) for index, layer in enumerate(layer_classes)])


class LightningLayer(HebbianLayer):
    """Linear attention and a gated feed-forward block, both pre-norm with a residual connection.

    State: `matrix` `[batch, heads, width, width]`.
    """

    log_decay: Tensor

    def __init__(self, config: LightningConfig, index: int) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.matrix_shape = self.heads, dim // self.heads, dim // self.heads
        self.hidden = config.feed_forward_ratio * dim
        self.joint_norm, self.epsilon = config.joint_norm, config.epsilon
        self.register_buffer("log_decay", torch.tensor(config.log_decays(index)), persistent=False)
        self.project_in = nn.Linear(dim, 4 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.feed_in = nn.Linear(dim, 2 * self.hidden, bias=False)
        self.feed_out = nn.Linear(self.hidden, dim, bias=False)

    def _tokens(self, x: Float[Tensor, "*batch dim"], dtype: torch.dtype) -> tuple[LinearTokens, Tensor]:
        *parts, gate = self.project_in(rms_normalize(x, _EPSILON)).chunk(4, dim=-1)
        query, key, value = (part.to(dtype).unflatten(-1, (self.heads, -1)) for part in parts)
        log_decay = self.log_decay.to(dtype).expand(query.shape[:-1])
        tokens = LinearTokens(
            functional.silu(query), functional.silu(key), value, log_decay, torch.ones_like(log_decay)
        )
        return tokens, gate

    def _finish(self, x: Tensor, gate: Tensor, y: Float[Tensor, "*batch heads width"]) -> Tensor:
        if self.joint_norm:
            y = rms_normalize(y.flatten(-2), self.epsilon)
        else:
            y = rms_normalize(y, self.epsilon).flatten(-2)
        y = y.to(self.out.weight.dtype)
        x = x + self.out(y * gate)
        value, gate = self.feed_in(rms_normalize(x, _EPSILON)).chunk(2, dim=-1)
        return x + self.feed_out(value * gate)


class RelativeLightningLayer(LightningLayer):
    """Layer whose scores of keys depend on distances in time (LRPE).

    State: `matrix` `[batch, heads, 2 * width, width]`, the real part above the imaginary part of the sum of
    exp(i angle distance) key value^T, decayed.
    """

    def __init__(self, config: LightningConfig, index: int) -> None:
        super().__init__(config, index)
        dim, width = config.dim, config.dim // self.heads
        self.matrix_shape = self.heads, 2 * width, width
        exponents = torch.arange(dim, dtype=torch.float64) * (-2 / dim)
        self.angles = nn.Parameter((10_000**exponents).view(self.heads, width).to(torch.get_default_dtype()))

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, out: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state.

        If `out` is a tensor, the new matrix is written to it in place.
        """
        tokens, gate = self._tokens(x, state["matrix"].dtype)
        zeros = torch.zeros_like(tokens.key)
        tokens = tokens._replace(
            query=torch.cat([tokens.query, zeros], dim=-1), key=torch.cat([tokens.key, zeros], dim=-1)
        )
        matrix = self._turn(state["matrix"], 1)
        y, matrix = linear_memory_step(*tokens, matrix, rule="hebbian", out=out)
        return self._finish(x, gate, y), {"matrix": matrix}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state.

        Inside the segment, positions count from its first step. The state turns at its end.
        """
        tokens, gate = self._tokens(x, state["matrix"].dtype)
        cos, sin = self._rotation(torch.arange(1, x.shape[1] + 1, device=x.device), tokens.key.dtype)
        query, key = (torch.cat([part * cos, -part * sin], dim=-1) for part in (tokens.query, tokens.key))
        tokens = tokens._replace(query=query, key=key)
        y, matrix = linear_memory(*tokens, state["matrix"], rule="hebbian", start=start)
        return self._finish(x, gate, y), {"matrix": self._turn(matrix, x.shape[1])}

    def _rotation(self, steps: Int[Tensor, " time"], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosines and sines `[time, heads, width]` of the angles after some steps."""
        angles = steps[:, None, None] * self.angles.double()
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _turn(self, matrix: Tensor, steps: int) -> Tensor:
        """Return the state after `steps` steps without a decay or a write."""
        count = torch.full((1,), steps, device=matrix.device)
        cos, sin = (part[0, :, :, None] for part in self._rotation(count, matrix.dtype))
        real, imaginary = matrix.chunk(2, dim=-2)
        return torch.cat([cos * real - sin * imaginary, sin * real + cos * imaginary], dim=-2)


def rms_normalize(x: Float[Tensor, "*batch dim"], epsilon: float) -> Float[Tensor, "*batch dim"]:
    """Return `x` divided by its root mean square (SRMSNorm)."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + epsilon)
