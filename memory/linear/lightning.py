"""Lightning Attention: a matrix per head that fades at a rate of its own, fixed for head and layer.

Qin et al. 2023 (TransNormerLLM, arXiv 2307.14995, section 3.1) and 2024 (Lightning Attention-2, arXiv
2401.04658, equation 8), for head h of H from 0 and layer l of L from 0:

    S_t = exp(-(8 h / H) (1 - l / L)) S_{t-1} + k_t v_t^T,    y_t = S_t^T q_t,

which is `kernels.linear_memory` with steps of one. Queries and keys pass SiLU. What is read is divided by its
root mean square (SRMSNorm, which has no weights, as all norms here), multiplied by U x and projected; the
feed-forward part is W (V x * U x), gated and without another nonlinearity (SGLU).

Where it differs: heads are counted from 0, as in other implementations, so that one of each layer never
fades, where the paper's run from 1; what is read is normed by heads, not as a whole, in which the head that
never fades would drown the others. `slopes="geometric"` are those of the published models, 2^(-8 h / H) for
8 h / H with h from 1, which reach from a few steps to 256 in the first layer. The learned rotary positions
of the first layer (LRPE) are left out: the decays tell distances, and a memory has no number of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import linear_memory, linear_memory_step
from scrubjay.memory.contract.base import MemoryConfig, State
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.linear.layered import LayeredMemory
from scrubjay.memory.linear.stepping import MatrixStepper
from scrubjay.memory.parts.window import resolve_heads

_EPSILON = 1e-6
# Where a query meets no key, little is read, and its rounding must stay so.
_READ_EPSILON = 1e-4


@dataclass(frozen=True)
class LightningConfig(MemoryConfig):
    """Sizes of `Lightning`. Raises ValueError on one that cannot work."""

    num_layers: int = 2
    """Layers, each with a memory of its own; the later, the slower it fades."""
    num_heads: int | None = None
    """Matrices of a layer, each with a decay of its own; by default as many as divide `dim`, up to 4."""
    slopes: Literal["linear", "geometric"] = "linear"
    """How decays of heads follow each other: as the equation has them, or the published models."""
    feed_forward_ratio: int = 2
    """Width of the feed-forward part's hidden layer, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_layers", "feed_forward_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.slopes not in ("linear", "geometric"):
            raise ValueError(f"slopes={self.slopes!r}; choose from linear, geometric")
        resolve_heads(self.dim, self.num_heads)

    @property
    def heads(self) -> int:
        """Matrices of a layer."""
        return resolve_heads(self.dim, self.num_heads)

    def log_decays(self, layer: int) -> list[float]:
        """Return the logarithm of what each head of a layer keeps from one step to the next."""
        slower, heads = 1 - layer / self.num_layers, self.heads
        if self.slopes == "linear":
            return [-8 * head / heads * slower for head in range(heads)]
        return [-(2.0 ** (-8 * (head + 1) / heads)) * slower for head in range(heads)]

    def build(self) -> Lightning:
        """Return a freshly initialised memory of these sizes."""
        return Lightning(self)


class Lightning(LayeredMemory["LightningLayer"]):
    """Layers of linear attention that fades by head and layer, and gated feed-forward.

    State: that of `LightningLayer` for every layer l, names followed by `_l`.
    """

    def __init__(self, config: LightningConfig) -> None:
        super().__init__(config, [LightningLayer(config, index) for index in range(config.num_layers)])

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows in place."""
        if not self.steps_as(Lightning, state):
            return super().stepper(state)
        return MatrixStepper(self.layers, state)


class Tokens(NamedTuple):
    """What a step or a segment is to the kernel."""

    query: Float[Tensor, "*batch heads width"]
    key: Float[Tensor, "*batch heads width"]
    value: Float[Tensor, "*batch heads width"]
    log_decay: Float[Tensor, "*batch heads"]
    step: Float[Tensor, "*batch heads"]


class LightningLayer(nn.Module):
    """A memory and a feed-forward part, both on a normed input with a plain residual.

    State: `matrix` `[batch, heads, width, width]`.
    """

    log_decay: Tensor

    def __init__(self, config: LightningConfig, index: int) -> None:
        super().__init__()
        dim, self.heads = config.dim, config.heads
        self.hidden = config.feed_forward_ratio * dim
        self.register_buffer("log_decay", torch.tensor(config.log_decays(index)), persistent=False)
        self.project_in = nn.Linear(dim, 4 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.feed_in = nn.Linear(dim, 2 * self.hidden, bias=False)
        self.feed_out = nn.Linear(self.hidden, dim, bias=False)

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the state of a layer that knows nothing."""
        width = self.out.in_features // self.heads
        shape = (batch_size, self.heads, width, width)
        return {"matrix": torch.zeros(shape, dtype=dtype, device=self.out.weight.device)}

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, out: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one input and the state after, its matrix in `out` if that is given."""
        tokens, gate = self._tokens(x, state["matrix"].dtype)
        y, matrix = linear_memory_step(*tokens, state["matrix"], rule="hebbian", out=out)
        return self._finish(x, gate, y), {"matrix": matrix}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the state after."""
        tokens, gate = self._tokens(x, state["matrix"].dtype)
        y, matrix = linear_memory(*tokens, state["matrix"], rule="hebbian", start=start)
        return self._finish(x, gate, y), {"matrix": matrix}

    def _tokens(self, x: Float[Tensor, "*batch dim"], dtype: torch.dtype) -> tuple[Tokens, Tensor]:
        *parts, gate = self.project_in(unscaled(x, _EPSILON)).chunk(4, dim=-1)
        query, key, value = (part.to(dtype).unflatten(-1, (self.heads, -1)) for part in parts)
        log_decay = self.log_decay.to(dtype).expand(query.shape[:-1])
        tokens = Tokens(
            functional.silu(query), functional.silu(key), value, log_decay, torch.ones_like(log_decay)
        )
        return tokens, gate

    def _finish(self, x: Tensor, gate: Tensor, y: Float[Tensor, "*batch heads width"]) -> Tensor:
        y = unscaled(y, _READ_EPSILON).flatten(-2).to(self.out.weight.dtype)
        x = x + self.out(y * gate)
        value, gate = self.feed_in(unscaled(x, _EPSILON)).chunk(2, dim=-1)
        return x + self.feed_out(value * gate)


def unscaled(x: Float[Tensor, "*batch dim"], epsilon: float) -> Float[Tensor, "*batch dim"]:
    """Return `x` over its root mean square: SRMSNorm."""
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + epsilon)
