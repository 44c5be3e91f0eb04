"""Linear recurrent unit: complex channels that turn and fade, each at a rate that is learned.

Orvieto et al. 2023 (arXiv 2303.06349, sections 3 and 4), for channel n:

    h_t = l h_{t-1} + g (B x_t),    l = exp(-exp(nu) + i exp(theta)),    y_t = Re(C h_t) + D x_t.

So |l| < 1 whatever is learned. At first l is uniform on the area of a ring and g = sqrt(1 - |l|^2), by which
states are as large as inputs. The layer norms its input and adds A GELU(y) σ(A' GELU(y)) to it, as published.

Where it differs: the ring is .9 to .999, as the paper's own where sequences are long, which keeps what an
episode began with; the published default is the whole disk, `min_modulus=0, max_modulus=1`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.scan.recurrence import ScanMemory, Written


@dataclass(frozen=True)
class LRUConfig(MemoryConfig):
    """Sizes of `LRU`. Raises ValueError on one that cannot work."""

    num_channels: int | None = None
    """Complex numbers of the state; by default half of `dim`, so that it is as large as an input."""
    min_modulus: float = 0.9
    """The least that a new channel keeps from one step to the next, as a factor."""
    max_modulus: float = 0.999
    """The most that a new channel keeps."""
    max_phase: float = 2 * math.pi
    """By how much, in radians, a new channel turns in a step at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_channels is not None and self.num_channels < 1:
            raise ValueError(f"num_channels={self.num_channels}: must be at least 1")
        if not 0 <= self.min_modulus < self.max_modulus <= 1:
            raise ValueError(
                f"min_modulus={self.min_modulus}, max_modulus={self.max_modulus}: the former must be less, "
                "and both between 0 and 1"
            )
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(f"max_phase={self.max_phase}: must be more than 0 and at most 2 pi")

    @property
    def channels(self) -> int:
        """Complex numbers of the state."""
        return self.dim // 2 if self.num_channels is None else self.num_channels

    def build(self) -> LRU:
        """Return a freshly initialised memory of these sizes."""
        return LRU(self)


class Folded(NamedTuple):
    """What follows from parameters: l, and B with g in it."""

    decay: Float[Tensor, "channels 2"]
    inward: Float[Tensor, "2*channels dim"]


class LRU(ScanMemory[Folded]):
    """One linear recurrent unit with a gated output, on a normed input with a plain residual.

    State: `hidden` `[batch, channels, 2]`, real and imaginary parts of h.
    """

    def __init__(self, config: LRUConfig) -> None:
        dim, channels = config.dim, config.channels
        super().__init__(config, (channels, 2), pairs=True)
        # In double precision no draw is so near to 1 that its logarithm is 0.
        area = torch.rand(channels, dtype=torch.float64)
        low, high = config.min_modulus**2, config.max_modulus**2
        rate = -0.5 * (low + area * (high - low)).clamp(min=1e-12).log()
        phase = config.max_phase * torch.rand(channels, dtype=torch.float64).clamp(min=1e-6)
        dtype = torch.get_default_dtype()
        self.log_rate = nn.Parameter(rate.log().to(dtype))
        self.log_phase = nn.Parameter(phase.log().to(dtype))
        self.log_scale = nn.Parameter(0.5 * torch.log(-torch.expm1(-2 * rate)).to(dtype))
        self.norm = nn.LayerNorm(dim)
        self.inward = nn.Parameter(torch.randn(channels, 2, dim) / (2 * dim) ** 0.5)
        self.outward = nn.Parameter(torch.randn(dim, channels, 2) / channels**0.5)
        self.through = nn.Parameter(torch.randn(dim))
        self.gate = nn.Linear(dim, 2 * dim)

    def folded(self) -> Folded:
        """Return l, and B with g in it."""
        dtype = self.state_dtype
        modulus, phase = torch.exp(-self.log_rate.to(dtype).exp()), self.log_phase.to(dtype).exp()
        decay = torch.stack([modulus * phase.cos(), modulus * phase.sin()], dim=-1)
        inward = self.inward * self.log_scale.exp()[:, None, None]
        return Folded(decay, inward.flatten(0, 1))

    def write(self, x: Float[Tensor, "*batch dim"], weights: Folded) -> Written:
        """Return l and g (B x), of a normed x."""
        normed = self.norm(x)
        value = functional.linear(normed, weights.inward).to(self.state_dtype)
        return Written(weights.decay, value.unflatten(-1, self.shape), (x, normed))

    def read(self, hidden: Tensor, aside: tuple[Tensor, ...], weights: Folded) -> Float[Tensor, "*batch dim"]:
        """Return x and what its gate lets out of y."""
        x, normed = aside
        outward = self.outward.flatten(1)
        y = functional.linear(hidden.flatten(-2).to(outward.dtype), outward)
        y = torch.addcmul(y, self.through, normed)
        return x + functional.glu(self.gate(functional.gelu(y)), dim=-1)
