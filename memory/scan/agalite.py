"""AGaLiTe: gated transformer layer whose linear attention is approximated with a few oscillating channels.

Pramanik et al. 2023 (arXiv 2310.15719, sections 3 and 4). For every step, each head computes three vectors
c1, c2 and c3 with `num_features` coordinates. The gate of the value v is b = σ(.), and the gate of the key is
g = σ(.) ⊗ σ(c3). Key features are k = relu(.) ⊗ relu(c1), and query features are q = relu(.) ⊗ relu(c2). Each
dot is a different linear function of the input. t is the number of the step in its episode, from 1. K_w, V_w
and s are the state, with a K_w and a V_w for each of r frequencies w from -pi to pi. y is the output:

    K_w = (1 - g) K_w + g k cos(w t),    V_w = (1 - b) V_w + b v cos(w t),    s = (1 - g) s + g k,
    y = sum_w V_w (K_w . q) / (2 r s . q + e),

where e is `epsilon`.

Each sublayer comes after a layer norm and before a gate, as in `memory/gtrxl.py`.

Differences from the published code: t restarts at each `start`. The published code never resets t, so its
outputs depend on the length of earlier episodes. A frequency and its negative share one channel, because
their cosines are equal. The published r = 2 therefore needs one channel, whose sign alternates. Cosines are
computed from integers modulo their period 2 (r - 1), so they stay exact after a million steps. e is 1e-3
instead of 1e-5. With 1e-5, rounding errors dominate the gradients where queries barely match a key.
`make("agalite", paper=True)` uses 1e-5. This module is one layer. The published models have four layers,
which `stack` provides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import scan
from scrubjay.memory.contract.base import Memory, MemoryConfig, PaperValues, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.gate import Gate
from scrubjay.memory.parts.window import resolve_heads

# Bounds the state size: no parameter grows with the number of frequencies, so no other check limits it.
_MOST_FREQUENCIES = 1024


@dataclass(frozen=True)
class AGaLiTeConfig(MemoryConfig):
    """Configuration of `AGaLiTe`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {"epsilon": 1e-5}

    num_heads: int | None = None
    """Attention heads. The number must divide `dim`. Default: the largest divisor of `dim` up to 4."""
    num_features: int = 4
    """Width of the key features, in units of a head's width."""
    num_frequencies: int = 2
    """Number of frequencies from -pi to pi; a frequency and its negative share one channel."""
    feed_forward_ratio: int = 1
    """Hidden width of the feed-forward block, in units of `dim`."""
    gate_bias: float = 2.0
    """Initial bias of the gates. With a larger bias, a new layer is closer to the identity."""
    epsilon: float = 1e-3
    """Number in the denominator of the output. Outputs are small where a query matches no key, and a smaller
    number amplifies their rounding errors more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_heads(self.dim, self.num_heads)
        self.check_positive("num_features", "num_frequencies", "feed_forward_ratio")
        self.check_above_zero("epsilon")
        if self.num_frequencies > _MOST_FREQUENCIES:
            raise ValueError(f"num_frequencies={self.num_frequencies}: must be at most {_MOST_FREQUENCIES}")
        if not math.isfinite(self.gate_bias):
            raise ValueError(f"gate_bias={self.gate_bias}: must be finite")

    def build(self) -> AGaLiTe:
        """Return a newly initialized memory."""
        return AGaLiTe(self)


class AGaLiTeUpdate(NamedTuple):
    """State update and query of each input; F is the number of channels, E the width of key features."""

    key_decay: Float[Tensor, "*batch 1 heads E"]
    keys: Float[Tensor, "*batch F+1 heads E"]
    value_decay: Float[Tensor, "*batch 1 heads width"]
    values: Float[Tensor, "*batch F heads width"]
    query: Float[Tensor, "*batch 1 heads E"]


class AGaLiTe(Memory):
    """One layer of approximate gated linear attention and feed-forward, both gated.

    State, with the symbols of the module's docstring: `keys` `[batch, 1 + channels, heads, features * width]`
    holds s, followed by K. `values` `[batch, channels, heads, width]` holds V. `time` `[batch]` is the number
    of steps in the episode. A channel is a frequency together with its negative.
    """

    multiples: Tensor
    counts: Tensor

    def __init__(self, config: AGaLiTeConfig) -> None:
        super().__init__(config)
        dim, hidden = config.dim, config.feed_forward_ratio * config.dim
        self.heads, self.features = resolve_heads(dim, config.num_heads), config.num_features
        self.width, self.frequencies = dim // self.heads, config.num_frequencies
        self.epsilon = config.epsilon
        # Absolute frequencies in units of pi / halves: a single frequency is -pi, and the middle one may be
        # 0.
        self.halves = max(1, self.frequencies - 1)
        multiples = range(self.halves, -1, -2)
        counts = [2 if multiple and self.frequencies > 1 else 1 for multiple in multiples]
        self.register_buffer("multiples", torch.tensor(multiples), persistent=False)
        self.register_buffer("counts", torch.tensor(counts), persistent=False)
        self.attention_norm = nn.LayerNorm(dim)
        self.project_in = nn.Linear(dim, 5 * dim)
        self.project_features = nn.Linear(dim, 3 * self.heads * self.features)
        self.project_out = nn.Linear(dim, dim)
        self.attention_gate = Gate(dim, config.gate_bias)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim), nn.ReLU()
        )
        self.feed_forward_gate = Gate(dim, config.gate_bias)

    def initial_state(self, batch_size: int) -> State:
        """Return zero sums and step count 0 for every row."""
        count, wide = len(self.multiples), self.features * self.width
        shapes = {"keys": (count + 1, self.heads, wide), "values": (count, self.heads, self.width)}
        options = {"dtype": self.state_dtype, "device": self.device}
        state = {name: torch.zeros(batch_size, *shape, **options) for name, shape in shapes.items()}
        return state | {"time": torch.zeros(batch_size, dtype=torch.int64, device=self.device)}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Process one step of every row."""
        update = self._write(x, state["time"])
        keys = torch.addcmul(update.keys, update.key_decay, state["keys"])
        values = torch.addcmul(update.values, update.value_decay, state["values"])
        after = {"keys": keys, "values": values, "time": state["time"] + 1}
        return self._finish(x, self._read(keys, values, update)), after

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment of every row."""
        clock = Clock.from_starts(state["time"], start)
        update = self._write(x, clock.step)
        keys, _ = scan(update.key_decay.expand_as(update.keys), update.keys, state["keys"], start=start)
        values, _ = scan(
            update.value_decay.expand_as(update.values), update.values, state["values"], start=start
        )
        after = {"keys": keys[:, -1].clone(), "values": values[:, -1].clone(), "time": clock.age_after}
        return self._finish(x, self._read(keys, values, update)), after

    def _write(self, x: Float[Tensor, "*batch dim"], time: Int[Tensor, "*batch"]) -> AGaLiTeUpdate:
        dtype, normed_x = self.state_dtype, self.attention_norm(x)
        parts = self.project_in(normed_x).to(dtype).unflatten(-1, (self.heads, 5, self.width))
        key, query, value, value_gate, key_gate = parts.unbind(-2)
        features = self.project_features(normed_x).to(dtype).unflatten(-1, (self.heads, 3, self.features))
        key_features, query_features, gate_features = features.unbind(-2)
        key, query = _outer(key_features.relu(), key.relu()), _outer(query_features.relu(), query.relu())
        key_gate, value_gate = _outer(gate_features.sigmoid(), key_gate.sigmoid()), value_gate.sigmoid()
        cosines = self._cosines(time + 1)[..., None, None]
        keys = (key_gate * key)[..., None, :, :] * functional.pad(cosines, (0, 0, 0, 0, 1, 0), value=1.0)
        values = (value_gate * value)[..., None, :, :] * cosines
        key_decay, value_decay = (1 - gate[..., None, :, :] for gate in (key_gate, value_gate))
        return AGaLiTeUpdate(key_decay, keys, value_decay, values, query[..., None, :, :])

    def _cosines(self, time: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch frequencies"]:
        phase = time[..., None] * self.multiples % (2 * self.halves)
        return torch.cos(phase.to(self.state_dtype) * (math.pi / self.halves))

    def _read(self, keys: Tensor, values: Tensor, update: AGaLiTeUpdate) -> Float[Tensor, "*batch dim"]:
        scores = (keys * update.query).sum(-1, keepdim=True)
        weights = scores[..., 1:, :, :] * self.counts[:, None, None]
        y = (values * weights).sum(-3) / (2 * self.frequencies * scores[..., 0, :, :] + self.epsilon)
        return y.flatten(-2)

    def _finish(self, x: Tensor, read: Tensor) -> Tensor:
        out = self.project_out(read.to(self.project_out.weight.dtype))
        x = self.attention_gate(x, out.relu())
        return self.feed_forward_gate(x, self.feed_forward(x))


def _outer(x: Float[Tensor, "*batch features"], y: Float[Tensor, "*batch width"]) -> Tensor:
    """Return the outer product of `x` and `y`, flattened to `[*batch, features * width]`."""
    return (x[..., :, None] * y[..., None, :]).flatten(-2)
