"""RWKV-7 "Goose": a matrix per head with a decay per channel, whose erase key is not its write key.

Peng et al. 2025 (arXiv 2503.14456, section 4). With the matrix S, decay w, erase key e of unit length, rate a
of erasure, key k, value v and receptance r of a head (w, e, a, k and r are vectors of its channels),

    S_t = diag(w_t) S_{t-1} - (a_t * e_t) (S_{t-1}^T e_t)^T + k_t v_t^T,    y_t = S_t^T r_t.

All of these are linear maps or low-rank networks of the layer's input x_t, blended with x_{t-1} by one
learned weight per channel and map (token shift). The decay is exp(-exp(-0.5) sigmoid(.)), so it is at least
0.545. y is normalized per head. Then (sum over channels of r_t * k_t * u) v_t is added for a learned u, and
the result is gated and projected. The second half of a layer is a feed-forward block with token shift and
squared ReLU.

A step is two tokens of `kernels.linear_memory` with the rule "delta": one with the write key a * e, the erase
key e / w and no value, and one with the key k and no erase key.

Differences from the published code: layers above the first do not blend their values with those of the first
layer. `out` is not zero at initialization, so that a policy uses its memory from the first update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import linear_memory, linear_memory_step
from scrubjay.memory.contract.base import SAME_AS_PAPER, MemoryConfig, State
from scrubjay.memory.linear.layers import LayeredMemory
from scrubjay.memory.parts.layers import normalize_vectors
from scrubjay.memory.parts.window import count_heads

_LEAST_LOG_DECAY = -math.exp(-0.5)
_SHIFTS = ("receptance", "decay", "key", "value", "rate", "gate")


@dataclass(frozen=True)
class RWKV7Config(MemoryConfig):
    """Configuration of `RWKV7`. Raises ValueError on an invalid value."""

    paper_values = SAME_AS_PAPER

    num_layers: int = 1
    """Number of layers, each with its own memory."""
    num_heads: int | None = None
    """Heads per layer. Default: the smallest number whose heads are 8 to 64 wide; 1 if there is none."""
    rank: int = 32
    """Width of the hidden layer of the networks of decay, rate and gate."""
    feed_forward_ratio: int = 4
    """Hidden width of the feed-forward block, in units of `dim`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("num_layers", "rank", "feed_forward_ratio")
        count_heads(self.dim, self.num_heads)

    def build(self) -> RWKV7:
        """Return a newly initialized memory."""
        return RWKV7(self)


class RWKV7Token(NamedTuple):
    """Inputs of `kernels.linear_memory` for one of the two tokens of each step."""

    query: Float[Tensor, "*batch heads width"]
    key: Float[Tensor, "*batch heads width"]
    value: Float[Tensor, "*batch heads width"]
    log_decay: Float[Tensor, "*batch heads width"]
    step: Float[Tensor, "*batch heads"]
    erase_key: Float[Tensor, "*batch heads width"]


class RWKV7Layer(nn.Module):
    """Time mixing and channel mixing, both pre-norm with a residual connection.

    State: `matrix` `[batch, heads, width, width]` is the memory of each head. `shift` `[batch, 2, dim]` holds
    the inputs of both halves at the previous step, after their layer norms.
    """

    def __init__(self, config: RWKV7Config, index: int) -> None:
        super().__init__()
        dim, heads = config.dim, count_heads(config.dim, config.num_heads)
        self.heads, self.width = heads, dim // heads
        self.norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        channel = torch.arange(dim) / dim
        depth = 1 - index / config.num_layers
        powers = {"receptance": 0.2, "decay": 0.9, "key": 0.7, "value": 0.7, "rate": 0.9, "gate": 0.2}
        self.shift = nn.Parameter(torch.stack([1 - channel ** (powers[name] * depth) for name in _SHIFTS]))
        self.feed_shift = nn.Parameter(1 - channel**depth**4)
        self.receptance, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.decay = _low_rank(dim, config.rank, nn.Tanh())
        self.rate = _low_rank(dim, config.rank, nn.Identity())
        self.gate = _low_rank(dim, config.rank, nn.Sigmoid(), bias=False)
        self.erase_scale = nn.Parameter(torch.full((dim,), 0.71))
        self.rate_in_key = nn.Parameter(torch.full((dim,), 1.02))
        self.bonus = nn.Parameter(torch.full((heads, self.width), -0.04))
        self.out_norm = nn.LayerNorm(dim, eps=self.width * 1e-5)
        self.feed_in = nn.Linear(dim, config.feed_forward_ratio * dim, bias=False)
        self.feed_out = nn.Linear(config.feed_forward_ratio * dim, dim, bias=False)
        with torch.no_grad():
            self.key.weight.mul_(0.1)
            bias = -6 + 6 * channel ** (1 + (1 - depth) ** 0.3) + 0.5
            cast("nn.Linear", self.decay[-1]).bias.copy_(bias)

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the initial state of the layer: zeros."""
        device = self.out.weight.device
        matrix = torch.zeros(batch_size, self.heads, self.width, self.width, dtype=dtype, device=device)
        return {"matrix": matrix, "shift": matrix.new_zeros(batch_size, 2, self.heads * self.width)}

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, out: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state.

        If `out` is a tensor, the new matrix is written to it in place.
        """
        start = torch.zeros_like(x[:, :1], dtype=torch.bool)
        h = self.norm(x[:, None])
        erasure, write, gate = self.project_tokens(h, _shift(h, state["shift"][:, 0], start), state)
        y, matrix = state["matrix"], state["matrix"]
        for tokens in (erasure, write):
            token = RWKV7Token(*(part[:, 0] for part in tokens))
            y, matrix = linear_memory_step(
                *token[:5], matrix, rule="delta", erase_key=token.erase_key, out=out
            )
        x, h_feed = self.finish(x[:, None], y[:, None], write, gate, state["shift"][:, 1], start)
        return x[:, 0], {"matrix": matrix, "shift": torch.cat([h, h_feed], dim=1).to(matrix.dtype)}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state."""
        h = self.norm(x)
        erasure, write, gate = self.project_tokens(h, _shift(h, state["shift"][:, 0], start), state)
        tokens = RWKV7Token(*map(_interleave, erasure, write))
        y, matrix = linear_memory(
            *tokens[:5],
            state["matrix"],
            rule="delta",
            erase_key=tokens.erase_key,
            start=_interleave(start, torch.zeros_like(start)),
        )
        x, h_feed = self.finish(x, y[:, 1::2], write, gate, state["shift"][:, 1], start)
        shift = torch.stack([h[:, -1], h_feed[:, -1]], dim=1).to(matrix.dtype)
        return x, {"matrix": matrix, "shift": shift}

    def project_tokens(
        self, h: Float[Tensor, "batch time dim"], before: Float[Tensor, "batch time dim"], state: State
    ) -> tuple[RWKV7Token, RWKV7Token, Float[Tensor, "batch time dim"]]:
        """Return the tokens that erase, the tokens that write, and the output gate.

        `h` are the normed inputs of the layer, and `before` those of the previous steps.
        """
        dtype = state["matrix"].dtype
        inputs = _blend(h[..., None, :], before[..., None, :], self.shift).unbind(-2)
        blends = dict(zip(_SHIFTS, inputs, strict=True))

        def heads(x: Tensor) -> Tensor:
            return x.to(dtype).unflatten(-1, (self.heads, self.width))

        receptance, value = heads(self.receptance(blends["receptance"])), heads(self.value(blends["value"]))
        log_decay = heads(_LEAST_LOG_DECAY * torch.sigmoid(self.decay(blends["decay"])))
        rate, key = torch.sigmoid(self.rate(blends["rate"])), self.key(blends["key"])
        erase_key = normalize_vectors(heads(key * self.erase_scale))
        key = heads(key * (1 + (rate - 1) * self.rate_in_key))
        zeros, ones = torch.zeros_like(key), torch.ones_like(key[..., 0])
        # The erase key reads the matrix before its decay, so it is divided by the decay.
        erasure = RWKV7Token(
            zeros, heads(rate) * erase_key, zeros, log_decay, ones, erase_key * (-log_decay).exp()
        )
        return erasure, RWKV7Token(receptance, key, value, zeros, ones, zeros), self.gate(blends["gate"])

    def finish(
        self, x: Tensor, y: Tensor, write: RWKV7Token, gate: Tensor, before: Tensor, start: Tensor
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time dim"]]:
        """Return the layer outputs, and the normed inputs of the feed-forward block.

        Args:
            x: Inputs of the layer.
            y: Outputs of the kernel.
            write: Tokens that write.
            gate: Output gate.
            before: Normed input of the feed-forward block at the step before the first.
            start: Mask of the steps that begin an episode.
        """
        weight, bias = self.out_norm.weight, self.out_norm.bias
        y = functional.layer_norm(y.to(weight.dtype), (self.width,), eps=self.out_norm.eps).flatten(-2)
        bonus = (write.query * write.key * self.bonus).sum(-1, keepdim=True) * write.value
        y = y * weight + bias + bonus.flatten(-2)
        x = x + self.out((y * gate).to(x.dtype))
        h = self.feed_norm(x)
        blend = _blend(h, _shift(h, before, start), self.feed_shift)
        return x + self.feed_out(functional.relu(self.feed_in(blend)).square()), h


class RWKV7(LayeredMemory["RWKV7Layer"]):
    """Stack of RWKV-7 layers.

    State: the entries of `RWKV7Layer` for every layer l, with the suffix `_l`.
    """

    in_place = True

    def __init__(self, config: RWKV7Config) -> None:
        super().__init__(config, [RWKV7Layer(config, index) for index in range(config.num_layers)])


def _low_rank(dim: int, rank: int, activation: nn.Module, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, rank, bias=False), activation, nn.Linear(rank, dim, bias=bias))


def _shift(h: Tensor, before: Tensor, start: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time dim"]:
    """Return the vector of the previous step for each step; zeros at the start of an episode."""
    previous = torch.cat([before[:, None].to(h.dtype), h[:, :-1]], dim=1)
    return previous.masked_fill(start[..., None], 0)


def _blend(h: Tensor, before: Tensor, weight: Tensor) -> Tensor:
    """Return `h` where the weight is 0 and `before` where it is 1. Under autocast their dtypes differ."""
    return h + (before - h) * weight


def _interleave(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first, second], dim=2).flatten(1, 2)
