"""AGaLiTe: a gated transformer whose attention is approximated by channels that turn at a few frequencies.

Pramanik et al. 2023 (arXiv 2310.15719, sections 3 and 4). Per head, with c1, c2 and c3 of H numbers each,
gates b = σ(.) of values and g = σ(.) ⊗ σ(c3) of keys, features k = relu(.) ⊗ relu(c1) and q = relu(.) ⊗
relu(c2), and t the step's number in its episode from 1, for each of r frequencies w from -pi to pi:

    K_w = (1 - g) K_w + g k cos(w t),    V_w = (1 - b) V_w + b v cos(w t),    s = (1 - g) s + g k,
    y = sum_w V_w (K_w . q) / (2 r s . q + 1e-3).

Sublayers are normed before and gated after, as those of `memory/gtrxl.py`.

Where it differs: t counts from each `start`; the published code never puts it back, so that an episode
depends on how long the one before it was. A frequency and its negative are kept once, for their cosines are
the same: of the published r = 2 there is one, at which signs alternate. Cosines are those of whole numbers
modulo 2 (r - 1), by which they repeat, and so are the same after a million steps. What is divided by has
1e-3 added to it, not 1e-5: where queries hardly meet a key, gradients would be those of rounding. This is one
layer, of which the published have four: `stack` puts them one after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import scan
from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.parts.gate import Gate
from scrubjay.memory.parts.window import resolve_heads

# Where a query meets no key, little is read, and its rounding must stay so.
_EPSILON = 1e-3
# No weight is as large as their number, so that nothing else tells how much room they may take.
_MOST_FREQUENCIES = 1024


@dataclass(frozen=True)
class AGaLiTeConfig(MemoryConfig):
    """Sizes of `AGaLiTe`. Raises ValueError on one that cannot work."""

    num_heads: int | None = None
    """Heads, a divisor of `dim`; by default the largest one up to 4."""
    num_features: int = 4
    """By how much keys are wider than heads."""
    num_frequencies: int = 2
    """Frequencies from -pi to pi, of which a negative costs nothing."""
    feed_forward_ratio: int = 1
    """Width of the feed-forward layer's hidden part, in units of `dim`."""
    gate_bias: float = 2.0
    """Initial bias of the gates: the larger, the nearer to the identity a new layer is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        resolve_heads(self.dim, self.num_heads)
        for name in ("num_features", "num_frequencies", "feed_forward_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.num_frequencies > _MOST_FREQUENCIES:
            raise ValueError(f"num_frequencies={self.num_frequencies}: must be at most {_MOST_FREQUENCIES}")
        if not math.isfinite(self.gate_bias):
            raise ValueError(f"gate_bias={self.gate_bias}: must be finite")

    def build(self) -> AGaLiTe:
        """Return a freshly initialised memory of these sizes."""
        return AGaLiTe(self)


class Written(NamedTuple):
    """What inputs do to the state, F its frequencies and E the width of keys, and how they read it."""

    key_decay: Float[Tensor, "*batch 1 heads E"]
    keys: Float[Tensor, "*batch F+1 heads E"]
    value_decay: Float[Tensor, "*batch 1 heads width"]
    values: Float[Tensor, "*batch F heads width"]
    query: Float[Tensor, "*batch 1 heads E"]


class AGaLiTe(Memory):
    """One layer of approximate gated linear attention, and feed-forward, both gated.

    State: `keys` `[batch, 1 + frequencies, heads, features * width]`, s and then K, `values` `[batch,
    frequencies, heads, width]`, V, and `time` `[batch]`, the steps of the episode.
    """

    multiples: Tensor
    counts: Tensor

    def __init__(self, config: AGaLiTeConfig) -> None:
        super().__init__(config)
        dim, hidden = config.dim, config.feed_forward_ratio * config.dim
        self.heads, self.features = resolve_heads(dim, config.num_heads), config.num_features
        self.width, self.frequencies = dim // self.heads, config.num_frequencies
        # In units of pi / halves, without signs: a single frequency is -pi, and in the middle may be one 0.
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
        """Return empty sums and the age 0 of each row's episode."""
        count, wide = len(self.multiples), self.features * self.width
        shapes = {"keys": (count + 1, self.heads, wide), "values": (count, self.heads, self.width)}
        given = {"dtype": self.state_dtype, "device": self.device}
        state = {name: torch.zeros(batch_size, *shape, **given) for name, shape in shapes.items()}
        return state | {"time": torch.zeros(batch_size, dtype=torch.int64, device=self.device)}

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance every row by one input."""
        now = self._write(x, state["time"])
        keys = torch.addcmul(now.keys, now.key_decay, state["keys"])
        values = torch.addcmul(now.values, now.value_decay, state["values"])
        after = {"keys": keys, "values": values, "time": state["time"] + 1}
        return self._finish(x, self._read(keys, values, now)), after

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment."""
        clock = Clock.of(state["time"], start)
        now = self._write(x, clock.step)
        keys, _ = scan(now.key_decay.expand_as(now.keys), now.keys, state["keys"], start=start)
        values, _ = scan(now.value_decay.expand_as(now.values), now.values, state["values"], start=start)
        after = {"keys": keys[:, -1].clone(), "values": values[:, -1].clone(), "time": clock.after}
        return self._finish(x, self._read(keys, values, now)), after

    def _write(self, x: Float[Tensor, "*batch dim"], time: Int[Tensor, "*batch"]) -> Written:
        dtype, normed = self.state_dtype, self.attention_norm(x)
        parts = self.project_in(normed).to(dtype).unflatten(-1, (self.heads, 5, self.width))
        key, query, value, value_gate, key_gate = parts.unbind(-2)
        features = self.project_features(normed).to(dtype).unflatten(-1, (self.heads, 3, self.features))
        of_key, of_query, of_gate = features.unbind(-2)
        key, query = _outer(of_key.relu(), key.relu()), _outer(of_query.relu(), query.relu())
        key_gate, value_gate = _outer(of_gate.sigmoid(), key_gate.sigmoid()), value_gate.sigmoid()
        turned = self._cosines(time + 1)[..., None, None]
        keys = (key_gate * key)[..., None, :, :] * functional.pad(turned, (0, 0, 0, 0, 1, 0), value=1.0)
        values = (value_gate * value)[..., None, :, :] * turned
        key_decay, value_decay = (1 - gate[..., None, :, :] for gate in (key_gate, value_gate))
        return Written(key_decay, keys, value_decay, values, query[..., None, :, :])

    def _cosines(self, time: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch frequencies"]:
        place = time[..., None] * self.multiples % (2 * self.halves)
        return torch.cos(place.to(self.state_dtype) * (math.pi / self.halves))

    def _read(self, keys: Tensor, values: Tensor, now: Written) -> Float[Tensor, "*batch dim"]:
        met = (keys * now.query).sum(-1, keepdim=True)
        weights = met[..., 1:, :, :] * self.counts[:, None, None]
        y = (values * weights).sum(-3) / (2 * self.frequencies * met[..., 0, :, :] + _EPSILON)
        return y.flatten(-2)

    def _finish(self, x: Tensor, read: Tensor) -> Tensor:
        out = self.project_out(read.to(self.project_out.weight.dtype))
        x = self.attention_gate(x, out.relu())
        return self.feed_forward_gate(x, self.feed_forward(x))


def _outer(x: Float[Tensor, "*batch features"], y: Float[Tensor, "*batch width"]) -> Tensor:
    """Return products of all pairs, `[*batch, features * width]`."""
    return (x[..., :, None] * y[..., None, :]).flatten(-2)
