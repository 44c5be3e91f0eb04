"""Linear recurrent unit: complex channels with learned decay rates and phases.

Orvieto et al. 2023 (arXiv 2303.06349, sections 3 and 4). With the input x_t of step t, every channel has a
complex state h, and the layer has the output y:

    h_t = l h_{t-1} + g (B x_t),    l = exp(-exp(nu) + i exp(theta)),    y_t = Re(C h_t) + D x_t.

nu, theta and g are parameters of the channel; A, A', B, C and D are weights. |l| < 1 holds for all parameter
values. Initial values of l are uniform on the area of a ring in the complex plane. Initially g = sqrt(1 -
|l|^2), so that states have the scale of inputs. x_t is the normalized input of the layer. The output of the
layer is its input before the norm plus `A GELU(y) σ(A' GELU(y))`, as in the published code.

Differences from the published code: the ring has radii .9 to .999, the paper's choice for long sequences.
With these radii, the state retains the first steps of an episode. The published default is the whole disk,
`min_modulus=0, max_modulus=1`, as in `make("lru", paper=True)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.contract.base import MemoryConfig, PaperValues
from scrubjay.memory.scan.recurrence import ScanMemory, ScanUpdate


@dataclass(frozen=True)
class LRUConfig(MemoryConfig):
    """Configuration of `LRU`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {"min_modulus": 0.0, "max_modulus": 1.0}

    num_channels: int | None = None
    """Complex channels of the state; by default half of `dim`, so that the state is as large as an input."""
    min_modulus: float = 0.9
    """Smallest initial absolute value of a decay factor (per step)."""
    max_modulus: float = 0.999
    """Largest initial absolute value of a decay factor (per step)."""
    max_phase: float = 2 * math.pi
    """Largest initial phase of a decay factor, in radians per step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_channels is not None and self.num_channels < 1:
            raise ValueError(f"num_channels={self.num_channels}: must be at least 1")
        if not 0 <= self.min_modulus < self.max_modulus <= 1:
            raise ValueError(
                f"min_modulus={self.min_modulus}, max_modulus={self.max_modulus}: min_modulus must be less "
                "than max_modulus, and both between 0 and 1"
            )
        if not 0 < self.max_phase <= 2 * math.pi:
            raise ValueError(f"max_phase={self.max_phase}: must be more than 0 and at most 2 pi")

    @property
    def channels(self) -> int:
        """Number of complex channels of the state."""
        return self.dim // 2 if self.num_channels is None else self.num_channels

    def build(self) -> LRU:
        """Return a newly initialized memory."""
        return LRU(self)


class FoldedWeights(NamedTuple):
    """Weights derived from the parameters: complex decay factors per step, and scaled input weights."""

    decay: Float[Tensor, "channels 2"]
    inward: Float[Tensor, "2*channels dim"]


class LRU(ScanMemory[FoldedWeights]):
    """Pre-norm linear recurrent unit with a gated output and a residual connection.

    State: `hidden` `[batch, channels, 2]`, real and imaginary parts of the channels.
    """

    def __init__(self, config: LRUConfig) -> None:
        dim, channels = config.dim, config.channels
        super().__init__(config, (channels, 2), pairs=True)
        # In double precision, no sample is so close to 1 that its logarithm is 0.
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

    def fold_weights(self) -> FoldedWeights:
        """Return the complex decay factors of the channels, and the scaled input weights."""
        dtype = self.state_dtype
        modulus, phase = torch.exp(-self.log_rate.to(dtype).exp()), self.log_phase.to(dtype).exp()
        decay = torch.stack([modulus * phase.cos(), modulus * phase.sin()], dim=-1)
        inward = self.inward * self.log_scale.exp()[:, None, None]
        return FoldedWeights(decay, inward.flatten(0, 1))

    def write(self, x: Float[Tensor, "*batch dim"], weights: FoldedWeights) -> ScanUpdate:
        """Return the state update: the decay factors, and the projected inputs to add to the channels."""
        normed_x = self.norm(x)
        value = functional.linear(normed_x, weights.inward).to(self.state_dtype)
        return ScanUpdate(weights.decay, value.unflatten(-1, self.shape), (x, normed_x))

    def read(
        self, hidden: Tensor, read_inputs: tuple[Tensor, ...], weights: FoldedWeights
    ) -> Float[Tensor, "*batch dim"]:
        """Return the inputs plus the gated outputs of the channels."""
        x, normed_x = read_inputs
        outward = self.outward.flatten(1)
        y = functional.linear(hidden.flatten(-2).to(outward.dtype), outward)
        y = torch.addcmul(y, self.through, normed_x)
        return x + functional.glu(self.gate(functional.gelu(y)), dim=-1)
