"""Fast and forgetful memory: every trace of the input fades at rates and turns at frequencies of its own.

Morad et al. 2023 (arXiv 2310.04128, section 4), for trace m and context c:

    S_t[m, c] = exp(-a_m + i w_c) S_{t-1}[m, c] + x'_t[m],    x'_t = (U x_t) σ(U' x_t),
    y_t = σ(G x_t) LN(M [Re S_t, Im S_t]) + (1 - σ(G x_t)) (R x_t).

The a tell how long ago something was, the w when. At first a go from what is forgotten at once to what is a
hundredth after `max_period` steps, and periods 2 pi / w from 1 to `max_period`; both are learned.

Where it differs: a is .683 σ(p), so that it never leaves the range into which the published code clips it
after the fact, where its gradient ends; that range is kept, though `kernels.scan` would need none. The
published code takes single steps by rates that may not be clipped yet, which breaks the first law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.scan.recurrence import ScanMemory, Written

FASTEST = math.log(torch.finfo(torch.float64).max) / 1024 - 0.01
"""The rate that no trace reaches: the published scan divides by a thousand steps' decay in float64."""
_FORGOTTEN = 0.01


@dataclass(frozen=True)
class FFMConfig(MemoryConfig):
    """Sizes of `FFM`. Raises ValueError on one that cannot work."""

    trace_size: int | None = None
    """Traces of the input, each with its own rate; by default an eighth of `dim`, at least 2."""
    context_size: int = 4
    """Frequencies at which each trace turns."""
    max_period: int = 1024
    """Steps after which the slowest new trace is a hundredth, and of the slowest new turn."""

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
        """Traces of the input."""
        return max(2, self.dim // 8) if self.trace_size is None else self.trace_size

    def build(self) -> FFM:
        """Return a freshly initialised memory of these sizes."""
        return FFM(self)


class FFM(ScanMemory[Tensor]):
    """One layer of traces, mixed and gated.

    State: `hidden` `[batch, traces, contexts, 2]`, real and imaginary parts of S.
    """

    def __init__(self, config: FFMConfig) -> None:
        traces, contexts = config.traces, config.context_size
        super().__init__(config, (traces, contexts, 2), pairs=True)
        rates = _evenly(FASTEST - 0.01, -math.log(_FORGOTTEN) / config.max_period, traces)
        self.rate = nn.Parameter(torch.logit(rates / FASTEST))
        self.frequency = nn.Parameter(2 * math.pi / _evenly(1, config.max_period, contexts))
        self.sizes = [traces, traces, self.dim, self.dim]
        self.inward = nn.Linear(self.dim, sum(self.sizes))
        self.mix = nn.Linear(2 * traces * contexts, self.dim)

    def folded(self) -> Float[Tensor, "traces contexts 2"]:
        """Return exp(-a + i w)."""
        dtype = self.state_dtype
        kept = torch.exp(-FASTEST * self.rate.to(dtype).sigmoid())
        frequency = self.frequency.to(dtype)
        return kept[:, None, None] * torch.stack([frequency.cos(), frequency.sin()], dim=-1)

    def write(self, x: Float[Tensor, "*batch dim"], weights: Tensor) -> Written:
        """Return traces of x, the same for every context."""
        trace, opened, through, gate = self.inward(x).split(self.sizes, dim=-1)
        trace = (trace * opened.sigmoid()).to(self.state_dtype)
        value = functional.pad(trace[..., None, None].expand(*trace.shape, self.shape[1], 1), (0, 1))
        return Written(weights, value, (x, through, gate))

    def read(self, hidden: Tensor, aside: tuple[Tensor, ...], weights: Tensor) -> Float[Tensor, "*batch dim"]:
        """Return the mixed state as far as the gate is open, else what passes by."""
        x, through, gate = aside
        mixed = self.mix(hidden.flatten(-3).to(self.mix.weight.dtype))
        normed = functional.layer_norm(mixed, mixed.shape[-1:]).to(through.dtype)
        return torch.lerp(through, normed, gate.sigmoid()).to(x.dtype)


def _evenly(first: float, last: float, count: int) -> Float[Tensor, " count"]:
    """Return `torch.linspace(first, last, count)`.

    Which, where transformers has loaded a model before, is on no device but the CPU.
    """
    return first + (last - first) / max(count - 1, 1) * torch.arange(count)
