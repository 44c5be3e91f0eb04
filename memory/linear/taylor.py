"""Linear attention that compares by the exponential's series up to the second order: BASED's linear part.

Arora et al. 2024 (arXiv 2402.18668, section 4.1). With s = q . k / sqrt(d) and features phi of which
phi(q) . phi(k) = 1 + s + s^2 / 2, which is at least 1/2,

    y_t = (sum of phi(q_t) . phi(k_i) v_i, i up to t) / (sum of phi(q_t) . phi(k_i) + 1e-6),

by `kernels.linear_memory` with the rule "hebbian", steps of one and no decay; a column of ones behind the
values is the denominator.

Where it differs: products of features are kept once, not twice (`memory/linear/features.py`); the
feed-forward part has GELU and no gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.kernels import linear_memory, linear_memory_step
from scrubjay.memory.contract.base import MemoryConfig, State
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.linear.features import Taylor
from scrubjay.memory.linear.layered import LayeredMemory, count_heads
from scrubjay.memory.linear.stepping import MatrixStepper
from scrubjay.memory.parts.feed_forward import feed_forward

_EPSILON = 1e-6


@dataclass(frozen=True)
class TaylorConfig(MemoryConfig):
    """Sizes of `TaylorMemory`, the linear part. Raises ValueError on one that cannot work."""

    num_heads: int | None = None
    """Matrices; by default as few as make heads of 8 to 64, else 1."""
    feature_width: int = 16
    """Width d of a head's queries and keys, of which 1 + 2 d + d (d - 1) / 2 features are made."""
    feed_forward_ratio: int = 2
    """Width of the feed-forward part's hidden layer, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("feature_width", "feed_forward_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        count_heads(self.dim, self.num_heads)

    def build(self) -> TaylorMemory:
        """Return a freshly initialised memory of these sizes."""
        return TaylorMemory(self)


class TaylorMemory(LayeredMemory["TaylorLayer"]):
    """One layer of linear attention with features of the second order, and feed-forward.

    State: that of `TaylorLayer`, names followed by `_0`.
    """

    def __init__(self, config: TaylorConfig) -> None:
        super().__init__(config, [TaylorLayer(config)])

    def stepper(self, state: State) -> Stepper:
        """Return what advances these rows in place."""
        if not self.steps_as(TaylorMemory, state):
            return super().stepper(state)
        return MatrixStepper(self.layers, state)


class Tokens(NamedTuple):
    """What a step or a segment is to the kernel."""

    query: Float[Tensor, "*batch heads features"]
    key: Float[Tensor, "*batch heads features"]
    value: Float[Tensor, "*batch heads wider"]
    log_decay: Float[Tensor, "*batch heads"]
    step: Float[Tensor, "*batch heads"]


class TaylorLayer(nn.Module):
    """A memory and a feed-forward part, both on a normed input with a plain residual.

    State: `matrix` `[batch, heads, features, width + 1]`, sums of features times values and one.
    """

    def __init__(self, config: TaylorConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.feed_forward_ratio * config.dim
        self.heads = count_heads(dim, config.num_heads)
        self.width = dim // self.heads
        self.features = Taylor(config.feature_width)
        self.norm = nn.LayerNorm(dim)
        self.compared = nn.Linear(dim, 2 * self.heads * config.feature_width, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.feed_forward = feed_forward(dim, hidden)

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the state of a layer that knows nothing."""
        shape = (batch_size, self.heads, self.features.count, self.width + 1)
        return {"matrix": torch.zeros(shape, dtype=dtype, device=self.out.weight.device)}

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, out: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one input and the state after, its matrix in `out` if that is given."""
        tokens = self._tokens(x, state["matrix"].dtype)
        y, matrix = linear_memory_step(*tokens, state["matrix"], rule="hebbian", out=out)
        return self._finish(x, y), {"matrix": matrix}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the state after."""
        tokens = self._tokens(x, state["matrix"].dtype)
        y, matrix = linear_memory(*tokens, state["matrix"], rule="hebbian", start=start)
        return self._finish(x, y), {"matrix": matrix}

    def _tokens(self, x: Float[Tensor, "*batch dim"], dtype: torch.dtype) -> Tokens:
        normed = self.norm(x)
        compared = self.compared(normed).to(dtype).unflatten(-1, (2, self.heads, -1))
        query, key = self.features(compared).unbind(-3)
        value = self.value(normed).to(dtype).unflatten(-1, (self.heads, self.width))
        value = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
        ones = torch.ones_like(query[..., 0])
        return Tokens(query, key, value, torch.zeros_like(ones), ones)

    def _finish(self, x: Tensor, y: Float[Tensor, "*batch heads wider"]) -> Tensor:
        y = (y[..., :-1] / (y[..., -1:] + _EPSILON)).flatten(-2)
        x = x + self.out(y.to(self.out.weight.dtype))
        return x + self.feed_forward(x)
