"""Fast and forgetful memory: traces of the input, each with its own decay rates and oscillation frequencies.

Morad et al. 2023 (arXiv 2310.04128, section 4). At step t with input x_t, the state S of trace m and context
c, and the output y, are

    S_t[m, c] = exp(-a_m + i w_c) S_{t-1}[m, c] + x'_t[m],    x'_t = (U x_t) σ(U' x_t),
    y_t = σ(G x_t) LN(M [Re S_t, Im S_t]) + (1 - σ(G x_t)) (R x_t).

U, U', G, M and R are linear maps, and LN is a layer norm. The decay rates a encode the age of an input. The
frequencies w encode the position of an input in time. Before training, the fastest trace halves at every
step, and the slowest decays to 0.01 in `max_period` steps. The initial periods 2 pi / w range from 1 to
`max_period` steps. Rates and frequencies are learned.

Differences from the published code: a is .683 σ(p) for a parameter p, so a always stays between 0 and .683.
The published code clips a to this range, and the gradient vanishes at the bounds. `kernels.scan` does not
need such a range. In the published code, single steps may use rates that are not clipped yet. Their outputs
then differ from the outputs of segments. `check_memory` rejects such a memory (law 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.contract.base import SAME_AS_PAPER, MemoryConfig
from scrubjay.memory.scan.recurrence import ScanMemory, ScanUpdate

FASTEST = math.log(torch.finfo(torch.float64).max) / 1024 - 0.01
"""Upper bound of the decay rates: the published scan divides by the decay of a thousand steps in float64."""
_FINAL_FRACTION = 0.01


@dataclass(frozen=True)
class FFMConfig(MemoryConfig):
    """Configuration of `FFM`. Raises ValueError on an invalid size."""

    paper_values = SAME_AS_PAPER

    trace_size: int | None = None
    """Number of traces, each with its own decay rate; by default an eighth of `dim`, at least 2."""
    context_size: int = 4
    """Number of oscillation frequencies (contexts) per trace."""
    max_period: int = 1024
    """Longest oscillation period at initialization, in steps. Before training, the slowest trace decays to
    0.01 of its value over this period."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("trace_size", "context_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")
        if self.max_period < 8:
            raise ValueError(f"max_period={self.max_period}: must be at least 8 steps")

    @property
    def traces(self) -> int:
        """Number of traces of the input."""
        return max(2, self.dim // 8) if self.trace_size is None else self.trace_size

    def build(self) -> FFM:
        """Return a newly initialized memory."""
        return FFM(self)


class FFM(ScanMemory[Tensor]):
    """One layer of decaying, oscillating traces with a gated output.

    State: `hidden` `[batch, traces, contexts, 2]`, real and imaginary parts of every trace in every context.
    """

    def __init__(self, config: FFMConfig) -> None:
        traces, contexts = config.traces, config.context_size
        super().__init__(config, (traces, contexts, 2), pairs=True)
        rates = _linspace(FASTEST - 0.01, -math.log(_FINAL_FRACTION) / config.max_period, traces)
        self.rate = nn.Parameter(torch.logit(rates / FASTEST))
        self.frequency = nn.Parameter(2 * math.pi / _linspace(1, config.max_period, contexts))
        self.sizes = [traces, traces, self.dim, self.dim]
        self.inward = nn.Linear(self.dim, sum(self.sizes))
        self.mix = nn.Linear(2 * traces * contexts, self.dim)

    def fold_weights(self) -> Float[Tensor, "traces contexts 2"]:
        """Return the complex decay factors exp(-a + i w), for decay rates a and frequencies w."""
        dtype = self.state_dtype
        modulus = torch.exp(-FASTEST * self.rate.to(dtype).sigmoid())
        frequency = self.frequency.to(dtype)
        return modulus[:, None, None] * torch.stack([frequency.cos(), frequency.sin()], dim=-1)

    def write(self, x: Float[Tensor, "*batch dim"], weights: Tensor) -> ScanUpdate:
        """Return the decays and the inputs of the traces. All contexts of a trace have the same input."""
        trace, input_gate, skip, gate = self.inward(x).split(self.sizes, dim=-1)
        trace = (trace * input_gate.sigmoid()).to(self.state_dtype)
        value = functional.pad(trace[..., None, None].expand(*trace.shape, self.shape[1], 1), (0, 1))
        return ScanUpdate(weights, value, (x, skip, gate))

    def read(
        self, hidden: Tensor, read_inputs: tuple[Tensor, ...], weights: Tensor
    ) -> Float[Tensor, "*batch dim"]:
        """Return the outputs: the gate mixes the skip connection and a projection of the state."""
        x, skip, gate = read_inputs
        mixture = self.mix(hidden.flatten(-3).to(self.mix.weight.dtype))
        normed_mixture = functional.layer_norm(mixture, mixture.shape[-1:]).to(skip.dtype)
        return torch.lerp(skip, normed_mixture, gate.sigmoid()).to(x.dtype)


def _linspace(first: float, last: float, count: int) -> Float[Tensor, " count"]:
    """Return `torch.linspace(first, last, count)` on the default device.

    `torch.linspace` itself would use the CPU once Hugging Face transformers has loaded a model.
    """
    return first + (last - first) / max(count - 1, 1) * torch.arange(count)
