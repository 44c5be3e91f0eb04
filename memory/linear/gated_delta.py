"""Gated DeltaNet: one matrix per head, decayed and updated by the delta rule.

Yang, Kautz & Hatamizadeh 2024 (arXiv 2412.06464), equation 10. A decay per channel gives Kimi Delta Attention
(Kimi Team 2025, arXiv 2510.26692). No decay gives DeltaNet (Yang et al. 2024, arXiv 2406.06484). With the
matrix S, log decay g, write strength b, key k, value v, query q and output y of a head,

    S_t = diag(exp g_t) S_{t-1} + b_t k_t (v_t - (diag(exp g_t) S_{t-1})^T k_t)^T,    y_t = S_t^T q_t.

With `householders` n above 1, a step decays the matrix once and makes n such writes one after another, each
with its own key, value and strength: DeltaProduct (Siems et al. 2025, arXiv 2502.10297, section 3). Without
decay, the transition of a step is a product of n generalized Householder matrices. With
`negative_eigenvalues`, one of them can exchange two entries, and a product of n can permute n + 1 entries.

The kernel is `kernels.linear_memory`. Keys, queries and values pass a causal convolution and SiLU. Keys and
queries are then divided by their length. b is a sigmoid of the input, or twice a sigmoid with
`negative_eigenvalues` (Grazzi et al. 2024, arXiv 2411.12537). Without this option, the memory cannot count
modulo any number above 1. For the input x, g = -exp(A) softplus(W x + d). A has one parameter per head, and d
has one parameter per decay. The output of the memory is normalized, gated by the input and projected.

Differences from the paper: a step reads before it writes unless `read_before_write` is False. The output norm
adds 1e-4 to the mean square instead of 1e-5 (`epsilon`), because outputs in the first steps of an episode are
small and normalization must not amplify their rounding errors. `make("gated_delta", paper=True)` has the
values of the paper and its code in both places. W is one matrix; Kimi Delta uses the product of two low-rank
matrices. The output gate is SiLU for every setting of `decay`. The feed-forward block has GELU and no gate.
At initialization, convolutions use almost only the present input, as in `memory/titans/neural.py`, and
`negative_eigenvalues` has strengths near 1.76, not 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels import linear_memory, linear_memory_step
from scrubjay.memory.contract.base import MemoryConfig, PaperValues, State
from scrubjay.memory.linear.layers import LayeredMemory, LinearTokens, draw_step_bias
from scrubjay.memory.parts.layers import ShortConvolution, feed_forward, normalize_vectors
from scrubjay.memory.parts.window import count_heads


@dataclass(frozen=True)
class GatedDeltaConfig(MemoryConfig):
    """Configuration of `GatedDelta`. Raises ValueError on an invalid value."""

    paper_values: ClassVar[PaperValues] = {"read_before_write": False, "epsilon": 1e-5}

    num_layers: int = 1
    """Number of layers, each with its own memory."""
    num_heads: int | None = None
    """Heads per layer. Default: the smallest number whose heads are 8 to 64 wide; 1 if there is none."""
    decay: Literal["head", "channel", "none"] = "head"
    """Granularity of the decay: one rate per head (`head`), one per key channel (`channel`), or no decay
    (`none`)."""
    negative_eigenvalues: bool = False
    """Allow write strengths up to 2, so that a step can flip the sign of a stored value. Counting and the
    tracking of permutations need this option."""
    householders: int = 1
    """Number of writes per step. The cost of a step is at most this multiple of the cost with one write."""
    convolution: int = 4
    """Number of steps in the causal convolution of keys, queries and values. With 1, a step uses only its
    own input."""
    read_before_write: bool = True
    """Read the memory before (True) or after (False) the write of the same step."""
    feed_forward_ratio: int = 2
    """Hidden width of the feed-forward block, in units of `dim`."""
    epsilon: float = 1e-4
    """Number that the output norm adds to the mean square of a head's outputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("num_layers", "householders", "convolution", "feed_forward_ratio")
        self.check_above_zero("epsilon")
        if self.decay not in ("head", "channel", "none"):
            raise ValueError(f"decay={self.decay!r}; choose from head, channel, none")
        count_heads(self.dim, self.num_heads)

    @property
    def heads(self) -> int:
        """Number of heads per layer. Each head has one matrix."""
        return count_heads(self.dim, self.num_heads)

    def build(self) -> GatedDelta:
        """Return a newly initialized memory."""
        return GatedDelta(self)


class GatedDeltaLayer(nn.Module):
    """Delta-rule memory and a feed-forward block, both pre-norm with a residual connection.

    State: `matrix` `[batch, heads, width, width]` is the memory of each head. `tail`
    `[batch, convolution - 1, (1 + 2 householders) dim]` holds the last inputs of the convolution.
    """

    def __init__(self, config: GatedDeltaConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.feed_forward_ratio * config.dim
        self.heads, self.width, self.decay = config.heads, dim // config.heads, config.decay
        self.max_step = 2.0 if config.negative_eigenvalues else 1.0
        self.read_before_write, self.writes = config.read_before_write, config.householders
        self.norm = nn.LayerNorm(dim)
        width_in = (1 + 2 * self.writes) * dim
        self.project_in = nn.Linear(dim, width_in, bias=False)
        self.convolution = ShortConvolution(width_in, config.convolution)
        self.step_size = nn.Linear(dim, self.writes * self.heads)
        if config.decay != "none":
            self.forgetting = nn.Linear(dim, self.heads if config.decay == "head" else dim)
            # As in the published code: rates up to 16, times 0.001 to 0.1.
            self.rate = nn.Parameter(torch.empty(self.heads).uniform_(0.01, 16).log())
        self.out_norm = nn.RMSNorm(self.width, eps=config.epsilon)
        self.output_gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.feed_forward = feed_forward(dim, hidden)
        with torch.no_grad():
            self.convolution.weight[1:] *= 0.2
            if config.negative_eigenvalues:
                # A write of strength 1 erases what its key has stored, and nothing is learned about it. One
                # of strength 2 only flips its sign.
                self.step_size.bias.fill_(2.0)
            if config.decay != "none":
                self.forgetting.bias.copy_(draw_step_bias(len(self.forgetting.bias)))

    def initial_state(self, batch_size: int, dtype: torch.dtype) -> State:
        """Return the initial state of the layer: zeros."""
        tail = self.convolution.initial_state(batch_size)
        shape = (batch_size, self.heads, self.width, self.width)
        return {"matrix": torch.zeros(shape, dtype=dtype, device=tail.device), "tail": tail}

    def step(
        self, x: Float[Tensor, "batch dim"], state: State, out: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the output of one step and the next state.

        If `out` is a tensor, the new matrix is written to it in place.
        """
        tokens, normed_x, tail = self.project_tokens(x[:, None], state["tail"], None)
        matrix, outputs = state["matrix"], []
        for write in range(self.writes):
            write_tokens = LinearTokens(*(part[:, write] for part in tokens))
            y, matrix = linear_memory_step(
                *write_tokens,
                matrix,
                rule="delta",
                erase_key=self.scale_erase_keys(write_tokens.key),
                read_before_write=self.read_before_write,
                out=out,
            )
            outputs.append(y)
        return self.finish(x, normed_x[:, 0], outputs[self._read]), {"matrix": matrix, "tail": tail}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the outputs of a segment and the next state."""
        tokens, normed_x, tail = self.project_tokens(x, state["tail"], start)
        y, matrix = linear_memory(
            *tokens,
            state["matrix"],
            rule="delta",
            erase_key=self.scale_erase_keys(tokens.key),
            start=self._place(start, 0),
            read_before_write=self.read_before_write,
        )
        y = y[:, self._read :: self.writes]
        return self.finish(x, normed_x, y), {"matrix": matrix, "tail": tail}

    def project_tokens(
        self, x: Float[Tensor, "batch time dim"], tail: Tensor, start: Tensor | None
    ) -> tuple[LinearTokens, Float[Tensor, "batch time dim"], Tensor]:
        """Return the kernel inputs, the normed inputs, and the last inputs of the convolution.

        The kernel inputs have a token for every write: the writes of a step follow each other. The first
        decays the matrix, and one of them reads it.
        """
        normed_x = self.norm(x)
        qkv, tail = self.convolution(self.project_in(normed_x), tail, start)
        qkv = functional.silu(qkv).to(tail.dtype).unflatten(-1, (-1, self.heads, self.width))
        query, keys, values = qkv.split([1, self.writes, self.writes], dim=2)
        step = self.max_step * torch.sigmoid(self.step_size(normed_x).to(tail.dtype))
        step = step.unflatten(-1, (self.writes, self.heads))
        tokens = LinearTokens(
            self._place(normalize_vectors(query[:, :, 0]), self._read),
            normalize_vectors(keys).flatten(1, 2),
            values.flatten(1, 2),
            self._place(self._log_decay(normed_x, step[:, :, 0]), 0),
            step.flatten(1, 2),
        )
        return tokens, normed_x, tail

    def scale_erase_keys(self, key: Float[Tensor, "*batch heads width"]) -> Tensor | None:
        """Return the erase keys of the delta rule for these keys; None if they are the keys themselves."""
        return None

    @property
    def _read(self) -> int:
        """Index of the write of a step whose token reads the matrix."""
        return 0 if self.read_before_write else self.writes - 1

    def _place(self, x: Tensor, write: int) -> Tensor:
        """Return a tensor of tokens: `x` at this write of every step, and zeros at the other writes."""
        if self.writes == 1:
            return x
        parts = [torch.zeros_like(x)] * self.writes
        parts[write] = x
        return torch.stack(parts, dim=2).flatten(1, 2)

    def finish(self, x: Tensor, normed_x: Tensor, y: Float[Tensor, "*batch heads width"]) -> Tensor:
        """Return the layer outputs for inputs `x` and memory outputs `y`."""
        y = self.out_norm(y.to(self.out_norm.weight.dtype)).flatten(-2)
        x = x + self.out(y * functional.silu(self.output_gate(normed_x)))
        return x + self.feed_forward(x)

    def _log_decay(self, normed_x: Tensor, step: Tensor) -> Tensor:
        if self.decay == "none":
            return torch.zeros_like(step)
        amount = functional.softplus(self.forgetting(normed_x).to(step.dtype))
        rate = self.rate.to(step.dtype).exp()
        if self.decay == "head":
            return -rate * amount
        return -rate[:, None] * amount.unflatten(-1, (self.heads, self.width))


class GatedDelta(LayeredMemory["GatedDeltaLayer"]):
    """Stack of gated-delta-rule and feed-forward layers.

    State: the entries of `GatedDeltaLayer` for every layer l, with the suffix `_l`.
    """

    in_place = True

    def __init__(self, config: GatedDeltaConfig) -> None:
        super().__init__(config, [GatedDeltaLayer(config) for _ in range(config.num_layers)])
