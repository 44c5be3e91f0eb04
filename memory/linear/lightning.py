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
over all heads, the head that never decays would dominate. `slopes="geometric"` replaces 8 h / H by the slopes
of the published models, 2^(-8 (h + 1) / H). Their time scales in the first layer reach from a few steps to
256 steps. This module leaves out the learned rotary positions of the first layer (LRPE), because the decays
encode distances and a memory has no absolute step index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.linear.layers import HebbianLayer, LayeredMemory, LinearTokens
from scrubjay.memory.parts.window import resolve_heads

_EPSILON = 1e-6
# Outputs are small where a query matches no key; normalization must not amplify their rounding errors.
_READ_EPSILON = 1e-4


@dataclass(frozen=True)
class LightningConfig(MemoryConfig):
    """Configuration of `Lightning`. Raises ValueError on an invalid value."""

    paper_values = "the published variant is not implemented"

    num_layers: int = 2
    """Number of layers, each with its own memory; later layers decay more slowly."""
    num_heads: int | None = None
    """Number of heads per layer, each with its own decay. Default: the largest divisor of `dim` up to 4."""
    slopes: Literal["linear", "geometric"] = "linear"
    """Dependence of the decay rate on the head: `linear` as in the paper's equation, or `geometric` as in the
    published models."""
    feed_forward_ratio: int = 2
    """Hidden width of the feed-forward block, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
        super().__init__(config, [LightningLayer(config, index) for index in range(config.num_layers)])


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
        y = rms_normalize(y, _READ_EPSILON).flatten(-2).to(self.out.weight.dtype)
        x = x + self.out(y * gate)
        value, gate = self.feed_in(rms_normalize(x, _EPSILON)).chunk(2, dim=-1)
        return x + self.feed_out(value * gate)


def rms_normalize(x: Float[Tensor, "*batch dim"], epsilon: float) -> Float[Tensor, "*batch dim"]:
    """Return `x` divided by its root mean square (SRMSNorm)."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + epsilon)
